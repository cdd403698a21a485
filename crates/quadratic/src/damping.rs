//! Damping: additions to the diagonal of a Hessian before it is factored.

use ndarray::Array1;

use crate::weights::LossWeights;

/// Largest share of the mean loss weight that damps a row or a column by the water level.
const MOST: f64 = 100.0;

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

/// Damping by the water level, for rows and for columns ([`Damping::levels`]): the loss of a weight at the water level, nats
/// per token, over the loss that erasing an average weight of the row, or column, would cause if the row's own loss weight
/// were the mean; at most 100. A source of finite variance is worth the same as damping by it.
pub fn water_damping(weights: &[f32], loss_weights: &LossWeights, tile: usize, level: f64) -> (Vec<f64>, Vec<f64>) {
    let (rows, cols) = (loss_weights.rows.len(), loss_weights.cols.len());
    let across = cols.div_ceil(tile);
    let (mut by_row, mut by_col) = (vec![0.0f64; rows], vec![0.0f64; cols]);
    for (row, line) in weights.chunks_exact(cols).enumerate() {
        let tiles = &loss_weights.tiles[row / tile * across..][..across];
        for (col, w) in line.iter().enumerate() {
            let square = w * w * tiles[col / tile];
            by_row[row] += f64::from(square * loss_weights.cols[col]);
            by_col[col] += f64::from(square * loss_weights.rows[row]);
        }
    }
    let share = |sums: Vec<f64>, by: &[f32], others: usize| -> Vec<f64> {
        let mean = by.iter().map(|&v| f64::from(v)).sum::<f64>() / by.len().max(1) as f64;
        let of = |sum: f64| (level * others as f64 / (sum * mean).max(f64::MIN_POSITIVE)).min(MOST);
        sums.into_iter().map(of).collect()
    };
    (share(by_row, &loss_weights.rows, cols), share(by_col, &loss_weights.cols, rows))
}
