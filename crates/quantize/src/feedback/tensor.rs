//! A whole tensor with error feedback: from a plan as allocated to bytes.

use waterfill_allocate::{Factor, Importance, PlannedWeight, Sharing};
use waterfill_calibrate::SecondMomentMatrix;
use waterfill_codec::{Format, Lambda, Parameters, Result, TensorEncoder, TensorPlan, Trellis};

use super::steps::{Freedom, relative_levels, set_steps};
use super::{FeedbackInput, quantize_with_feedback};
use crate::search::{encode_parallel, slice_samples};

/// Share of predicted loss that the range of planes may add before a trellis, whose steps are finer,
/// gives way to scalar rounding.
const HELD_BACK: f64 = 0.25;

/// By how much restraint of one makes errors count for more where rows and columns are restrained: measured on books-7m,
/// as what leaves steps as they are on average.
const RESTRAINED: f64 = 3.0;

/// How a tensor is quantised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedbackOptions {
    /// The trellis, if any.
    pub trellis: Option<Trellis>,
    /// Share of the price of bits that levels are chosen by.
    pub rounding: f32,
    /// Whether planes may be wider than the format that allocation chose.
    pub widen: bool,
    /// Whether tiles may be lossless.
    pub escape: bool,
    /// Share of the mean of a second moment's diagonal that is added to it.
    pub damping: f64,
    /// Share of each row's and column's own second moment that is added: feedback makes single errors larger, which
    /// refinement layers pay for.
    pub restraint: f64,
    /// Whether at most two of four levels in a row of a refinement are not zero; without a trellis.
    pub sparse: bool,
}

/// Second moments of a matrix's input and output gradient, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct SecondMoments<'a> {
    /// Of its input: errors of columns add up by it.
    pub input: Option<&'a SecondMomentMatrix>,
    /// Of its output gradient, whole: errors of rows add up by it.
    pub output: Option<&'a SecondMomentMatrix>,
}

/// Codes a weight as allocated.
///
/// # Errors
/// As [`TensorEncoder`].
pub fn encode_with_feedback(
    weight: &PlannedWeight,
    weights: &[f32],
    moments: SecondMoments,
    options: &FeedbackOptions,
) -> Result<Vec<u8>> {
    let costs = Costs::new(weight, weights, false, moments, options);
    let Costs { importance, level, .. } = &costs;
    let mut plan = weight.plan.clone();
    let (shared, narrow_format) =
        (weight.sharing != Sharing::Tile, plan.tiles.iter().any(|t| t.format == Format::Int4));
    plan.parameters.trellis = options.trellis.filter(|_| options.widen && !(shared && narrow_format));
    let freedom = Freedom { escape: options.escape && !shared, sharing: weight.sharing };
    let allocated = plan.clone();
    let held_back = set_steps(&mut plan, importance, *level, weights, freedom);
    if plan.parameters.trellis.is_some() && held_back > HELD_BACK {
        plan = TensorPlan { parameters: Parameters { trellis: None, ..plan.parameters }, ..allocated };
        set_steps(&mut plan, importance, *level, weights, freedom);
    }
    let samples = costs.quantize(&mut plan, weights, None, None)?;
    if weight.narrow {
        narrow(&mut plan, &samples);
    }
    encode_parallel(TensorEncoder::of_weights(&plan, weights)?, |slice| {
        Ok(slice_samples(&plan, slice, weights, &samples))
    })
}

/// What errors of a weight cost, and how they spread.
pub(super) struct Costs {
    pub importance: Importance,
    /// Nats for a bit, raised as restraint raises importance.
    pub level: Lambda,
    factor: Factor,
    rows: Option<Factor>,
    /// Nats for a bit where levels are chosen.
    price: f32,
}

impl Costs {
    /// Of `weights`, or of `changes` from others: those may lie far below the water level, where damping by it would raise
    /// importance, and with it bits, for no error that costs so much.
    pub fn new(
        weight: &PlannedWeight,
        weights: &[f32],
        changes: bool,
        moments: SecondMoments,
        options: &FeedbackOptions,
    ) -> Self {
        let importance = &weight.importance;
        // A source of finite variance is worth the same as damping by the level of the water.
        let (mut row_levels, mut col_levels) = relative_levels(&weight.plan, importance, weight.price, weights);
        restrain(&mut row_levels, &importance.rows, options.restraint);
        restrain(&mut col_levels, &importance.cols, options.restraint);
        let over_columns = || match moments.input {
            Some(moment) => Factor::with_levels(moment, importance.lookup_share(), options.damping, &col_levels),
            None => Factor::diagonal(importance.cols.clone()),
        };
        let whole = moments.output.filter(|m| m.blocks() == 1);
        let over_rows = || whole.map(|output| Factor::with_levels(output, 0.0, options.damping, &row_levels));
        let (factor, rows) = rayon::join(over_columns, over_rows);
        let shared = |by: &[f32], factor: Option<&Factor>, levels: &[f64]| {
            let Some(factor) = factor else { return by.to_vec() };
            let mean = by.iter().map(|&v| f64::from(v)).sum::<f64>() / by.len().max(1) as f64;
            let damped = |i: usize, v: f32| match changes {
                true => f64::from(v) / (f64::from(v) + levels[i] * mean).max(f64::MIN_POSITIVE),
                false => 1.0,
            };
            by.iter().enumerate().map(|(i, &v)| v * (factor.share(i) * damped(i, v)) as f32).collect()
        };
        let by_factor = moments.input.map(|_| &factor);
        let (cols, by_row) =
            (shared(&importance.cols, by_factor, &col_levels), shared(&importance.rows, rows.as_ref(), &row_levels));
        let importance = Importance { cols, rows: by_row, ..importance.clone() };
        let restrained = i32::from(moments.input.is_some()) + i32::from(rows.is_some());
        let raised = (1.0 + RESTRAINED * options.restraint).powf(f64::from(restrained) / 2.0);
        let level = Lambda(weight.price.0 * raised);
        Self { importance, level, factor, rows, price: level.0 as f32 * options.rounding }
    }

    /// Samples of `weights` under a plan, whose spread becomes what levels are found to have.
    /// `before` and `dropped` are as in [`FeedbackInput`].
    pub fn quantize(
        &self,
        plan: &mut TensorPlan,
        weights: &[f32],
        before: Option<&[f32]>,
        dropped: Option<&[bool]>,
    ) -> Result<Vec<i16>> {
        let quantize = |plan: &TensorPlan| {
            let Self { importance, factor, rows, price, .. } = self;
            let (rows, price) = (rows.as_ref(), *price);
            quantize_with_feedback(&FeedbackInput { plan, weights, importance, factor, rows, price, before, dropped })
        };
        // How wide levels are, the smallest trellis tells as well.
        let mut quick = plan.clone();
        quick.parameters.trellis = quick.parameters.trellis.and(Trellis::new(2));
        let first = quantize(&quick)?;
        let change = sigma_change(plan, &first);
        plan.sigma_base += change;
        if change == 0 && quick == *plan { Ok(first) } else { quantize(plan) }
    }
}

/// Adds a share of each importance to levels, which are shares of their mean.
fn restrain(levels: &mut [f64], importance: &[f32], share: f64) {
    let mean = importance.iter().map(|&v| f64::from(v)).sum::<f64>() / importance.len().max(1) as f64;
    levels.iter_mut().zip(importance).for_each(|(level, &v)| *level += share * f64::from(v) / mean);
}

/// Gives tiles whose levels fit into four bits the format that holds them so: a runtime's memory.
fn narrow(plan: &mut TensorPlan, samples: &[i16]) {
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
