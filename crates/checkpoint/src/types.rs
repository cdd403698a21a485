//! Plain types that opening, reading and writing share.

pub use safetensors::Dtype as Element;
use serde::{Deserialize, Serialize};

/// Name of the quantisation method in the `config.json` of a compressed checkpoint.
pub const QUANT_METHOD: &str = "waterfill";
/// The one key in the metadata of a compressed shard; its value is a [`ShardMark`](crate::ShardMark) as JSON.
pub const MARK_KEY: &str = "waterfill";
/// Name of the index of several shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Element type of a shard for values of a codec type.
pub fn element_of(dtype: waterfill_codec::Dtype) -> Element {
    match dtype {
        waterfill_codec::Dtype::Bf16 => Element::BF16,
        waterfill_codec::Dtype::F16 => Element::F16,
        waterfill_codec::Dtype::F32 => Element::F32,
        waterfill_codec::Dtype::E4M3 => Element::F8_E4M3,
        waterfill_codec::Dtype::E5M2 => Element::F8_E5M2,
        waterfill_codec::Dtype::Byte | waterfill_codec::Dtype::Nibble => Element::U8,
    }
}

/// Form of a tensor in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Elements as they are.
    Plain,
    /// A coded tensor of waterfill's bitstream.
    Coded,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape of the (decoded) tensor.
    pub shape: Vec<usize>,
    /// Plain or coded.
    pub storage: Storage,
    /// Bytes in its shard, without refinements.
    pub bytes: u64,
    /// Element type in the shard; bytes for coded tensors, which carry theirs in their header.
    pub element: Element,
    pub(crate) shard: usize,
    pub(crate) offset: u64,
    /// Check of a plain tensor of a compressed shard.
    pub(crate) check: Option<String>,
    /// Refinements of a coded tensor, in order.
    pub(crate) refinements: Vec<Refinement>,
}

/// Place of one refinement of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refinement {
    pub shard: usize,
    pub offset: u64,
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Bytes that a runtime holds of it where it is plain: norms are computed with in f32.
    pub fn plain_resident_bytes(&self) -> u64 {
        4 * self.weights()
    }

    /// Bytes in all shards that are open.
    pub fn stored_bytes(&self) -> u64 {
        self.bytes + self.refinements.iter().map(|part| part.bytes).sum::<u64>()
    }

    /// Quality layers that are open, the base counted.
    pub fn quality_layers(&self) -> usize {
        1 + self.refinements.len()
    }
}

/// Part of a checkpoint with quality layers that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QualityPrefix {
    /// Everything that is there.
    #[default]
    All,
    /// At most this many quality layers, the base counted.
    Layers(usize),
    /// At most this many bytes of all shards in order; a tensor that does not fit whole is left out.
    Bytes(u64),
}

/// Place of a quality layer's shard among the others, in its mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityLayerMark {
    /// Number of the refinement layer, from 1 on.
    pub number: usize,
    /// Refinement layers that were written.
    pub of: usize,
    /// Digest over the header digests of all shards before.
    pub before: String,
}
