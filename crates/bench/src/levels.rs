//! Integer tiles: decoding with and without transforms, and the full search.

use std::collections::BTreeSet;

use waterfill_allocate::PlannedWeight;
use waterfill_codec::encoder::sigma_fit::{fit_sigma, rms, sigma_vector};
use waterfill_codec::{CodecError, CodedTensor, Dtype, Format, Kernel, Lambda, TensorPlan, TilePlan, Transform, scale};
use waterfill_quadratic::LossWeights;
use waterfill_quantize::rdo::{Preset, Tool, encode_rdo};

use crate::source;
use crate::timing::{AT_ONCE, Timing, decode_with, time_together};

/// Side of the matrix whose decoding is timed.
const SIDE: usize = 2048;
/// Side of the matrix that is searched.
const SEARCHED: usize = 512;

pub struct Levels {
    pub level_rate: f64,
    pub transform_rate: f64,
    pub search_rate: f64,
    pub two_thread_speedup: f64,
    pub timings: Vec<(&'static str, Timing)>,
}

/// A matrix of about four bits a weight: steps a quarter of the spread, coarser where a row or a column
/// matters less, so that rows and columns have scales and spreads of their own.
fn planned(side: usize, weights: &[f32]) -> PlannedWeight {
    let (row_rms, col_rms) = fit_sigma(weights, side, side);
    let (row_sigma, col_sigma) = (sigma_vector(&row_rms, side), sigma_vector(&col_rms, side));
    let all = rms(weights.iter().map(|&w| f64::from(w)));
    let step_base = scale::nearest_index(all) - 16;
    let mut source = source::Gaussians::new(3);
    let mut scales = || source.by_ref().take(side).map(|g| g.round().clamp(-3.0, 3.0) as i8).collect::<Vec<i8>>();
    let (row_scale, col_scale) = (scales(), scales());
    let weight = |s: &i8| (-f32::from(*s) / 2.0).exp2();
    let loss_weights = LossWeights {
        tiles: vec![1.0; (side / 16) * (side / 16)],
        rows: row_scale.iter().map(weight).collect(),
        cols: col_scale.iter().map(weight).collect(),
        lookup: vec![],
    };
    let tile = TilePlan { format: Format::Int8, ..TilePlan::default() };
    let mut plan = TensorPlan {
        step_base,
        sigma_base: 8,
        row_scale,
        col_scale,
        row_sigma,
        col_sigma,
        ..TensorPlan::uniform(Dtype::Bf16, side, side, tile)
    };
    for n in 0..plan.tiles.len() {
        let (rows, cols) = plan.tile_range(n);
        let fits = rows.clone().all(|row| {
            cols.clone().all(|col| {
                let level = weights[row * side + col] / scale::scale(plan.scale_index(&plan.tiles[n], row, col));
                (-8.5..7.5).contains(&level)
            })
        });
        plan.tiles[n].format = if fits { Format::Int4 } else { Format::Int8 };
    }
    // Error and bits trade as they do at this step: d error / d bits is 2 ln 2 / 12 of a squared step.
    let step = f64::from(scale::scale(step_base));
    PlannedWeight {
        plan,
        loss_weights,
        lambda: Lambda(0.115 * step * step),
        allow_int4: true,
        sharing: Default::default(),
        widths: vec![],
    }
}

pub fn measure(repeats: usize, one: &rayon::ThreadPool, two: &rayon::ThreadPool) -> Result<Levels, CodecError> {
    let weights = source::scaled_weights(SIDE, SIDE);
    let planned_weight = planned(SIDE, &weights);
    let plain = encode_rdo(&planned_weight, &weights, &Preset::Balanced.tools(), true)?;
    let mut transformed = planned_weight.plan.clone();
    for (n, tile) in transformed.tiles.iter_mut().enumerate() {
        let kernels = [Kernel::Dct, Kernel::Dst];
        let transform = Transform { down: kernels[n % 2], along: kernels[n / 2 % 2], side: 16 };
        *tile = TilePlan { format: Format::Int8, step: tile.step - 8, coarse: 8, transform, ..*tile };
    }
    let transformed = waterfill_codec::encode_tensor(&transformed, &weights)?;
    let small = source::scaled_weights(SEARCHED, SEARCHED);
    let small_plan = planned(SEARCHED, &small);
    // All predictors, all transforms and rate-distortion optimised rounding.
    let mut tools: BTreeSet<Tool> = Preset::Best.tools();
    tools.extend([Tool::Dct, Tool::Dst, Tool::Hadamard, Tool::Split, Tool::Rdoq]);

    let (plain, transformed) = (CodedTensor::parse(&plain)?, CodedTensor::parse(&transformed)?);
    let mut out = vec![0; SIDE * SIDE * 2];
    let (mut out_two, mut out_transformed) = (out.clone(), out.clone());
    let timings = time_together(
        repeats,
        &mut [&mut || decode_with(one, &plain, &mut out), &mut || decode_with(two, &plain, &mut out_two), &mut || {
            decode_with(one, &transformed, &mut out_transformed)
        }],
    );
    let searches =
        time_together(repeats.div_ceil(2), &mut [&mut || drop(encode_rdo(&small_plan, &small, &tools, true))]);
    let rate = |side: usize, timing: &Timing| (side * side) as f64 / timing.median;
    Ok(Levels {
        level_rate: rate(SIDE, &timings[0]) * AT_ONCE as f64,
        transform_rate: rate(SIDE, &timings[2]) * AT_ONCE as f64,
        search_rate: rate(SEARCHED, &searches[0]),
        two_thread_speedup: timings[0].median / timings[1].median,
        timings: ["level_decode", "level_decode_two_threads", "transform_decode", "search_encode"]
            .into_iter()
            .zip(timings.into_iter().chain(searches))
            .collect(),
    })
}
