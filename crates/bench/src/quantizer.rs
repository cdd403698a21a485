//! Quantization with error feedback: how far above the Shannon bound it is on a Gaussian source, and how
//! fast.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use ndarray::Array2;
use rayon::prelude::*;
use serde::Serialize;
use waterfill_allocate::PlannedWeight;
use waterfill_codec::{CodecError, CodedTensor, Dtype, Format, Lambda, TensorPlan, TilePlan, Trellis};
use waterfill_quadratic::{Curvature, Damping, Hessian, LdlFactor, LossWeights};
use waterfill_quantize::ldlq::{LdlqInput, LdlqOptions, encode_ldlq, quantize_ldlq};

use crate::source;

/// Log2 of the states that are compared; `None` rounds every level alone.
const STATES: [Option<u32>; 6] = [None, Some(2), Some(3), Some(4), Some(5), Some(8)];
/// Rates that are aimed at, bits per weight.
const RATES: [f64; 3] = [2.0, 3.0, 4.0];
/// Mean squared error over the bound's at which lambda is set.
const AIMED: f64 = 1.1;
/// Lambda that levels are chosen by, over the slope: on independent Gaussians all of it.
const ROUNDING: f32 = 1.0;

/// One quantizer at one rate.
#[derive(Debug, Clone, Serialize)]
pub struct GaussianPoint {
    /// States of the trellis; 0 for scalar rounding.
    pub states: usize,
    /// Whole coded tensor over its weights.
    pub bits_per_weight: f64,
    /// Mean squared error of the decoded tensor over 2^(-2 bits), dB.
    pub gap_db: f64,
}

/// Speed of one kind of quantization, medians.
#[derive(Debug, Clone, Serialize)]
pub struct QuantizerSpeed {
    /// States of the trellis; 0 for scalar rounding.
    pub states: usize,
    /// Whether errors are fed back over rows too; of a matrix with an eighth of the rows.
    pub rows: bool,
    /// Weights a second on one core, a whole tensor coded, its factors included.
    pub weights_per_second: f64,
    /// Slowest and fastest over the median.
    pub spread: [f64; 2],
    /// Two tensors side by side on two cores over one after the other on one.
    pub two_thread_speedup: f64,
}

/// Figures of quantization with error feedback.
#[derive(Debug, Clone, Serialize)]
pub struct QuantizerBench {
    /// Gaps on independent Gaussians.
    pub gaussian: Vec<GaussianPoint>,
    /// Side of the matrix.
    pub side: usize,
    /// Products of feedback, operations a second on two cores, everything but the factor in their time.
    pub feedback_gflops: f64,
    /// Slowest and fastest over the median.
    pub feedback_spread: [f64; 2],
    /// Matrix products alone in the same run.
    pub product_gflops: f64,
    /// Whole tensors.
    pub speed: Vec<QuantizerSpeed>,
}

fn options(states: Option<u32>, damping: f64) -> LdlqOptions {
    LdlqOptions {
        bit_shift: None,
        trellis: states.and_then(Trellis::new),
        rounding: ROUNDING,
        allow_int8: true,
        allow_lossless: false,
        damping,
        error_penalty: 0.0,
        sparse: false,
        draft: false,
    }
}

/// Standard Gaussians with the same loss weight each.
fn planned((rows, cols): (usize, usize), bits: f64) -> PlannedWeight {
    let tile = TilePlan { format: Format::Int8, ..TilePlan::default() };
    let plan = TensorPlan { sigma_base: 0, ..TensorPlan::uniform(Dtype::F32, rows, cols, tile) };
    let loss_weights = LossWeights {
        tiles: vec![1.0; plan.tiles.len()],
        rows: vec![1.0; rows],
        cols: vec![1.0; cols],
        lookup: vec![],
    };
    let error = AIMED * (-2.0 * bits).exp2();
    PlannedWeight {
        plan,
        loss_weights,
        lambda: Lambda(error * 2.0 * std::f64::consts::LN_2),
        allow_int4: false,
        sharing: Default::default(),
        widths: vec![],
    }
}

