//! Quantization of all slices of a matrix with error feedback.

use rayon::prelude::*;
use waterfill_codec::Result;

use super::input::{BLOCK, LdlqInput};
use super::slice::Slice;

/// Quantizes a matrix; returns its samples `[rows, cols]`, row-major: levels of integer tiles, codes of floating-point
/// ones, zero in lossless tiles.
///
/// Without feedback over rows slices do not depend on each other. With it, a block of columns of a slice depends on the
/// same columns of the slices above and on its own columns before, so that slices follow each other a block behind. The
/// result does not depend on the number of threads.
///
/// # Errors
/// Scales out of range.
pub fn quantize_ldlq(input: &LdlqInput) -> Result<Vec<i16>> {
    Ok(quantize_with_steps(input)?.0)
}

/// As [`quantize_ldlq`], with the steps of all tiles in raster order: other than the plan's where they are fitted.
pub(super) fn quantize_with_steps(input: &LdlqInput) -> Result<(Vec<i16>, Vec<i16>)> {
    let plan = input.plan;
    let blocks = plan.cols.div_ceil(BLOCK);
    let upper = input.rows.and_then(|rows| Some(rows.block(0)?.1));
    let slice = |n: usize| Slice::new(input, plan.slice_range(n), upper);
    if upper.is_none() {
        let whole = |n: usize| {
            let mut slice = slice(n)?;
            (0..blocks).for_each(|n| drop(slice.block(n, &[])));
            Ok(slice.finish())
        };
        return Ok(joined((0..plan.slices()).into_par_iter().map(whole).collect::<Result<Vec<_>>>()?));
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
    Ok(joined(slices.into_iter().map(Slice::finish).collect()))
}

/// Samples and steps of slices, one after the other.
fn joined(slices: Vec<(Vec<i16>, Vec<i16>)>) -> (Vec<i16>, Vec<i16>) {
    let (samples, steps): (Vec<_>, Vec<_>) = slices.into_iter().unzip();
    (samples.concat(), steps.concat())
}
