//! The worth of rotating a matrix before it is quantized: randomised Hadamard transforms of its rows, its columns or
//! both (incoherence processing: QuIP#, Tseng et al. 2024), compared with the matrix as it is, and with rows or columns
//! that are only in another order.
//!
//! A rotated matrix is quantized under its rotated Hessian and gradient covariance, so that its loss by the quadratic
//! model is that of the matrix it is rotated back to.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, Axis};
use rayon::prelude::*;
use serde::Serialize;
use waterfill_allocate::{Allocation, PlannedWeight, read_plan};
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::{CodedTensor, Dtype, TILE, TensorPlan, Trellis};
use waterfill_quadratic::{Curvature, Hessian, LossWeights, QuadraticLoss};
use waterfill_quantize::ldlq::{LdlqOptions, encode_ldlq};

use crate::error::BenchError;
use crate::source::Gaussians;

/// Share of the mean of a Hessian's diagonal that is added to it.
const DAMPING: f64 = 0.03;
/// Lambda that levels are chosen by, as a share of the allocation's.
const ROUNDING: f32 = 0.3;

/// Bits per weight that a rotation costs at equal loss; negative where it saves some.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct RotationCost {
    /// Of the input side.
    pub inputs: f64,
    /// Of the output side.
    pub outputs: f64,
    /// Of both.
    pub both: f64,
    /// Of an order in which rows that are decided together come from all over the matrix: the simplest
    /// orthogonal matrix of all.
    pub reordered: f64,
    /// Of deciding the inputs of the largest Hessian diagonal first (GPTQ's order by activations).
    pub largest_first: f64,
    /// Of deciding those of the smallest first.
    pub smallest_first: f64,
}

/// Figures of one allocation.
#[derive(Debug, Clone, Serialize)]
pub struct RotationBench {
    /// Matrices with both a Hessian and a gradient covariance.
    pub matrices: usize,
    /// Bits per weight of those as they are.
    pub bits_per_weight: f64,
    /// Mean over weights, by kind and of `all`.
    pub cost: BTreeMap<String, RotationCost>,
    /// Matrices that a Hadamard rotation saves bits of beyond what reordering saves, with that.
    pub savings: BTreeMap<String, f64>,
}

/// An orthogonal matrix.
enum Rotation {
    /// Random signs, then normalised Hadamard transforms of the largest power of two that divides the side.
    Hadamard { signs: Vec<f32>, block: usize },
    /// Another order: which comes where.
    Order(Vec<usize>),
}

impl Rotation {
    fn hadamard(side: usize, seed: u64) -> Self {
        let signs = Gaussians::new(seed).take(side).map(|g| if g < 0.0 { -1.0 } else { 1.0 }).collect();
        Self::Hadamard { signs, block: 1 << side.trailing_zeros() }
    }

    /// Steps of about an eighth of the side, without a factor in common with it.
    fn stride(side: usize) -> Self {
        let common = |step: usize| (2..=step).any(|d| step.is_multiple_of(d) && side.is_multiple_of(d));
        let step = (side / 8 + 1..).find(|&step| !common(step)).unwrap_or(1);
        Self::Order((0..side).map(|i| i * step % side).collect())
    }

    /// Largest first.
    fn sorted(values: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order
    }

    /// Rotates a vector in place.
    fn apply(&self, line: &mut [f32]) {
        let (signs, block) = match self {
            Self::Hadamard { signs, block } => (signs, *block),
            Self::Order(order) => {
                let old = line.to_vec();
                line.iter_mut().zip(order).for_each(|(v, &from)| *v = old[from]);
                return;
            }
        };
        line.iter_mut().zip(signs).for_each(|(v, s)| *v *= s);
        let scale = (block as f32).sqrt().recip();
        for part in line.chunks_exact_mut(block) {
            let mut half = 1;
            while half < block {
                for pair in part.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
                }
                half *= 2;
            }
            part.iter_mut().for_each(|v| *v *= scale);
        }
    }

    /// Rotates all rows of a matrix.
    fn rows_of(&self, matrix: &mut Array2<f32>) {
        for mut row in matrix.axis_iter_mut(Axis(0)) {
            self.apply(row.as_slice_mut().expect("row-major"));
        }
    }

    /// Rotates both sides of a symmetric matrix.
    fn both_sides_of(&self, matrix: &Array2<f32>) -> Array2<f32> {
        let mut rotated = matrix.clone();
        self.rows_of(&mut rotated);
        let mut rotated = rotated.t().as_standard_layout().into_owned();
        self.rows_of(&mut rotated);
        rotated
    }
}

