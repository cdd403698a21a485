//! A whole tensor with error feedback: from a plan as allocated to bytes.

use waterfill_allocate::{Factor, Importance, PlannedWeight};
use waterfill_calibrate::SecondMomentMatrix;
use waterfill_codec::{Format, Parameters, Result, TensorEncoder, TensorPlan, Trellis};

use super::steps::{relative_levels, set_steps};
use super::{FeedbackInput, quantize_with_feedback};
use crate::search::{encode_parallel, slice_samples};

/// Share of predicted loss that the range of planes may add before a trellis, whose steps are finer,
/// gives way to scalar rounding.
const HELD_BACK: f64 = 0.25;

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
    let importance = &weight.importance;
    let mut plan = weight.plan.clone();
    // A source of finite variance is worth the same as damping by the level of the water.
    let (row_levels, col_levels) = relative_levels(&plan, importance, weight.price, weights);
    let over_columns = || match moments.input {
        Some(moment) => Factor::with_levels(moment, importance.lookup_share(), options.damping, &col_levels),
        None => Factor::diagonal(importance.cols.clone()),
    };
    let whole = moments.output.filter(|m| m.blocks() == 1);
    let over_rows = || whole.map(|output| Factor::with_levels(output, 0.0, options.damping, &row_levels));
    let (factor, rows) = rayon::join(over_columns, over_rows);
    let shared = |by: &[f32], factor: Option<&Factor>| {
        by.iter().enumerate().map(|(i, &v)| v * factor.map_or(1.0, |f| f.share(i) as f32)).collect()
    };
    let (cols, by_row) = (shared(&importance.cols, Some(&factor)), shared(&importance.rows, rows.as_ref()));
    let importance = Importance { cols, rows: by_row, ..importance.clone() };
    plan.parameters.trellis = options.trellis.filter(|_| options.widen);
    let allocated = plan.clone();
    let held_back = set_steps(&mut plan, &importance, weight.price, weights, options.escape);
    if plan.parameters.trellis.is_some() && held_back > HELD_BACK {
        plan = TensorPlan { parameters: Parameters { trellis: None, ..plan.parameters }, ..allocated };
        set_steps(&mut plan, &importance, weight.price, weights, options.escape);
    }
    let price = weight.price.0 as f32 * options.rounding;
    let quantize = |plan: &TensorPlan| {
        quantize_with_feedback(&FeedbackInput {
            plan,
            weights,
            importance: &importance,
            factor: &factor,
            rows: rows.as_ref(),
            price,
        })
    };
    // How wide levels are, the smallest trellis tells as well.
    let mut quick = plan.clone();
    quick.parameters.trellis = quick.parameters.trellis.and(Trellis::new(2));
    let first = quantize(&quick)?;
    let change = spread_change(&plan, &first);
    plan.spread_base += change;
    let samples = if change == 0 && quick == plan { first } else { quantize(&plan)? };
    if weight.narrow {
        narrow(&mut plan, &samples);
    }
    encode_parallel(TensorEncoder::of_weights(&plan, weights)?, |slice| {
        Ok(slice_samples(&plan, slice, weights, &samples))
    })
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
fn spread_change(plan: &TensorPlan, samples: &[i16]) -> i32 {
    let (mut sum, mut count) = (0.0f64, 0.0f64);
    for (n, tile) in plan.tiles.iter().enumerate().filter(|(_, t)| t.format.level_range().is_some()) {
        let (rows, cols) = plan.tile_range(n);
        for row in rows {
            for col in cols.clone() {
                let spread = plan.spread(tile, row, col) - plan.row_col_scale(row, col) - i32::from(tile.step);
                sum += f64::from(samples[row * plan.cols + col]).powi(2) * (-f64::from(spread) / 2.0).exp2();
                count += 1.0;
            }
        }
    }
    if sum > 0.0 { (2.0 * (sum / count).log2()).round().clamp(-40.0, 40.0) as i32 } else { 0 }
}
