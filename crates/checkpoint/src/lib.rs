//! Hugging Face checkpoint directories whose tensors may be plain or coded.

mod container;
mod control;
mod decode;
mod error;
mod open;
pub mod packed;
mod parallel;
mod quality_layers;
mod read;
mod safetensors_file;
mod shard_mark;
pub mod sparse;
mod types;
mod verify;
pub mod writer;

pub use container::{delta, pack};
pub use control::{Control, Progress};
pub use error::{CheckpointError, FileError, Result, TensorError};
pub use open::Checkpoint;
pub use read::{Rows, Values};
pub use safetensors_file::SafetensorsFile;
pub use shard_mark::{ShardMark, VERSION};
pub use types::{Element, MARK_KEY, QUANT_METHOD, QualityLayerMark, QualityPrefix, Storage, TensorInfo, element_of};
