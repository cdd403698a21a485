//! A refinement layer: the residual of the layers before, quantized with error feedback of its own.

use rayon::prelude::*;
use waterfill_allocate::PlannedWeight;
use waterfill_checkpoint::Values;
use waterfill_codec::encoder::sigma_fit::{fit_sigma, quarter_octaves, rms, sigma_vector};
use waterfill_codec::scale::{UNIT, nearest_index, scale};
use waterfill_codec::{Format, Parameters, Result, Scales, TensorEncoder, TensorPlan, TileMode, TilePlan};
use waterfill_quadratic::Curvature;

use super::options::LdlqOptions;
use super::steps::{Freedom, set_steps, set_tile_steps};
use super::tensor::Costs;
use crate::slices::{encode_parallel, slice_samples};

/// Bits of an FP8 weight's step below its magnitude: half a unit of three bits of fraction.
const FP8_STEP: f64 = 3.0;
/// A step above any that is wanted.
const COARSE: i16 = 1000;
/// Quarter octaves from which on a tile's own spread pays for itself.
const LEAST_SPREAD: f64 = 2.0;

/// The layer that a refinement adds to.
pub struct LayerBefore<'a> {
    /// Its plan.
    pub plan: &'a TensorPlan,
    /// Its decoded values, as bytes of the plan's type.
    pub bytes: Vec<u8>,
}

/// Codes the difference of `weights` (row-major `[rows, cols]`) from the layer before as a refinement, with that layer's
/// scales of rows and columns, towards the quality that `weight` was allocated.
///
/// # Errors
/// As [`TensorEncoder`].
pub fn refine_ldlq(
    weight: &PlannedWeight,
    weights: &[f32],
    layer_before: LayerBefore,
    curvature: Curvature,
    options: &LdlqOptions,
) -> Result<Vec<u8>> {
    let before = layer_before.plan;
    let before_values = Values { dtype: before.dtype, bytes: layer_before.bytes, tiles: Vec::new() };
    let known = before_values.to_f32();
    let left: Vec<f32> = weights.iter().zip(&known).map(|(w, k)| w - k).collect();
    let scales = Scales::of(before);
    // Scales of its own would serve the finer steps a little better, and cost as much, unless there are none. Without, what is
    // left is a change of weights, most of which may be below the water.
    let own = scales.rows.is_empty() && scales.cols.is_empty();
    let costs = Costs::new(weight, &left, own, curvature, options);
    let mut plan = TensorPlan {
        row_scale: if own { weight.plan.row_scale.clone() } else { scales.rows.clone() },
        col_scale: if own { weight.plan.col_scale.clone() } else { scales.cols.clone() },
        parameters: Parameters {
            refinement: Some(Box::new(scales.clone())),
            trellis: options.trellis,
            ..Parameters::default()
        },
        ..weight.plan.clone()
    };
    // A floor; else patterns were the cheapest of fine steps without a base.
    let exact = !options.sparse && plan.tiles.iter().all(|t| t.format == Format::Lossless);
    for n in 0..plan.tiles.len() {
        plan.tiles[n] = wanted(&plan, n, exact, weights, &left);
    }
    let set = if own { set_steps } else { set_tile_steps };
    set(&mut plan, &costs.loss_weights, costs.lambda, &left, Freedom::default());
    set_sigmas(&mut plan, &scales, weights, &left);
    let dropped = options.sparse.then(|| all_but_two(&left, plan.cols, &costs.loss_weights.cols));
    let samples = costs.quantize(&mut plan, &left, Some(&known), dropped.as_deref())?;
    encode_parallel(TensorEncoder::refining(&plan, scales, before_values.bytes)?, |slice| {
        Ok(slice_samples(&plan, slice, weights, &samples))
    })
}

/// True for two of every four columns of a row: those that cost less to leave unrefined (2:4 sparsity).
fn all_but_two(left: &[f32], cols: usize, loss_weights: &[f32]) -> Vec<bool> {
    let row = |row: &[f32]| -> Vec<bool> {
        let cost: Vec<f32> = row.iter().zip(loss_weights).map(|(w, i)| w * w * i).collect();
        let four = |cost: &[f32]| -> Vec<bool> {
            let larger = |n: usize| (0..cost.len()).filter(|&m| (cost[m], n) > (cost[n], m)).count();
            (0..cost.len()).map(|n| larger(n) >= 2).collect()
        };
        cost.chunks(4).flat_map(four).collect()
    };
    left.par_chunks(cols).flat_map_iter(row).collect()
}

