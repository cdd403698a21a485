//! The search: which kind, predictor and transform every tile gets, by J = D + lambda * R with the
//! actual code lengths.

mod parameters;
mod rounding;
mod tile;
mod tools;
mod transforms;
mod usage;

use std::collections::BTreeSet;
use std::ops::Range;

use rayon::prelude::*;
use waterfill_allocate::{Importance, PlannedWeight};
use waterfill_codec::encoder::quantize::quantize_slice;
use waterfill_codec::syntax::slice::SlicePlan;
use waterfill_codec::{EncodedSlice, Format, Kernel, Lambda, Result, TensorEncoder, TensorPlan, TilePlan};

pub use rounding::Rounding;
pub use tile::TileSearch;
pub use tools::{Preset, Tool};
pub use usage::{Usage, tools_of};

/// What a search works with.
pub struct SearchInput<'a> {
    /// Row-major weights, exact values of the plan's type.
    pub weights: &'a [f32],
    /// What errors cost.
    pub importance: &'a Importance,
    /// What a bit costs.
    pub price: Lambda,
    /// Tools that may be used.
    pub tools: &'a BTreeSet<Tool>,
    /// Whether planes may be wider than the format that allocation chose.
    pub widen: bool,
}

/// Codes a weight as allocated, with the tools that pay.
///
/// # Errors
/// As [`TensorEncoder`].
pub fn encode_searched(
    weight: &PlannedWeight,
    weights: &[f32],
    tools: &BTreeSet<Tool>,
    widen: bool,
) -> Result<Vec<u8>> {
    let input = SearchInput { weights, importance: &weight.importance, price: weight.price, tools, widen };
    let mut plan = weight.plan.clone();
    plan.parameters.merge = tools.contains(&Tool::Merge);
    let importance = parameters::resize_tiles(&mut plan, &input);
    let input = SearchInput { importance: importance.as_ref().unwrap_or(input.importance), ..input };
    if tools.is_subset(&BTreeSet::from([Tool::Merge, Tool::Tile8, Tool::Tile32, Tool::Tile64])) {
        let rounded = |slice: &SlicePlan| quantize_slice(slice, &weights[span(&plan, &slice.rows)]);
        return encode_parallel(TensorEncoder::of_weights(&plan, weights)?, rounded);
    }
    parameters::fit(&mut plan, &input)?;
    let allocated = plan.tiles.clone();
    let mut samples = search_tensor(&mut plan, &input)?;
    if tools.contains(&Tool::Centroids) {
        parameters::fit_centroids(&mut plan, &input, &samples);
        plan.tiles = allocated;
        samples = search_tensor(&mut plan, &input)?;
    }
    if tools.contains(&Tool::Filter) {
        parameters::fit_filter(&mut plan, &input, &samples);
    }
    let uses_learned = |t: &TilePlan| [t.transform.down, t.transform.along].contains(&Kernel::Learned);
    if !plan.tiles.iter().any(uses_learned) {
        plan.parameters.learned = None;
    }
    let code = |plan: &TensorPlan| {
        encode_parallel(TensorEncoder::new(plan)?, |slice| Ok(slice_samples(plan, slice, weights, &samples)))
    };
    let coded = code(&plan)?;
    if tools.contains(&Tool::Neighbours) {
        // The same levels under other classes: the shorter is the better.
        parameters::fit_neighbours(&mut plan, &samples);
        let refined = code(&plan)?;
        return Ok(if refined.len() < coded.len() { refined } else { coded });
    }
    Ok(coded)
}

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

fn span(plan: &TensorPlan, rows: &Range<usize>) -> Range<usize> {
    rows.start * plan.cols..rows.end * plan.cols
}

/// Searches all slices; tiles of the plan are replaced by what was found. Returns the samples,
/// row-major, of tiles that are not lossless.
fn search_tensor(plan: &mut TensorPlan, input: &SearchInput) -> Result<Vec<i16>> {
    let search = |n: usize| {
        let mut search = TileSearch::new(plan, plan.slice_range(n), input);
        search.run()?;
        Ok(search.finish())
    };
    let slices = (0..plan.slices()).into_par_iter().map(search).collect::<Result<Vec<_>>>()?;
    let mut samples = Vec::with_capacity(input.weights.len());
    let mut found = Vec::with_capacity(plan.tiles.len());
    for (tiles, slice_samples) in slices {
        found.extend(tiles);
        samples.extend(slice_samples);
    }
    plan.tiles = found;
    Ok(samples)
}

/// Samples of a slice: what the search chose, patterns where the tile is lossless.
pub(crate) fn slice_samples(plan: &TensorPlan, slice: &SlicePlan, weights: &[f32], samples: &[i16]) -> Vec<i32> {
    let mut out: Vec<i32> = samples[span(plan, &slice.rows)].iter().map(|&s| s.into()).collect();
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
