//! Assembling a coded tensor from its slices.

use crate::entropy::adaptive_rans::Encoder;
use crate::error::Result;
use crate::syntax::float_prefix::EntropyTables;
use crate::syntax::header::{Header, slice_check, truncate};
use crate::syntax::side_info::code_side;
use crate::syntax::tensor_plan::TensorPlan;

/// Assembles a coded tensor from its slices.
pub(crate) struct TensorWriter {
    header: Header,
    side: Vec<u8>,
    entropy_tables: EntropyTables,
    digest: blake3::Hasher,
    slices: Vec<Vec<u8>>,
}

impl TensorWriter {
    pub fn new(plan: &TensorPlan) -> Result<Self> {
        let tools = plan.tools();
        let mut encoder = Encoder::default();
        let mut first = plan.tiles.first().copied().unwrap_or_default();
        code_side(&mut encoder, &mut plan.side(), tools, &mut first)?;
        let side = encoder.finish();
        let header = Header {
            dtype: plan.dtype,
            lanes: plan.lanes(),
            slice_rows: plan.slice_rows(),
            rows: plan.rows,
            cols: plan.cols,
            step_base: plan.step_base,
            sigma_base: plan.sigma_base,
            tools,
            side_bytes: side.len(),
            digest: [0; 16],
            slices: Vec::new(),
        };
        Ok(Self {
            header,
            side,
            entropy_tables: EntropyTables::new(plan),
            digest: blake3::Hasher::new(),
            slices: Vec::new(),
        })
    }

    pub fn entropy_tables(&self) -> &EntropyTables {
        &self.entropy_tables
    }

    /// Adds a coded slice with the bytes it decodes to.
    pub fn add(&mut self, slice: Vec<u8>, decoded: &[u8]) {
        self.digest.update(decoded);
        self.header.slices.push((slice.len() as u32, slice_check(&slice)));
        self.slices.push(slice);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.header.digest = truncate(&self.digest);
        let mut out = self.header.write(&self.side);
        out.extend_from_slice(&self.side);
        self.slices.iter().for_each(|s| out.extend_from_slice(s));
        out
    }
}
