//! Memory that the parts of a model take while they are computed, in f32.

use candle_core::Device;

use crate::config::ModelConfig;
use crate::roles::Projection;

/// Bytes that batches may take side by side beyond one.
const WORKSPACE: u64 = 1 << 30;

impl ModelConfig {
    /// Bytes of a block's linear weights.
    pub fn block_bytes(&self) -> u64 {
        Projection::ALL.iter().map(|&p| self.linear_shape(p).iter().product::<usize>() as u64).sum::<u64>() * 4
    }

    /// Bytes of the embedding, or of the head.
    pub fn table_bytes(&self) -> u64 {
        (self.vocab * self.hidden) as u64 * 4
    }

    /// Bytes of the hidden states of some tokens.
    pub fn state_bytes(&self, tokens: usize) -> u64 {
        (tokens * self.hidden) as u64 * 4
    }

    /// Bytes that the forward pass of a block holds for a batch of `tokens`.
    pub fn forward_bytes(&self, tokens: usize) -> u64 {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        (tokens * (5 * self.hidden + 5 * self.intermediate).max(5 * self.hidden + 4 * q + 4 * kv)) as u64 * 4
    }

    /// Bytes that the vector-Jacobian product of a block and the statistics of its traces hold for a
    /// batch of `tokens`.
    pub fn vjp_bytes(&self, tokens: usize) -> u64 {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        (tokens * (8 * self.hidden + 8 * self.intermediate + 3 * q + 4 * kv)) as u64 * 4
    }
}

/// Batches to compute side by side, each of which takes `bytes`: one for each thread as far as memory
/// allows. A single batch keeps several threads busy too, and all of an accelerator.
pub fn side_by_side(device: &Device, bytes: u64) -> usize {
    if !device.is_cpu() {
        return 1;
    }
    ((WORKSPACE / bytes.max(1)) as usize).clamp(1, rayon::current_num_threads().max(1))
}
