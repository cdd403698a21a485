//! Finding the lattice that a decoded quantized checkpoint's elements lie on, from the elements alone: codebook, groups, scales.
//!
//! An element rounds to its type whatever lies within half a unit of its last place. So it says of a group's scale, given its symbol, in
//! which interval it is, and a group lies on the lattice if the intervals of all its elements have a common part ([`fit`]). Groups are the
//! largest that do, by which the encoder begins: a sample of a plain tensor's elements does not, and costs no time.

mod fit;
mod matrix;
mod shape;

use crate::format::Dtype;
use crate::syntax::lattice::{Lattice, Via, element};

use fit::{Fitting, Kind, Range};
use matrix::Matrix;
use shape::groups_of;

/// A lattice, and a tensor's elements on it.
pub(super) struct Fitted {
    pub lattice: Lattice,
    /// Scale and offset of each group, row of groups by row of groups.
    pub scales: Vec<(f32, f32)>,
    /// Symbols of all elements.
    pub symbols: Vec<u8>,
    /// Place and bit pattern of elements off the lattice, in order of places.
    pub exceptions: Vec<(u64, u32)>,
}

/// Elements off the lattice at which it is given up: one of so many.
const MOST_EXCEPTIONS: usize = 24;

/// The lattice of a matrix of weights in rows of `cols`; `None` where no more than a few elements are off one.
pub(super) fn find_lattice(dtype: Dtype, cols: usize, bytes: &[u8]) -> Option<Fitted> {
    let rows = bytes.len() / dtype.bytes() / cols.max(1);
    let matrix = Matrix { dtype, rows, cols, bytes };
    if rows * cols < LEAST {
        return None;
    }
    Kind::all(dtype).into_iter().find_map(|kind| fit_all(&matrix, kind, groups_of(&matrix, kind)?))
}

/// Elements below which no lattice is looked for.
const LEAST: usize = 1024;

/// Most elements of a group that its scale is found from.
const MOST: usize = 1 << 16;

fn fit_all(matrix: &Matrix, kind: Kind, group: [usize; 2]) -> Option<Fitted> {
    let origins = || {
        let cols = move || (0..matrix.cols).step_by(group[1]);
        (0..matrix.rows).step_by(group[0]).flat_map(move |row| cols().map(move |col| [row, col]))
    };
    let mut fitting = Fitting::new(matrix.dtype, kind);
    let mut values = Vec::new();
    let mut range = |origin: [usize; 2]| {
        matrix.group(origin, group, MOST, &mut values);
        fitting.range(&values)
    };
    let stride = origins().count().div_ceil(SAMPLED);
    let bits = fraction_bits(&origins().step_by(stride).map(&mut range).collect::<Vec<_>>(), group);
    let lattice = Lattice {
        book: kind.book(),
        group,
        scale_bits: bits,
        offset_bits: kind.has_offset().then_some(bits),
        via: Via(kind.via),
    };
    let book = lattice.book.values();
    let mut fitted =
        Fitted { scales: Vec::new(), symbols: vec![128; matrix.rows * matrix.cols], exceptions: Vec::new(), lattice };
    let most = matrix.rows * matrix.cols / MOST_EXCEPTIONS;
    let mut last = (0.0, 0.0);
    for origin in origins() {
        let mut scale = range(origin).and_then(|range| range.scale(bits)).unwrap_or(last);
        if scale.0 == 0.0 {
            // Zeros alone have any.
            scale.0 = last.0;
        }
        last = scale;
        fitted.scales.push(scale);
        let offset = fitted.lattice.offset_bits.map(|_| scale.1);
        let (bottom, right) = ((origin[0] + group[0]).min(matrix.rows), (origin[1] + group[1]).min(matrix.cols));
        for row in origin[0]..bottom {
            for col in origin[1]..right {
                let place = row * matrix.cols + col;
                let pattern = matrix.pattern(place);
                let symbol = kind.symbol(matrix.dtype.value_of(pattern), scale);
                let found = element(scale.0, book[usize::from(symbol)], offset);
                if fitted.lattice.pattern(matrix.dtype, found) == pattern {
                    fitted.symbols[place] = symbol;
                } else {
                    fitted.exceptions.push((place as u64, pattern));
                }
            }
        }
        if fitted.exceptions.len() > most {
            return None;
        }
    }
    fitted.exceptions.sort_unstable();
    Some(fitted)
}

/// Groups from which bits of fractions are chosen.
const SAMPLED: usize = 1 << 11;

/// Bits of the fractions of scales (and offsets) at which groups take least: those whose scale needs more have exceptions.
fn fraction_bits(ranges: &[Option<Range>], group: [usize; 2]) -> u32 {
    let mut needed = [0usize; 24];
    for range in ranges.iter().flatten() {
        needed[(0..23).find(|&bits| range.scale(bits).is_some()).unwrap_or(23) as usize] += 1;
    }
    let exceptions = (group[0] * group[1]).min(1 << 20) as f64 * 24.0;
    let cost = |bits: u32| {
        let without: usize = needed[bits as usize + 1..].iter().sum();
        ranges.len() as f64 * f64::from(bits) + without as f64 * exceptions
    };
    (0..=23).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(23)
}
