//! A whole tensor with error feedback: from a plan as allocated to bytes.

use waterfill_allocate::{PlannedWeight, Sharing};
use waterfill_codec::{
    BitShiftTrellis, Format, Lambda, Parameters, Result, TensorEncoder, TensorPlan, TileMode, Trellis,
};
use waterfill_quadratic::{Curvature, Damping, LdlFactor, LossWeights, add_error_penalty};

use super::input::LdlqInput;
use super::options::LdlqOptions;
use super::quantize::quantize_with_steps;
use super::steps::{Freedom, relative_water_levels, set_steps};
use crate::slices::{encode_parallel, slice_samples};

/// Share of predicted loss that the range of planes may add before a trellis, whose steps are finer,
/// gives way to scalar rounding.
const HELD_BACK: f64 = 0.25;

/// By how much an error penalty of one makes errors count for more where it applies to rows and columns: measured on
/// books-7m, as what leaves steps as they are on average.
const PENALIZED: f64 = 3.0;

/// Quantizes and codes a matrix as allocated: `weights` row-major `[rows, cols]`, exact values of the plan's type. Without
/// curvature every level is decided alone.
///
/// # Errors
/// As [`TensorEncoder`].
pub fn encode_ldlq(
    weight: &PlannedWeight,
    weights: &[f32],
    curvature: Curvature,
    options: &LdlqOptions,
) -> Result<Vec<u8>> {
    let costs = Costs::new(weight, weights, false, curvature, options);
    let Costs { loss_weights, lambda, .. } = &costs;
    let mut plan = weight.plan.clone();
    if !weight.widths.is_empty() {
        let shared = weight.sharing != Sharing::Tile;
        plan_codes(&mut plan, &weight.widths, options.bit_shift.filter(|_| !shared));
        let samples = costs.quantize_planes(&mut plan, weights, &weight.widths, !shared)?;
        return encode_parallel(TensorEncoder::of_weights(&plan, weights)?, |slice| {
            Ok(slice_samples(&plan, slice, weights, &samples))
        });
    }
    let (shared, narrow_format) =
        (weight.sharing != Sharing::Tile, plan.tiles.iter().any(|t| t.format == Format::Int4));
    plan.parameters.trellis = options.trellis.filter(|_| options.allow_int8 && !(shared && narrow_format));
    let freedom = Freedom { allow_lossless: options.allow_lossless && !shared, sharing: weight.sharing };
    let allocated = plan.clone();
    let held_back = set_steps(&mut plan, loss_weights, *lambda, weights, freedom);
    if plan.parameters.trellis.is_some() && held_back > HELD_BACK {
        plan = TensorPlan { parameters: Parameters { trellis: None, ..plan.parameters }, ..allocated };
        set_steps(&mut plan, loss_weights, *lambda, weights, freedom);
    }
    let samples = costs.quantize(&mut plan, weights, None, None)?;
    if weight.allow_int4 {
        narrow_planes(&mut plan, &samples);
    }
    encode_parallel(TensorEncoder::of_weights(&plan, weights)?, |slice| {
        Ok(slice_samples(&plan, slice, weights, &samples))
    })
}

/// Costs of errors of a matrix, and how errors spread.
pub(super) struct Costs {
    pub loss_weights: LossWeights,
    /// Nats for a bit, raised as the error penalty raises loss weights.
    pub lambda: Lambda,
    factor: LdlFactor,
    rows: Option<LdlFactor>,
    /// Nats for a bit where levels are chosen.
    level_lambda: f32,
    draft: bool,
}

impl Costs {
    /// Of `weights`, or of `changes` from others: those may lie far below the water level, where damping by it would raise
    /// the loss weights, and with them bits, for no error that costs so much.
    pub fn new(
        weight: &PlannedWeight,
        weights: &[f32],
        changes: bool,
        curvature: Curvature,
        options: &LdlqOptions,
    ) -> Self {
        let loss_weights = &weight.loss_weights;
        // A source of finite variance is worth the same as damping by the level of the water.
        let (mut row_levels, mut col_levels) =
            relative_water_levels(&weight.plan, loss_weights, weight.lambda, weights);
        add_error_penalty(&mut row_levels, &loss_weights.rows, options.error_penalty);
        add_error_penalty(&mut col_levels, &loss_weights.cols, options.error_penalty);
        let (uniform, lookup) = (options.damping, loss_weights.lookup_share());
        let over_columns = || match curvature.hessian {
            Some(hessian) => LdlFactor::new(hessian, &Damping { uniform, lookup, levels: &col_levels }),
            None => LdlFactor::diagonal(loss_weights.cols.clone()),
        };
        let whole = curvature.gradient_covariance.filter(|g| g.blocks() == 1);
        let of_rows = Damping { uniform, lookup: 0.0, levels: &row_levels };
        let over_rows = || whole.map(|covariance| LdlFactor::new(covariance, &of_rows));
        let (factor, rows) = rayon::join(over_columns, over_rows);
        let shared = |by: &[f32], factor: Option<&LdlFactor>, levels: &[f64]| {
            let Some(factor) = factor else { return by.to_vec() };
            let mean = by.iter().map(|&v| f64::from(v)).sum::<f64>() / by.len().max(1) as f64;
            let damped = |i: usize, v: f32| match changes {
                true => f64::from(v) / (f64::from(v) + levels[i] * mean).max(f64::MIN_POSITIVE),
                false => 1.0,
            };
            by.iter().enumerate().map(|(i, &v)| v * (factor.share(i) * damped(i, v)) as f32).collect()
        };
        let by_factor = curvature.hessian.map(|_| &factor);
        let (cols, by_row) = (
            shared(&loss_weights.cols, by_factor, &col_levels),
            shared(&loss_weights.rows, rows.as_ref(), &row_levels),
        );
        let loss_weights = LossWeights { cols, rows: by_row, ..loss_weights.clone() };
        let penalized = i32::from(curvature.hessian.is_some()) + i32::from(rows.is_some());
        let raised = (1.0 + PENALIZED * options.error_penalty).powf(f64::from(penalized) / 2.0);
        let lambda = Lambda(weight.lambda.0 * raised);
        Self {
            loss_weights,
            lambda,
            factor,
            rows,
            level_lambda: lambda.0 as f32 * options.rounding,
            draft: options.draft,
        }
    }

