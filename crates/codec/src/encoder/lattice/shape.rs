//! Which elements share a scale.

use super::fit::{Fitting, Kind};
use super::matrix::Matrix;

/// Rows, and columns, that are sampled.
const SAMPLED: usize = 16;
/// Elements of a group that are sampled.
const SAMPLE: usize = 1 << 12;
/// Elements of the smallest group that is looked for.
const SMALLEST: usize = 16;
/// Groups of a sample that must fit: one may be off for every ten.
const OFF: usize = 10;
/// Elements of a sample's groups that must not be zero, on average.
const TELLING: usize = 4;

/// Rows and columns of the largest groups that lie on a lattice; `None` if even the smallest do not.
pub(super) fn groups_of(matrix: &Matrix, kind: Kind) -> Option<[usize; 2]> {
    let mut sample = Sample { matrix, fitting: Fitting::new(matrix.dtype, kind), values: Vec::new() };
    let smallest = SMALLEST.min(matrix.cols);
    if sample.fits([1, smallest], true) {
        let width = sample.largest(matrix.cols, smallest, |side| [1, side])?;
        let height = if sample.pairs(width) { sample.largest(matrix.rows, 1, |side| [side, width])? } else { 1 };
        return Some([height, width]);
    }
    // A scale for each column.
    let smallest = SMALLEST.min(matrix.rows);
    if matrix.rows >= SMALLEST && sample.fits([smallest, 1], true) {
        let height = sample.largest(matrix.rows, smallest, |side| [side, 1])?;
        return Some([height, 1]);
    }
    None
}

struct Sample<'a> {
    matrix: &'a Matrix<'a>,
    fitting: Fitting,
    values: Vec<f32>,
}

impl Sample<'_> {
    /// The largest side, from divisors of `length` and round numbers, with which groups fit.
    fn largest(&mut self, length: usize, least: usize, group: impl Fn(usize) -> [usize; 2]) -> Option<usize> {
        let divisors = (1..).take_while(|d| d * d <= length).filter(|d| length.is_multiple_of(*d));
        let round = (8..=256).step_by(4).chain([512, 1024, 2048]);
        let mut sides: Vec<usize> = divisors.flat_map(|d| [d, length / d]).chain(round).collect();
        sides.retain(|&side| (least..=length).contains(&side));
        sides.sort_unstable_by(|a, b| b.cmp(a));
        sides.dedup();
        sides.into_iter().find(|&side| self.fits(group(side), false))
    }

    /// True if a good part of rows share scales with the row below.
    fn pairs(&mut self, width: usize) -> bool {
        let [down, across] = [self.matrix.rows / 2, self.matrix.cols.div_ceil(width)];
        let count = down.min(SAMPLED);
        let fits = (0..count).filter(|n| {
            let origin = [n * down / count * 2, n * 7919 % across * width];
            self.matrix.group(origin, [2, width], SAMPLE, &mut self.values);
            self.fitting.range(&self.values).is_some()
        });
        // Of groups of three rows two pairs out of three lie in one.
        fits.count() * 3 > count
    }

    /// True if nearly all sampled groups of this shape lie on the lattice; of the first row and column of groups alone where larger ones
    /// may not be multiples of them.
    fn fits(&mut self, group: [usize; 2], first: bool) -> bool {
        let [down, across] = [self.matrix.rows.div_ceil(group[0]), self.matrix.cols.div_ceil(group[1])];
        let count = (down * across).min(SAMPLED);
        let (mut off, mut nonzero) = (0, 0);
        for n in 0..count {
            // Spread over rows and columns alike.
            let (mut row, mut col) = (n * down / count, n * 7919 % across);
            if first {
                // Along the longer side.
                (row, col) = if group[0] == 1 { (n * down / count, 0) } else { (0, n * across / count) };
            }
            self.matrix.group([row * group[0], col * group[1]], group, SAMPLE, &mut self.values);
            nonzero += self.values.iter().filter(|&&v| v != 0.0).count();
            off += usize::from(self.fitting.range(&self.values).is_none());
            if off > count / OFF {
                return false;
            }
        }
        nonzero >= count * TELLING
    }
}
