//! The cost of keeping less of the Hessians.
//!
//! With H = (I+U) D (I+U)^T, error feedback turns the loss per column from H_jj into D_j, which is
//! worth half of log2(H_jj / D_j) bits; their mean over columns is (sum log2 H_jj - log2 det H) / 2n.

use std::collections::BTreeMap;
use std::path::Path;

use faer::{Mat, Side};
use ndarray::Array2;
use rayon::prelude::*;
use serde::Serialize;
use waterfill_calibrate::Sensitivities;
use waterfill_model::TensorRole;

use crate::error::BenchError;

/// Damping, as a share of the mean of the diagonal.
const DAMPING: f64 = 0.01;
/// Sides of the diagonal blocks that are compared.
const SIDES: [usize; 3] = [512, 128, 32];

/// Mean worth of error feedback over all Hessians of an artifact, bits per weight.
#[derive(Debug, Clone, Serialize)]
pub struct MomentsBench {
    /// Matrices in the artifact.
    pub matrices: usize,
    /// With all correlations.
    pub full: f64,
    /// With all correlations moved by half a step of their 16 bits, as far as rounding can move them.
    pub moved: f64,
    /// Largest change of a matrix by that.
    pub moved_most: f64,
    /// With diagonal blocks of a side.
    pub blocks: BTreeMap<usize, f64>,
    /// Of output gradients, fed back over all rows, and from blocks of that many rows to the next, by
    /// damping.
    pub outputs: BTreeMap<String, f64>,
    /// Bytes of the Hessians' files, and of the same as f32 matrices.
    pub bytes: [u64; 2],
}

/// Bits that feedback is worth with this matrix.
fn worth(h: &Array2<f32>) -> f64 {
    worth_between(h, 1, DAMPING)
}

/// Bits that feedback from blocks of `side` rows to those after them is worth.
fn worth_between(h: &Array2<f32>, side: usize, damping: f64) -> f64 {
    let n = h.nrows();
    let added = damping * h.diag().iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
    let damped = Mat::from_fn(n, n, |i, j| f64::from(h[[i, j]]) + if i == j { added } else { 0.0 });
    let Ok(factor) = damped.llt(Side::Lower) else { return f64::NAN };
    let lower = factor.L();
    let left = |i: usize| (i / side * side..=i).map(|k| lower[(i, k)].powi(2)).sum::<f64>();
    (0..n).map(|i| (damped[(i, i)] / left(i)).log2()).sum::<f64>() / (2 * n) as f64
}

/// The diagonal blocks of `side` and zeros.
fn restricted(h: &Array2<f32>, side: usize) -> Array2<f32> {
    Array2::from_shape_fn(h.dim(), |(i, j)| if i / side == j / side { h[[i, j]] } else { 0.0 })
}

/// Correlations up or down by half of their last bit.
fn moved(h: &Array2<f32>) -> Array2<f32> {
    let up = |i: usize, j: usize| (i.min(j) * 31 + i.max(j) * 17).is_multiple_of(2);
    let sign = |i: usize, j: usize| if up(i, j) { 0.5 } else { -0.5 };
    Array2::from_shape_fn(h.dim(), |(i, j)| match i == j {
        true => h[[i, j]],
        false => h[[i, j]] + sign(i, j) / 32767.0 * (h[[i, i]] * h[[j, j]]).sqrt(),
    })
}

/// Compares the worth of an artifact's Hessians whole and in parts.
///
/// # Errors
/// Artifacts without full Hessians.
pub fn bench_moments(calibration: &Path) -> Result<MomentsBench, BenchError> {
    let sensitivities = Sensitivities::open(calibration)?.damped(Some(0.0));
    let mut bytes = [0, 0];
    let mut rows = Vec::new();
    let mut outputs: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for name in sensitivities.names() {
        let Some(kept) = sensitivities.gradient_covariance(name)?.filter(|m| m.blocks() == 1) else { continue };
        let h = kept.block(0);
        let kind = name.rsplit('.').nth(1).unwrap_or(name);
        for (side, damping) in [(1, 0.01), (16, 0.01), (32, 0.01), (64, 0.01), (1, 0.1), (16, 0.1), (64, 0.1)] {
            let worth = worth_between(&h, side, damping);
            for group in [kind, "all"] {
                outputs.entry(format!("{group}, {side} rows, damping {damping}")).or_default().push(worth);
            }
        }
    }
    for name in sensitivities.names() {
        // Layers that share their input share its Hessian: counted once.
        let role = TensorRole::parse(name);
        if role.and_then(TensorRole::first_of_input).is_some_and(|first| Some(first) != role) {
            continue;
        }
        let Some(kept) = sensitivities.hessian(name)?.filter(|m| m.blocks() == 1) else { continue };
        let h = kept.block(0);
        let n = h.nrows() as u64;
        bytes = [bytes[0] + 4 * n + n * (n - 1), bytes[1] + 4 * n * n];
        let variants: Vec<Array2<f32>> =
            [h.clone(), moved(&h)].into_iter().chain(SIDES.iter().map(|&side| restricted(&h, side))).collect();
        rows.push(variants.par_iter().map(worth).collect::<Vec<f64>>());
    }
    if rows.is_empty() {
        return Err(BenchError::Moments { path: calibration.to_path_buf() });
    }
    let mean = |i: usize| rows.iter().map(|r| r[i]).sum::<f64>() / rows.len() as f64;
    Ok(MomentsBench {
        matrices: rows.len(),
        full: mean(0),
        moved: mean(1),
        moved_most: rows.iter().map(|r| (r[1] - r[0]).abs()).fold(0.0, f64::max),
        blocks: SIDES.iter().enumerate().map(|(i, &side)| (side, mean(2 + i))).collect(),
        bytes,
        outputs: outputs.into_iter().map(|(k, v)| (k, v.iter().sum::<f64>() / v.len() as f64)).collect(),
    })
}
