//! Writing checkpoints: shards, the files next to them, and quality layers.

mod companions;
mod compare;
mod entry;
mod layers;
mod shards;
mod small_file;

pub use crate::quality_layers::quality_layer_name;
pub use crate::whole::{copy_directory, copy_file, copy_files, write_directory};
pub use companions::{NAMED_TEMPLATES, companions_digest, is_companion, write_companions};
pub use entry::{Data, Entry};
pub use layers::write_quality_layers;
pub use shards::{SHARD_BYTES, write_checkpoint, write_shards, write_tensors};
pub use small_file::write_file;
