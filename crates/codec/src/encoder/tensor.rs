//! From a plan and samples to the bytes of a coded tensor.

use std::ops::Range;

use crate::encoder::frequency_tables::with_frequency_tables;
use crate::encoder::quantize::quantize_slice;
use crate::encoder::slice::{encode_slice, reconstruct_slice};
use crate::encoder::writer::TensorWriter;
use crate::entropy::models::RateCounter;
use crate::error::{CodecError, Result, check_length};
use crate::syntax::side_info::code_side;
use crate::syntax::slice::SlicePlan;
use crate::syntax::tensor_plan::{Scales, TensorPlan};
use crate::syntax::tools::Tools;

/// Codes `weights` (row-major, exact values of the plan's dtype) as the plan says, with plain
/// rounding.
///
/// # Errors
/// Plans of another shape than the weights, weights that are not finite, scales out of range.
pub fn encode_tensor(plan: &TensorPlan, weights: &[f32]) -> Result<Vec<u8>> {
    let mut encoder = TensorEncoder::of_weights(plan, weights)?;
    for n in 0..encoder.slices() {
        let slice = encoder.slice(n, |slice| quantize_slice(slice, &weights[plan.weights_of(&slice.rows)]))?;
        encoder.add(slice);
    }
    Ok(encoder.finish())
}

/// Codes a plan with the samples that `samples_of` returns for each slice, row-major. Tile headers are merged where
/// the plan allows it and that makes them shorter.
///
/// # Errors
/// Those of `samples_of`, and plans of inconsistent shape.
pub fn encode_samples(
    plan: &TensorPlan,
    mut samples_of: impl FnMut(&SlicePlan) -> Result<Vec<i32>>,
) -> Result<Vec<u8>> {
    let mut encoder = TensorEncoder::new(plan)?;
    for n in 0..encoder.slices() {
        let slice = encoder.slice(n, &mut samples_of)?;
        encoder.add(slice);
    }
    Ok(encoder.finish())
}

/// Codes a tensor slice by slice: slices may be coded in any order, or on several threads, and are added in theirs.
pub struct TensorEncoder {
    plan: TensorPlan,
    writer: TensorWriter,
    /// Decoded bytes of the quality layer before, for a refinement.
    before: Option<Vec<u8>>,
}

/// A coded slice with the bytes it decodes to.
pub struct EncodedSlice {
    coded: Vec<u8>,
    decoded: Vec<u8>,
}

impl TensorEncoder {
    /// Begins a tensor. Tile headers are merged where the plan allows it and that makes them shorter.
    ///
    /// # Errors
    /// Plans of inconsistent shape; [`CodecError::MissingBase`] for a refinement, see [`TensorEncoder::refining`].
    pub fn new(plan: &TensorPlan) -> Result<Self> {
        match plan.parameters.refinement.is_some() {
            true => Err(CodecError::MissingBase),
            false => Self::begin(plan.clone()),
        }
    }

    fn begin(mut plan: TensorPlan) -> Result<Self> {
        plan.check()?;
        // The one header of a uniform tensor settles what it implies, as those of slices do.
        let (mut side, tools) = (plan.side(), plan.tools());
        if let (true, Some(&first)) = (tools.has(Tools::UNIFORM), plan.tiles.first()) {
            let mut settled = first;
            code_side(&mut RateCounter::default(), &mut side, tools, &mut settled)?;
            plan.tiles.fill(settled);
        }
        plan.parameters.merge = plan.parameters.merge && merging_pays(&mut plan)?;
        Ok(Self { writer: TensorWriter::new(&plan)?, plan, before: None })
    }

    /// Begins a refinement of a tensor that has the scales `before` and decodes to `values`.
    ///
    /// # Errors
    /// As [`TensorEncoder::new`], and another number of bytes than the plan needs.
    pub fn refining(plan: &TensorPlan, before: Scales, values: Vec<u8>) -> Result<Self> {
        check_length("layer before", values.len(), plan.rows * plan.cols * plan.dtype.bytes())?;
        let mut plan = plan.clone();
        plan.parameters.refinement = Some(Box::new(before));
        Ok(Self { before: Some(values), ..Self::begin(plan)? })
    }

    /// Begins a tensor of these weights: with tables of their own for lossless tiles, where those pay.
    ///
    /// # Errors
    /// As [`TensorEncoder::new`].
    pub fn of_weights(plan: &TensorPlan, weights: &[f32]) -> Result<Self> {
        plan.check()?;
        check_length("weights", weights.len(), plan.rows * plan.cols)?;
        Self::new(&with_frequency_tables(plan, |index| plan.dtype.pattern_of(weights[index])))
    }

    /// Number of slices.
    pub fn slices(&self) -> usize {
        self.plan.slices()
    }

    /// Rows of slice `n`.
    pub fn rows(&self, n: usize) -> Range<usize> {
        self.plan.slice_range(n)
    }

    /// Codes slice `n` with the samples, row-major, that `samples_of` returns.
    ///
    /// # Errors
    /// Those of `samples_of`, and samples that the plan's tiles cannot have.
    pub fn slice(&self, n: usize, samples_of: impl FnOnce(&SlicePlan) -> Result<Vec<i32>>) -> Result<EncodedSlice> {
        let mut slice = SlicePlan::of(&self.plan, self.rows(n));
        // A first pass over the headers settles the step that each lossless tile passes on to its neighbours.
        slice.code_headers(&mut RateCounter::default(), &mut |_, _| [0; 256])?;
        let samples = samples_of(&slice)?;
        let coded = encode_slice(&mut slice, self.writer.entropy_tables(), &samples)?;
        let bytes = |rows: usize| rows * self.plan.cols * self.plan.dtype.bits() / 8;
        let mut decoded = match &self.before {
            Some(before) => before[bytes(slice.rows.start)..bytes(slice.rows.end)].to_vec(),
            None => vec![0; bytes(slice.rows.len())],
        };
        reconstruct_slice(&slice, &samples, &mut decoded)?;
        Ok(EncodedSlice { coded, decoded })
    }

    /// Adds the next slice.
    pub fn add(&mut self, slice: EncodedSlice) {
        self.writer.add(slice.coded, &slice.decoded);
    }

    /// The tensor's bytes, once all slices are in.
    pub fn finish(self) -> Vec<u8> {
        self.writer.finish()
    }
}

/// True if sharing headers over groups of tiles makes them shorter.
fn merging_pays(plan: &mut TensorPlan) -> Result<bool> {
    let mut bits = |merge| {
        plan.parameters.merge = merge;
        let mut counter = RateCounter::default();
        for n in 0..plan.slices() {
            SlicePlan::of(plan, plan.slice_range(n)).code_headers(&mut counter, &mut |_, _| [0; 256])?;
        }
        Ok(counter.rate().0)
    };
    Ok(bits(true)? < bits(false)?)
}
