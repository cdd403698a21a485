//! Quantisation with error feedback: columns are decided one after the other, each towards its weights
//! less what the errors of the columns before it make of them (see [`waterfill_allocate::Factor`]), and
//! inside a column either every level alone or a path through a trellis.

mod column;
mod loss;
mod refinement;
mod slice;
mod steps;
mod survivors;
mod tensor;
mod viterbi;

use rayon::prelude::*;
use waterfill_allocate::{Factor, Importance};
use waterfill_codec::{Result, TensorPlan};

pub use loss::QuadraticLoss;
pub use refinement::refine_with_feedback;
use slice::Slice;
pub use tensor::{FeedbackOptions, SecondMoments, encode_with_feedback};
pub use viterbi::{PathSearch, Sample};

/// Columns whose feedback is one matrix product.
const BLOCK: usize = 64;

/// What is quantised.
pub struct FeedbackInput<'a> {
    /// Formats, steps, scales, spreads; a trellis or none.
    pub plan: &'a TensorPlan,
    /// Row-major weights, exact values of the plan's type.
    pub weights: &'a [f32],
    /// What errors cost.
    pub importance: &'a Importance,
    /// How errors spread over columns.
    pub factor: &'a Factor,
    /// How they spread over rows; one diagonal block.
    pub rows: Option<&'a Factor>,
    /// Nats for a bit where levels are chosen; zero rounds to the nearest.
    pub price: f32,
    /// Of a refinement, values that the layer before has, to which `weights` are what is missing.
    pub before: Option<&'a [f32]>,
    /// Of every weight, whether its level is zero whatever it is; without a trellis.
    pub dropped: Option<&'a [bool]>,
}

/// Samples of the tensor, row-major: levels and codes; those of lossless tiles are zero. Without feedback
/// over rows slices do not depend on each other; with it, a block of columns of a slice depends on the same
/// columns of the slices above and on its own columns before, so that slices follow each other a block behind.
/// Neither order changes results.
///
/// # Errors
/// Scales out of range.
pub fn quantize_with_feedback(input: &FeedbackInput) -> Result<Vec<i16>> {
    let plan = input.plan;
    let blocks = plan.cols.div_ceil(BLOCK);
    let upper = input.rows.and_then(|rows| Some(rows.block(0)?.1));
    let slice = |n: usize| Slice::new(input, plan.slice_range(n), upper);
    if upper.is_none() {
        let whole = |n: usize| {
            let mut slice = slice(n)?;
            (0..blocks).for_each(|n| drop(slice.block(n, &[])));
            Ok(slice.into_samples())
        };
        return Ok((0..plan.slices()).into_par_iter().map(whole).collect::<Result<Vec<_>>>()?.concat());
    }
    let mut slices = (0..plan.slices()).map(slice).collect::<Result<Vec<_>>>()?;
    // Of every block of columns, what they saw of the errors of the slices that are done with it.
    let mut seen: Vec<Vec<Vec<f32>>> = vec![Vec::new(); blocks];
    for step in 0..(slices.len() + blocks).saturating_sub(1) {
        let ready = (step + 1).saturating_sub(blocks)..slices.len().min(step + 1);
        let done: Vec<_> = slices[ready.clone()]
            .par_iter_mut()
            .zip(ready.clone())
            .map(|(slice, n)| slice.block(step - n, &seen[step - n]))
            .collect();
        for (n, errors) in ready.zip(done) {
            // After the last slice nobody looks.
            if n + 1 == plan.slices() { seen[step - n].clear() } else { seen[step - n].push(errors) }
        }
    }
    Ok(slices.into_iter().flat_map(Slice::into_samples).collect())
}
