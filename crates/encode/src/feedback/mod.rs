//! Quantisation with error feedback: columns are decided one after the other, each towards its weights
//! less what the errors of the columns before it make of them (see [`waterfill_allocate::Factor`]), and
//! inside a column either every level alone or a path through a trellis.

mod column;
mod loss;
mod steps;
mod survivors;
mod tensor;
mod viterbi;

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use waterfill_allocate::{Factor, Importance};
use waterfill_codec::{Result, TensorPlan, on_this_machine};

use column::ColumnCoder;
pub use loss::QuadraticLoss;
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
}

/// Samples of the tensor, row-major: levels and codes; those of lossless tiles are zero. Without
/// feedback over rows these do not depend on each other, and slices are quantised side by side.
///
/// # Errors
/// Scales out of range.
pub fn quantize_with_feedback(input: &FeedbackInput) -> Result<Vec<i16>> {
    let plan = input.plan;
    let slices = || (0..plan.slices()).map(|n| plan.slice_range(n));
    let Some((_, upper)) = input.rows.and_then(|rows| rows.block(0)) else {
        let all: Vec<_> = slices().collect();
        let done = all.into_par_iter().map(|rows| Ok(quantize_rows(input, rows, None)?.0));
        return Ok(done.collect::<Result<Vec<_>>>()?.concat());
    };
    // Of every slice, what columns saw of its errors, column by column.
    let mut seen: Vec<(Range<usize>, Vec<f32>)> = Vec::new();
    let mut samples = Vec::with_capacity(input.weights.len());
    for rows in slices() {
        let mut offsets = vec![0.0f32; rows.len() * plan.cols];
        for (before, errors) in &seen {
            let factors = MatRef::from_row_major_slice(upper, plan.rows, plan.rows);
            matmul(
                MatMut::from_column_major_slice_mut(&mut offsets, rows.len(), plan.cols),
                Accum::Add,
                factors.get(before.clone(), rows.clone()).transpose(),
                MatRef::from_column_major_slice(errors, before.len(), plan.cols),
                1.0f32,
                Par::Seq,
            );
        }
        let (of_slice, errors) = quantize_rows(input, rows.clone(), Some((upper, offsets)))?;
        samples.extend(of_slice);
        seen.push((rows, errors));
    }
    Ok(samples)
}

/// Samples of some rows, row-major, and what columns saw of their errors, column by column. With
/// feedback over rows: the factor, and what rows before add, column by column.
fn quantize_rows(
    input: &FeedbackInput,
    rows: Range<usize>,
    above: Option<(&[f32], Vec<f32>)>,
) -> Result<(Vec<i16>, Vec<f32>)> {
    let (cols, count) = (input.plan.cols, rows.len());
    let weights = &input.weights[rows.start * cols..rows.end * cols];
    let (upper_rows, mut seen) = above.map_or((None, Vec::new()), |(upper, offsets)| (Some(upper), offsets));
    let mut coder = ColumnCoder::new(input, rows, upper_rows)?;
    // Column by column: what was made of a weight less the weight.
    let mut errors = vec![0.0f32; count * cols];
    let mut samples = vec![0i16; count * cols];
    let mut targets = vec![0.0f32; count * BLOCK];
    for first in (0..cols).step_by(BLOCK) {
        let width = BLOCK.min(cols - first);
        for (j, target) in targets.chunks_exact_mut(count).take(width).enumerate() {
            target.iter_mut().zip(weights.chunks_exact(cols)).for_each(|(t, row)| *t = row[first + j]);
        }
        let mut at = first;
        // A block of columns may lie in several diagonal blocks of the factor.
        while at < first + width {
            let Some((range, upper)) = input.factor.block(at) else {
                for col in at..first + width {
                    let target = &targets[(col - first) * count..][..count];
                    let at = seen.get_mut(col * count..(col + 1) * count).unwrap_or_default();
                    coder.column(col, target, weights, (&mut errors[col * count..][..count], at), &mut samples);
                }
                break;
            };
            let (side, end) = (range.len(), range.end.min(first + width));
            let before = at - range.start;
            if before > 0 {
                let into = &mut targets[(at - first) * count..(end - first) * count];
                matmul(
                    MatMut::from_column_major_slice_mut(into, count, end - at),
                    Accum::Add,
                    MatRef::from_column_major_slice(&errors[range.start * count..at * count], count, before),
                    MatRef::from_row_major_slice(&upper[..before * side], before, side)
                        .get(.., before..before + end - at),
                    -1.0f32,
                    Par::Seq,
                );
            }
            for col in at..end {
                let (target, rest) = targets[(col - first) * count..].split_at_mut(count);
                let error = &mut errors[col * count..][..count];
                let at = seen.get_mut(col * count..(col + 1) * count).unwrap_or_default();
                coder.column(col, target, weights, (&mut *error, at), &mut samples);
                let factors = &upper[(col - range.start) * side..][col + 1 - range.start..end - range.start];
                on_this_machine(
                    #[inline(always)]
                    || {
                        for (later, &factor) in rest.chunks_exact_mut(count).zip(factors) {
                            later.iter_mut().zip(&*error).for_each(|(t, e)| *t -= e * factor);
                        }
                    },
                );
            }
            at = end;
        }
    }
    Ok((samples, seen))
}
