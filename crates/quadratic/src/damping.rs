//! Damping: additions to the diagonal of a Hessian before it is factored.

use ndarray::Array1;

/// Factor by which damping grows while a matrix is not positive definite, and its least value then.
const GROWTH: f64 = 10.0;
const LEAST: f64 = 1e-6;

/// Additions to the diagonal of a Hessian `H`, in units of the mean `m` of that diagonal with `lookup` included:
/// `H_jj + m (lookup + uniform + levels[j])`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Damping<'a> {
    /// Added to every entry (GPTQ's dampening, 0.01 as published).
    pub uniform: f64,
    /// Share of an embedding's loss that comes from looking rows up, where errors of columns do not add up: a
    /// multiple of the identity that is this share of the sum.
    pub lookup: f64,
    /// Added by entry; empty for none.
    pub levels: &'a [f64],
}

impl Damping<'_> {
    /// `share` of the mean added to every entry.
    pub const fn uniform(share: f64) -> Self {
        Self { uniform: share, lookup: 0.0, levels: &[] }
    }

    /// The next larger share to try where rounding has left a matrix that is not positive definite.
    pub(crate) fn grown(share: f64) -> f64 {
        (share * GROWTH).max(LEAST)
    }
}

/// A [`Damping`] of one matrix, in the matrix' own unit.
pub(crate) struct Addition<'a> {
    /// Mean of the diagonal, lookup included.
    mean: f64,
    lookup: f64,
    levels: &'a [f64],
}

impl<'a> Addition<'a> {
    pub fn new(diagonal: &Array1<f32>, damping: &Damping<'a>) -> Self {
        let sum = diagonal.iter().map(|&d| f64::from(d)).sum::<f64>();
        let mean = sum / diagonal.len().max(1) as f64 / (1.0 - damping.lookup).max(1e-3);
        Self { mean, lookup: mean * damping.lookup, levels: damping.levels }
    }

    /// Added to every entry before damping.
    pub fn lookup(&self) -> f64 {
        self.lookup
    }

    /// Added to entry `j` under a uniform damping of `share`; never zero.
    pub fn at(&self, j: usize, share: f64) -> f64 {
        let level = self.mean * self.levels.get(j).copied().unwrap_or(0.0);
        self.lookup + (share * self.mean).max(f64::MIN_POSITIVE) + level
    }
}

/// Raises `levels`, which are in units of the mean of `weights` (by row or by column), by `share` of each entry's own
/// weight: single errors count for more against those that feedback could cancel.
pub fn add_error_penalty(levels: &mut [f64], weights: &[f32], share: f64) {
    let mean = weights.iter().map(|&v| f64::from(v)).sum::<f64>() / weights.len().max(1) as f64;
    let mean = mean.max(f64::MIN_POSITIVE);
    levels.iter_mut().zip(weights).for_each(|(level, &v)| *level += share * f64::from(v) / mean);
}
