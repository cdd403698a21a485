//! Exact rates of a plan, without writing it.

use crate::encoder::frequency_tables::with_frequency_tables;
use crate::encoder::quantize::quantize_slice;
use crate::encoder::slice::{TileSamples, code_samples};
use crate::entropy::models::RateCounter;
use crate::error::Result;
use crate::syntax::float_prefix::EntropyTables;
use crate::syntax::header::Header;
use crate::syntax::sample::SampleCounter;
use crate::syntax::side_info::code_side;
use crate::syntax::slice::SlicePlan;
use crate::syntax::streams::SLICE_PREFIX;
use crate::syntax::tensor_plan::TensorPlan;
use crate::units::Rate;

impl TensorPlan {
    /// Bits of header, slice table and side information as [`encode_tensor`](crate::encode_tensor) writes them.
    ///
    /// # Errors
    /// None for a plan of consistent shape.
    pub fn side_rate(&self, weights: &[f32]) -> Result<Rate> {
        let mut plan = with_frequency_tables(self, |i| self.dtype.pattern_of(weights[i]));
        let tools = plan.tools();
        let mut first = plan.tiles.first().copied().unwrap_or_default();
        let mut counter = RateCounter::default();
        code_side(&mut counter, &mut plan, tools, &mut first)?;
        Ok(counter.rate() + Rate(Header::bytes(self.slices()) as f64 * 8.0 + 24.0))
    }

    /// Bits of slice `n` of `weights` `[rows, cols]` as [`encode_tensor`](crate::encode_tensor) writes it, without
    /// frequency tables of its own and merged headers.
    ///
    /// # Errors
    /// As [`encode_tensor`](crate::encode_tensor).
    pub fn slice_rate(&self, n: usize, weights: &[f32]) -> Result<Rate> {
        let mut slice = SlicePlan::of(self, self.slice_range(n));
        slice.code_headers(&mut RateCounter::default(), &mut |_, _| [0; 256])?;
        let samples = quantize_slice(&slice, &weights[self.weights_of(&slice.rows)])?;
        self.samples_rate(&mut slice, &samples)
    }

    /// Bits of a slice with the given samples, row-major.
    ///
    /// # Errors
    /// As [`encode_samples`](crate::encode_samples).
    pub fn samples_rate(&self, slice: &mut SlicePlan, samples: &[i32]) -> Result<Rate> {
        let levels = TileSamples::of(slice, samples);
        let mut headers = RateCounter::default();
        slice.code_headers(&mut headers, &mut |n, _| levels.get(n))?;
        let mut counter = SampleCounter::default();
        code_samples(&mut counter, slice, &EntropyTables::new(self), samples)?;
        // A final state holds about 16 of its 32 bits as payload.
        let states = 16.0 + self.lanes() as f64 * 16.0;
        Ok(headers.rate() + counter.rate() + Rate(states + SLICE_PREFIX as f64 * 8.0))
    }
}
