//! Hugging Face checkpoint directories whose tensors may be plain or coded.
//!
//! [`Checkpoint`] opens a directory, lists its tensors and reads or decodes one at a time with
//! positional reads, so memory stays bounded by one tensor. [`writer`] assembles shards from
//! blobs on disk. The crate depends on no ML framework: it is what an inference runtime links.

mod control;
mod decode;
pub mod delta;
mod error;
mod file;
mod frame;
mod layers;
mod mark;
mod open;
pub mod pack;
pub mod packed;
mod read;
pub mod sparse;
pub mod writer;

pub use control::{Control, Progress};
pub use error::{CheckpointError, Result};
pub use safetensors::Dtype as Element;

pub use file::SafetensorsFile;
pub use layers::{LayerMark, Prefix};
pub use mark::{ShardMark, VERSION};
pub use open::{Checkpoint, Storage, TensorInfo};
pub use read::{Rows, Values};

/// Name of the quantisation method in a tuned checkpoint's `config.json`.
pub const QUANT_METHOD: &str = "waterfill";
/// The one key in a tuned shard's metadata; its value is JSON, see [`ShardMark`].
pub const MARK_KEY: &str = "waterfill";

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