/// A tile of a refinement from the tile as allocated: patterns where it is to be `exact` and is not yet, else levels,
/// with the allocated step or one that loses as little as the allocated FP8.
fn wanted(plan: &TensorPlan, n: usize, exact: bool, weights: &[f32], left: &[f32]) -> TilePlan {
    let allocated = plan.tiles[n];
    let (rows, cols) = plan.tile_range(n);
    let at = || rows.clone().flat_map(|row| cols.clone().map(move |col| row * plan.cols + col));
    let tile = TilePlan { format: Format::Int8, step: allocated.step, ..TilePlan::default() };
    match allocated.format {
        _ if at().all(|i| left[i] == 0.0) => TilePlan { mode: TileMode::Skip, ..tile },
        Format::Lossless if exact => TilePlan { format: Format::Lossless, ..tile },
        // No floor: its step follows from lambda.
        Format::Lossless => TilePlan { step: COARSE, ..tile },
        format if format.minifloat().is_some() => {
            let magnitude = rms(at().map(|i| {
                let others = plan.row_col_scale(i / plan.cols, i % plan.cols);
                f64::from(weights[i]) / f64::from(scale(2 * others))
            }));
            let index = nearest_index(magnitude * (-FP8_STEP).exp2()) - plan.step_base;
            TilePlan { step: index.div_euclid(2).clamp(-300, 300) as i16, ..tile }
        }
        _ => tile,
    }
}

/// Sets spreads to those of the residual `left` over the scales of the layer before, and in lossless tiles to those of
/// `weights`.
fn set_sigmas(plan: &mut TensorPlan, before: &Scales, weights: &[f32], left: &[f32]) {
    let cols = plan.cols;
    let entry = |vector: &[i8], i: usize| vector.get(i).map_or(0, |&v| i32::from(v));
    let in_steps = |i: usize| {
        let tile = plan.tile_at(i / cols, i % cols);
        let (value, step) = match tile.format {
            Format::Lossless => (weights[i], 0),
            _ => (left[i], i32::from(tile.step)),
        };
        let index = step + entry(&before.rows, i / cols) + entry(&before.cols, i % cols);
        value / scale(plan.step_base + UNIT * index)
    };
    let in_steps: Vec<f32> = (0..left.len()).map(in_steps).collect();
    let (by_row, by_col) = fit_sigma(&in_steps, plan.rows, cols);
    let (row_sigma, col_sigma) = (sigma_vector(&by_row, cols), sigma_vector(&by_col, plan.rows));
    let expected = |i: usize| f64::from(entry(&row_sigma, i / cols) + entry(&col_sigma, i % cols)) / 4.0;
    let relative = |i: usize| f64::from(in_steps[i]) / expected(i).exp2();
    let all = rms((0..left.len()).map(relative)).max(1e-6);
    plan.sigma_base = quarter_octaves(all, 100.0) as i32;
    for n in 0..plan.tiles.len() {
        let (rows, range) = plan.tile_range(n);
        let own = rms(rows.flat_map(|row| range.clone().map(move |col| row * cols + col)).map(relative));
        let own = quarter_octaves(own / all, 40.0);
        let tile = &mut plan.tiles[n];
        tile.sigma = match tile.format {
            Format::Lossless => own as i16,
            _ if own.abs() < LEAST_SPREAD => tile.step,
            _ => tile.step + own as i16,
        };
    }
    let sum = |scale: &[i8], sigma: &[i8]| {
        let length = scale.len().max(sigma.len());
        (0..length).map(|i| (entry(scale, i) + entry(sigma, i)).clamp(-127, 127) as i8).collect()
    };
    plan.row_sigma = sum(&before.rows, &row_sigma);
    plan.col_sigma = sum(&before.cols, &col_sigma);
}