    /// Samples of `weights` under a plan, whose spread becomes what levels are found to have.
    /// `before` and `dropped` are as in [`LdlqInput`].
    pub fn quantize(
        &self,
        plan: &mut TensorPlan,
        weights: &[f32],
        before: Option<&[f32]>,
        dropped: Option<&[bool]>,
    ) -> Result<Vec<i16>> {
        let quantize = |plan: &TensorPlan| {
            let Self { loss_weights, factor, rows, level_lambda, .. } = self;
            let (rows, lambda) = (rows.as_ref(), *level_lambda);
            let (widths, fitted) = (None, false);
            let input =
                LdlqInput { plan, weights, loss_weights, factor, rows, lambda, before, widths, fitted, dropped };
            Ok(quantize_with_steps(&input)?.0)
        };
        // How wide levels are, the smallest trellis tells as well.
        let mut quick = plan.clone();
        quick.parameters.trellis = quick.parameters.trellis.and(Trellis::new(2));
        let first = quantize(&quick)?;
        let change = sigma_change(plan, &first);
        plan.sigma_base += change;
        if self.draft || (change == 0 && quick == *plan) { Ok(first) } else { quantize(plan) }
    }
}

impl Costs {
    /// Samples of `weights` whose levels take `widths` bits in each tile. Steps of tiles are `fitted` to what feedback makes of
    /// the weights, unless tiles share them; spreads become what levels are found to have.
    fn quantize_planes(&self, plan: &mut TensorPlan, weights: &[f32], widths: &[u8], fitted: bool) -> Result<Vec<i16>> {
        let Self { loss_weights, factor, rows, .. } = self;
        let (samples, steps) = quantize_with_steps(&LdlqInput {
            plan,
            weights,
            loss_weights,
            factor,
            rows: rows.as_ref(),
            // Bits in memory are the same for every level.
            lambda: 0.0,
            before: None,
            widths: Some(widths),
            fitted,
            dropped: None,
        })?;
        plan.tiles.iter_mut().zip(steps).for_each(|(tile, step)| tile.step = step);
        if plan.parameters.bit_shift.is_none() {
            plan.sigma_base += sigma_change(plan, &samples);
        }
        Ok(samples)
    }
}

/// Makes integer tiles of `widths` bits codes of a bit-shift trellis. Spreads are those of tiles that have other samples.
fn plan_codes(plan: &mut TensorPlan, widths: &[u8], trellis: Option<BitShiftTrellis>) {
    if trellis.is_none() {
        return;
    }
    plan.parameters.bit_shift = trellis;
    for (tile, &bits) in plan.tiles.iter_mut().zip(widths).filter(|(t, _)| t.format.level_range().is_some()) {
        (tile.mode, tile.sigma) = (TileMode::BitShift(bits), 0);
    }
    if plan.tiles.iter().all(|t| t.format.level_range().is_some()) {
        (plan.row_sigma, plan.col_sigma) = (vec![], vec![]);
    }
}

/// Gives tiles whose levels fit into four bits the format that holds them so: a runtime's memory.
fn narrow_planes(plan: &mut TensorPlan, samples: &[i16]) {
    for n in 0..plan.tiles.len() {
        let (rows, cols) = plan.tile_range(n);
        let mut levels = rows.flat_map(|row| &samples[row * plan.cols..][cols.clone()]);
        if plan.tiles[n].format == Format::Int8 && levels.all(|l| (-8..=7).contains(l)) {
            plan.tiles[n].format = Format::Int4;
        }
    }
}

/// Quarter octaves by which levels are wider than their spreads say.
fn sigma_change(plan: &TensorPlan, samples: &[i16]) -> i32 {
    let (mut sum, mut count) = (0.0f64, 0.0f64);
    for (n, tile) in plan.tiles.iter().enumerate().filter(|(_, t)| t.format.level_range().is_some()) {
        let (rows, cols) = plan.tile_range(n);
        for row in rows {
            for col in cols.clone() {
                let sigma = plan.sigma(tile, row, col) - plan.row_col_scale(row, col) - i32::from(tile.step);
                sum += f64::from(samples[row * plan.cols + col]).powi(2) * (-f64::from(sigma) / 2.0).exp2();
                count += 1.0;
            }
        }
    }
    if sum > 0.0 { (2.0 * (sum / count).log2()).round().clamp(-40.0, 40.0) as i32 } else { 0 }
}
