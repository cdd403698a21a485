//! Slices of a tensor, coded side by side.

use std::ops::Range;

use rayon::prelude::*;
use waterfill_codec::syntax::slice::SlicePlan;
use waterfill_codec::{EncodedSlice, Format, Result, TensorEncoder, TensorPlan, TileMode};

/// Slices that are coded before they are put together.
const SLICES: usize = 64;

/// Codes the slices of a tensor side by side.
pub(crate) fn encode_parallel(
    mut encoder: TensorEncoder,
    samples_of: impl Fn(&SlicePlan) -> Result<Vec<i32>> + Sync,
) -> Result<Vec<u8>> {
    for first in (0..encoder.slices()).step_by(SLICES) {
        let group = (first..encoder.slices().min(first + SLICES)).into_par_iter();
        let slices = group.map(|n| encoder.slice(n, &samples_of)).collect::<Result<Vec<EncodedSlice>>>()?;
        slices.into_iter().for_each(|slice| encoder.add(slice));
    }
    Ok(encoder.finish())
}

/// Places of the weights of some rows.
pub(crate) fn span(plan: &TensorPlan, rows: &Range<usize>) -> Range<usize> {
    rows.start * plan.cols..rows.end * plan.cols
}

/// Samples of a slice: what the search chose, patterns where the tile is lossless.
pub(crate) fn slice_samples(plan: &TensorPlan, slice: &SlicePlan, weights: &[f32], samples: &[i16]) -> Vec<i32> {
    let mut out: Vec<i32> = samples[span(plan, &slice.rows)].iter().map(|&s| s.into()).collect();
    for (n, _) in slice.tiles.iter().enumerate().filter(|(_, t)| matches!(t.mode, TileMode::BitShift(_))) {
        let (rows, cols) = slice.tile_range(n);
        for row in rows {
            // States of sixteen bits.
            out[(row - slice.rows.start) * plan.cols..][cols.clone()].iter_mut().for_each(|s| *s &= 0xffff);
        }
    }
    for (n, _) in slice.tiles.iter().enumerate().filter(|(_, t)| t.format == Format::Lossless) {
        let (rows, cols) = slice.tile_range(n);
        for row in rows {
            for col in cols.clone() {
                let pattern = plan.dtype.pattern_of(weights[row * plan.cols + col]);
                out[(row - slice.rows.start) * plan.cols + col] = pattern as i32;
            }
        }
    }
    out
}