/// One matrix under one rotation: whole tensor in bits, loss in nats per token.
struct Coded {
    bits: f64,
    loss: f64,
}

/// Codes a matrix, rotated or as it is, where errors cost what its Hessian and gradient covariance say.
fn code(
    planned: &PlannedWeight,
    weights: &Array2<f32>,
    [input, output]: [&Array2<f32>; 2],
    [inputs, outputs]: [Option<&Rotation>; 2],
) -> Result<Coded, BenchError> {
    let (rows, cols) = weights.dim();
    let mut weights = weights.clone();
    if let Some(rotation) = inputs {
        rotation.rows_of(&mut weights);
    }
    if let Some(rotation) = outputs {
        let mut turned = weights.t().as_standard_layout().into_owned();
        rotation.rows_of(&mut turned);
        weights = turned.t().as_standard_layout().into_owned();
    }
    let rotated = |matrix: &Array2<f32>, rotation: Option<&Rotation>| match rotation {
        Some(rotation) => rotation.both_sides_of(matrix),
        None => matrix.clone(),
    };
    let (input, output) = (rotated(input, inputs), rotated(output, outputs));
    // Without tiles of their own, so that all rotations have one model of the loss.
    let share = |m: &Array2<f32>| {
        let mean = m.diag().mean().unwrap_or(1.0).max(f32::MIN_POSITIVE);
        m.diag().mapv(|v| v / mean).to_vec()
    };
    let mean = planned.loss_weights.tiles.iter().sum::<f32>() / planned.loss_weights.tiles.len() as f32;
    let (by_row, by_col) = (share(&output), share(&input));
    let loss_weights =
        LossWeights { tiles: vec![mean; planned.plan.tiles.len()], rows: by_row, cols: by_col, lookup: vec![] };
    let mut plan = TensorPlan { dtype: Dtype::F32, ..planned.plan.clone() };
    plan.row_scale = vec![0; rows];
    plan.col_scale = vec![0; cols];
    // Spreads of the matrix as it is do not hold for the rotated one: both get their own.
    let level = |squares: f32, count: usize| 2.0 * (squares / count as f32).max(1e-30).log2();
    let all = level(weights.iter().map(|w| w * w).sum(), rows * cols);
    let relative = |axis: Axis, count: usize| -> Vec<i8> {
        let of = |line: ndarray::ArrayView1<f32>| level(line.iter().map(|w| w * w).sum(), count) - all;
        weights.axis_iter(axis).map(|line| of(line).round().clamp(-40.0, 40.0) as i8).collect()
    };
    (plan.row_sigma, plan.col_sigma) = (relative(Axis(0), cols), relative(Axis(1), rows));
    plan.sigma_base = all.round() as i32;
    plan.tiles.iter_mut().for_each(|t| t.sigma = 0);
    let planned = PlannedWeight {
        plan,
        loss_weights: loss_weights.clone(),
        lambda: planned.lambda,
        allow_int4: false,
        sharing: Default::default(),
        widths: vec![],
    };
    let (input, output) = (Hessian::from_dense(&input), Hessian::from_dense(&output));
    let curvature = Curvature { hessian: Some(&input), gradient_covariance: Some(&output) };
    let options = LdlqOptions {
        bit_shift: None,
        trellis: Trellis::new(3),
        rounding: ROUNDING,
        allow_int8: true,
        allow_lossless: false,
        damping: DAMPING,
        error_penalty: 0.0,
        sparse: false,
        draft: false,
    };
    let weights = weights.as_standard_layout().into_owned().into_raw_vec_and_offset().0;
    let coded = encode_ldlq(&planned, &weights, curvature, &options)?;
    let (decoded, _) = CodedTensor::parse(&coded).and_then(|c| c.decode())?;
    let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let errors = decoded.chunks_exact(4).zip(&weights).map(|(b, &w)| value(b) - w).collect();
    Ok(Coded { bits: coded.len() as f64 * 8.0, loss: QuadraticLoss::new(&loss_weights, TILE, curvature).of(errors) })
}

