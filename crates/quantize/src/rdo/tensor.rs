//! The tools of a whole tensor: from a plan as allocated to bytes.

use std::collections::BTreeSet;

use rayon::prelude::*;
use waterfill_allocate::PlannedWeight;
use waterfill_codec::encoder::quantize::quantize_slice;
use waterfill_codec::syntax::slice::SlicePlan;
use waterfill_codec::{Kernel, Result, TensorEncoder, TensorPlan, TilePlan};

use super::input::RdoInput;
use super::parameters;
use super::tile::TileSearch;
use super::tools::Tool;
use crate::slices::{encode_parallel, slice_samples, span};

/// Codes a matrix as allocated with the tools that lower J: `weights` row-major `[rows, cols]`, exact values of the plan's
/// type. `allow_int8` lets tiles be INT8 where allocation chose a narrower format.
///
/// # Errors
/// As [`TensorEncoder`].
pub fn encode_rdo(
    weight: &PlannedWeight,
    weights: &[f32],
    tools: &BTreeSet<Tool>,
    allow_int8: bool,
) -> Result<Vec<u8>> {
    let input = RdoInput { weights, loss_weights: &weight.loss_weights, lambda: weight.lambda, tools, allow_int8 };
    let mut plan = weight.plan.clone();
    plan.parameters.merge = tools.contains(&Tool::Merge);
    let loss_weights = parameters::resize_tiles(&mut plan, &input);
    let input = RdoInput { loss_weights: loss_weights.as_ref().unwrap_or(input.loss_weights), ..input };
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

/// Searches all slices; tiles of the plan are replaced by what was found. Returns the samples,
/// row-major, of tiles that are not lossless.
fn search_tensor(plan: &mut TensorPlan, input: &RdoInput) -> Result<Vec<i16>> {
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
