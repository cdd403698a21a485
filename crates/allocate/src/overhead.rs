//! Bits around the slices of coded tensors, and outside of them.

use waterfill_codec::syntax::header::Header;
use waterfill_codec::{Format, Rate, TensorPlan};

use crate::select::Selection;

/// Bits of a file outside the slices of coded tensors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overhead {
    /// Plain tensors and the safetensors header.
    pub plain: Rate,
    /// Weights in plain tensors, as bits in memory.
    pub plain_resident: Rate,
}

/// Estimated bits of a coded tensor with everything around its slices.
pub fn estimated_bits(selection: &Selection) -> Rate {
    selection.rate + side_bits(&selection.plan, selection.chosen.iter().any(|p| p.format == Format::Lossless))
}

/// Estimated bits around the slices of a coded tensor.
pub(crate) fn side_bits(plan: &TensorPlan, lossless: bool) -> Rate {
    let vectors = [&plan.row_scale, &plan.col_scale, &plan.row_sigma, &plan.col_sigma];
    let entries: usize = vectors.iter().map(|v| v.len()).sum();
    let codebook = if lossless { 700.0 } else { 0.0 };
    let header = Header::bytes(plan.slices()) as f64 * 8.0;
    Rate(header + 3.2 * entries as f64 + codebook + 64.0)
}