/// Compares an allocation's matrices as they are with rotated ones.
///
/// # Errors
/// Files that cannot be read, and calibrations without full Hessians and gradient covariances.
pub fn bench_rotation(checkpoint: &Path, calibration: &Path, allocation: &Path) -> Result<RotationBench, BenchError> {
    let source = Checkpoint::open(checkpoint)?;
    let sensitivities = Sensitivities::open(calibration)?.damped(Some(0.0));
    let allocation = Allocation::open(allocation)?;
    let one = |name: &String| -> Result<Option<(String, f64, f64, RotationCost)>, BenchError> {
        let moments = [sensitivities.hessian(name)?, sensitivities.gradient_covariance(name)?];
        let [Some(input), Some(output)] = moments else { return Ok(None) };
        if input.blocks() != 1 || output.blocks() != 1 {
            return Ok(None);
        }
        let moments = [&input.block(0), &output.block(0)];
        let planned = read_plan(&allocation, name)?;
        let shape = (planned.plan.rows, planned.plan.cols);
        let values = source.read_f32(name, &[shape.0, shape.1])?;
        let weights = Array2::from_shape_vec(shape, values).expect("as many as the shape says");
        let (inputs, outputs) = (Rotation::hadamard(shape.1, 1), Rotation::hadamard(shape.0, 2));
        let by_moment = Rotation::sorted(&moments[0].diag().to_vec());
        let count = weights.len() as f64;
        let plain = code(&planned, &weights, moments, [None, None])?;
        // Six decibels a bit: half of log2 of the loss.
        let cost = |rotations| -> Result<f64, BenchError> {
            let rotated = code(&planned, &weights, moments, rotations)?;
            Ok((rotated.bits - plain.bits) / count + (rotated.loss / plain.loss).log2() / 2.0)
        };
        let cost = RotationCost {
            inputs: cost([Some(&inputs), None])?,
            outputs: cost([None, Some(&outputs)])?,
            both: cost([Some(&inputs), Some(&outputs)])?,
            reordered: cost([None, Some(&Rotation::stride(shape.0))])?,
            smallest_first: cost([Some(&Rotation::Order(by_moment.iter().rev().copied().collect())), None])?,
            largest_first: cost([Some(&Rotation::Order(by_moment)), None])?,
        };
        Ok(Some((name.clone(), count, plain.bits, cost)))
    };
    let names: Vec<String> = allocation.names().into_iter().collect();
    let all = names.par_iter().map(one).collect::<Result<Vec<_>, BenchError>>()?;
    let all: Vec<_> = all.into_iter().flatten().collect();
    if all.is_empty() {
        return Err(BenchError::Moments { path: calibration.to_path_buf() });
    }
    let weights = all.iter().map(|(_, count, ..)| count).sum::<f64>();
    let mut groups: BTreeMap<String, Vec<(f64, RotationCost)>> = BTreeMap::new();
    for (name, count, _, cost) in &all {
        for group in [name.rsplit('.').nth(1).unwrap_or(name), "all"] {
            groups.entry(group.into()).or_default().push((*count, *cost));
        }
    }
    let mean = |group: &[(f64, RotationCost)], of: fn(&RotationCost) -> f64| {
        group.iter().map(|(n, c)| n * of(c)).sum::<f64>() / group.iter().map(|(n, _)| n).sum::<f64>()
    };
    let cost = groups.iter().map(|(name, group)| {
        let of = |of| mean(group, of);
        let cost = RotationCost {
            inputs: of(|c| c.inputs),
            outputs: of(|c| c.outputs),
            both: of(|c| c.both),
            reordered: of(|c| c.reordered),
            largest_first: of(|c| c.largest_first),
            smallest_first: of(|c| c.smallest_first),
        };
        (name.clone(), cost)
    });
    let least = |c: &RotationCost| c.inputs.min(c.outputs).min(c.both) - c.reordered.min(0.0);
    Ok(RotationBench {
        matrices: all.len(),
        bits_per_weight: all.iter().map(|(.., bits, _)| bits).sum::<f64>() / weights,
        cost: cost.collect(),
        savings: all.iter().filter(|a| least(&a.3) < 0.0).map(|a| (a.0.clone(), least(&a.3))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_keep_products() {
        for side in [8, 48] {
            let by_value = Rotation::Order(Rotation::sorted(&[1.0, 3.0, 2.0]));
            assert!(matches!(&by_value, Rotation::Order(order) if *order == [1, 2, 0]));
            for rotation in [Rotation::hadamard(side, 3), Rotation::stride(side)] {
                let mut vectors: Vec<Vec<f32>> =
                    (0..2).map(|n| Gaussians::new(n).take(side).map(|g| g as f32).collect()).collect();
                let product = |v: &[Vec<f32>]| v[0].iter().zip(&v[1]).map(|(a, b)| a * b).sum::<f32>();
                let before = product(&vectors);
                vectors.iter_mut().for_each(|v| rotation.apply(v));
                assert!((product(&vectors) - before).abs() < 1e-4, "{side}");
            }
        }
    }
}
