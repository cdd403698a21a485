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

/// Sides that are compared by bits.
const COMPARED: usize = 4;
/// Bits of an element by which smaller groups must be better.
const FINER: f64 = 0.25;
/// About what a scale takes, bits.
const SCALE_BITS: f64 = 14.0;

/// Rows and columns of the largest groups that lie on a lattice; `None` if even the smallest do not.
pub(super) fn groups_of(matrix: &Matrix, kind: Kind) -> Option<[usize; 2]> {
    let mut sample = Sample { matrix, kind, fitting: Fitting::new(matrix.dtype, kind), values: Vec::new() };
    let smallest = SMALLEST.min(matrix.cols);
    if sample.fits([1, smallest], true) {
        let width = sample.best(matrix.cols, smallest, |side| [1, side])?;
        let height = if sample.pairs(width) { sample.best(matrix.rows, 1, |side| [side, width])? } else { 1 };
        return Some([height, width]);
    }
    // A scale for each column.
    let smallest = SMALLEST.min(matrix.rows);
    if matrix.rows >= SMALLEST && sample.fits([smallest, 1], true) {
        let height = sample.best(matrix.rows, smallest, |side| [side, 1])?;
        return Some([height, 1]);
    }
    None
}

struct Sample<'a> {
    matrix: &'a Matrix<'a>,
    kind: Kind,
    fitting: Fitting,
    values: Vec<f32>,
}

impl Sample<'_> {
    /// The largest side, from divisors of `length` and round numbers, with which groups fit, unless a smaller one takes clearly less.
    /// Groups that are too large fit now and then, by a scale so fine that the scales of both halves are multiples of it.
    fn best(&mut self, length: usize, least: usize, group: impl Fn(usize) -> [usize; 2]) -> Option<usize> {
        let divisors = (1..).take_while(|d| d * d <= length).filter(|d| length.is_multiple_of(*d));
        let round = (8..=256).step_by(4).chain([512, 1024, 2048]);
        let mut sides: Vec<usize> = divisors.flat_map(|d| [d, length / d]).chain(round).collect();
        sides.retain(|&side| (least..=length).contains(&side));
        sides.sort_unstable_by(|a, b| b.cmp(a));
        sides.dedup();
        let mut found: Vec<(usize, f64)> = Vec::new();
        for side in sides {
            if self.fits(group(side), false) {
                found.push((side, self.bits(group(side))));
            }
            if found.len() == COMPARED {
                break;
            }
        }
        // A finer scale takes a good part of a bit; a small sample's entropy is less exact than that.
        let better = |best: (usize, f64), next: (usize, f64)| if next.1 < best.1 - FINER { next } else { best };
        found.into_iter().reduce(better).map(|found| found.0)
    }

    /// Bits of an element in sampled groups of this shape: its symbol's, and its part of a scale.
    fn bits(&mut self, group: [usize; 2]) -> f64 {
        let (mut counts, mut scales) = ([0u64; 256], 0.0);
        for origin in self.origins(group, false) {
            self.matrix.group(origin, group, SAMPLE, &mut self.values);
            let Some(scale) = self.fitting.range(&self.values).and_then(|range| range.scale(23)) else { continue };
            self.values.iter().for_each(|&v| counts[usize::from(self.kind.symbol(v, scale))] += 1);
            // Of the sampled elements, a group has a share of its scale.
            scales += SCALE_BITS * self.values.len() as f64 / (group[0] * group[1]) as f64;
        }
        let all = counts.iter().sum::<u64>().max(1) as f64;
        let symbols = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 * (all / n as f64).log2());
        (symbols.sum::<f64>() + scales) / all
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

    /// Sampled groups of this shape; those of the first row and column of groups alone where larger ones may not be multiples
    /// of them.
    fn origins(&self, group: [usize; 2], first: bool) -> Vec<[usize; 2]> {
        let [down, across] = [self.matrix.rows.div_ceil(group[0]), self.matrix.cols.div_ceil(group[1])];
        let count = (down * across).min(SAMPLED);
        let place = |n: usize| match first {
            // Along the longer side.
            true if group[0] == 1 => [n * down / count, 0],
            true => [0, n * across / count],
            // Spread over rows and columns alike.
            false => [n * down / count, n * 7919 % across],
        };
        (0..count).map(place).map(|[row, col]| [row * group[0], col * group[1]]).collect()
    }

    /// True if nearly all sampled groups of this shape lie on the lattice.
    fn fits(&mut self, group: [usize; 2], first: bool) -> bool {
        let origins = self.origins(group, first);
        let (mut off, mut nonzero) = (0, 0);
        for &origin in &origins {
            self.matrix.group(origin, group, SAMPLE, &mut self.values);
            nonzero += self.values.iter().filter(|&&v| v != 0.0).count();
            off += usize::from(self.fitting.range(&self.values).is_none());
            if off > origins.len() / OFF {
                return false;
            }
        }
        nonzero >= origins.len() * TELLING
    }
}