/// Measures everything on matrices of `side` by `side`.
///
/// # Errors
/// None unless the codec fails on what it wrote itself.
pub fn bench_quantizer(side: usize, repeats: usize) -> Result<QuantizerBench, CodecError> {
    let weights: Vec<f32> = source::Gaussians::new(4).take(side * side).map(|g| g as f32).collect();
    let mut gaussian = Vec::new();
    for states in STATES {
        for bits in RATES {
            let coded =
                encode_ldlq(&planned((side, side), bits), &weights, Curvature::default(), &options(states, 0.0))?;
            let (decoded, _) = CodedTensor::parse(&coded)?.decode()?;
            let value = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let squares = decoded.chunks_exact(4).zip(&weights).map(|(b, &w)| (value(b) - f64::from(w)).powi(2));
            let error = squares.sum::<f64>() / weights.len() as f64;
            let bits_per_weight = coded.len() as f64 * 8.0 / weights.len() as f64;
            let gap_db = 10.0 * (error.log10() + 2.0 * bits_per_weight * 2f64.log10());
            gaussian.push(GaussianPoint { states: states.map_or(0, |s| 1 << s), bits_per_weight, gap_db });
        }
    }
    let hessian = correlated(side);
    let (feedback_gflops, feedback_spread, product_gflops) = feedback_rate(side, repeats, &weights, &hessian)?;
    // Rows that see each other's errors take a while: an eighth of them.
    let (whole, part) = (planned((side, side), 3.0), planned(((side / 8).max(1), side), 3.0));
    let covariance = correlated(part.plan.rows);
    let mut speed = Vec::new();
    for (rows, states) in [false, true].into_iter().flat_map(|rows| [None, Some(3), Some(8)].map(|s| (rows, s))) {
        let weight = if rows { &part } else { &whole };
        let weights = &weights[..weight.plan.rows * side];
        let curvature = Curvature { hessian: Some(&hessian), gradient_covariance: rows.then_some(&covariance) };
        let options = options(states, 0.01);
        let coded = || encode_ldlq(weight, weights, curvature, &options);
        // Tensors are coded side by side as far as there are cores.
        let pools = [1, 2].map(crate::timing::pool);
        let mut failed = [None, None];
        let [first, second] = &mut failed;
        let timings = crate::timing::time_together(
            repeats,
            &mut [&mut || *first = pools[0].install(|| coded().err()), &mut || {
                *second = pools[1].install(|| [(); 2].into_par_iter().find_map_any(|()| coded().err()));
            }],
        );
        failed.into_iter().flatten().next().map_or(Ok(()), Err)?;
        let [alone, pair] = [&timings[0], &timings[1]];
        speed.push(QuantizerSpeed {
            states: states.map_or(0, |s| 1 << s),
            rows,
            weights_per_second: weights.len() as f64 / alone.median,
            spread: [alone.slowest / alone.median, alone.fastest / alone.median],
            two_thread_speedup: 2.0 * alone.median / pair.median,
        });
    }
    Ok(QuantizerBench { gaussian, side, feedback_gflops, feedback_spread, product_gflops, speed })
}

/// A Hessian with correlated neighbours.
fn correlated(side: usize) -> Hessian {
    let h = Array2::from_shape_fn((side, side), |(i, j)| 0.95f32.powi(i.abs_diff(j).min(200) as i32));
    Hessian::from_dense(&h)
}

/// Operations a second of quantization with feedback and scalar rounding, its spread, and those of a
/// product of the same shape; billions.
fn feedback_rate(
    side: usize,
    repeats: usize,
    weights: &[f32],
    hessian: &Hessian,
) -> Result<(f64, [f64; 2], f64), CodecError> {
    let factor = LdlFactor::new(hessian, &Damping::uniform(0.01));
    let weight = planned((side, side), 3.0);
    let mut plan = weight.plan.clone();
    plan.step_base = -12;
    let input = LdlqInput {
        plan: &plan,
        weights,
        loss_weights: &weight.loss_weights,
        factor: &factor,
        rows: None,
        lambda: 0.0,
        before: None,
        widths: None,
        fitted: false,
        dropped: None,
    };
    let (a, b) = (Mat::<f32>::from_fn(side / 2, side, |i, j| (i + j) as f32), Mat::<f32>::full(side, side, 0.5));
    let mut products = [(); 2].map(|()| Mat::<f32>::zeros(side / 2, side));
    let mut failed = None;
    let pool = crate::timing::pool(2);
    let timings = crate::timing::time_together(
        repeats,
        &mut [&mut || pool.install(|| failed = quantize_ldlq(&input).err()), &mut || {
            pool.install(|| {
                products.par_iter_mut().for_each(|c| {
                    matmul(c.as_mut(), Accum::Replace, a.as_ref(), b.as_ref(), 1.0, Par::Seq);
                });
            });
        }],
    );
    failed.map_or(Ok(()), Err)?;
    let cube = (side as f64).powi(3) / 1e9;
    let t = &timings[0];
    // Half of the matrix is zeros: a multiplication and an addition for each of the others.
    Ok((cube / t.median, [t.slowest / t.median, t.fastest / t.median], 2.0 * cube / timings[1].median))
}
