//! Hugging Face checkpoint directories in which tensors are plain or coded by waterfill.
//!
//! [`Checkpoint`] opens a directory or a safetensors file and decodes one tensor at a time, with positional reads and on
//! all threads, so that memory is bounded by one tensor. A compressed checkpoint is an ordinary Hugging Face directory:
//! a coded tensor is a `U8` tensor of its shard, and untouched tensors are as they were.
//!
//! ```
//! use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint};
//! use waterfill_checkpoint::{Checkpoint, Control};
//! use waterfill_codec::{Dtype, Format, TensorPlan, TilePlan, encode_tensor};
//!
//! // A matrix of 64x48 weights in four-bit levels, each a multiple of the step 2^(-40/8) = 1/32.
//! let (rows, cols) = (64, 48);
//! let weights: Vec<f32> = (0..rows * cols).map(|i| ((i % 16) as f32 - 8.0) / 32.0).collect();
//! let tile = TilePlan { format: Format::Int4, ..TilePlan::default() };
//! let uniform = TensorPlan::uniform(Dtype::Bf16, rows, cols, tile);
//! let bytes = encode_tensor(&TensorPlan { step_base: -40, sigma_base: 8, ..uniform }, &weights)?;
//!
//! // A compressed checkpoint of this one tensor; `config.json` comes from the original.
//! let (original, dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! std::fs::write(original.path().join("config.json"), "{}")?;
//! let entry = Entry {
//!     name: "up_proj.weight".into(),
//!     shape: vec![rows, cols],
//!     plain: None,
//!     bytes: bytes.len() as u64,
//!     data: Data::Made(Box::new(move || bytes.clone())),
//! };
//! write_checkpoint(original.path(), dir.path(), &[entry], true)?;
//!
//! // Any consumer: open, look up, decode.
//! let checkpoint = Checkpoint::open(dir.path())?;
//! let info = checkpoint.tensor("up_proj.weight")?;
//! assert_eq!(info.shape, [rows, cols]);
//! let mut out = vec![0; checkpoint.decoded_bytes(&info.name, Dtype::F32)?];
//! checkpoint.decode(&info.name, Dtype::F32, &mut out, Control::default())?;
//! assert_eq!(out[..4], weights[0].to_le_bytes());
//! assert_eq!(checkpoint.read_f32(&info.name, &[rows, cols])?, weights);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | to | use |
//! |---|---|
//! | decode to elements | [`Checkpoint::decode`], [`Checkpoint::read`], [`Checkpoint::read_f32`] |
//! | multiply with tiles as they are stored | [`Checkpoint::decode_packed`], module [`packed`] |
//! | open only the first quality layers | [`Checkpoint::open_prefix`], [`Checkpoint::refine`] |
//! | keep 2:4 sparse refinements apart | [`Checkpoint::decode_structured`], module [`sparse`] |
//! | check every digest | [`Checkpoint::verify`] |
//! | write a checkpoint | module [`writer`] |
//! | pack a file without loss, or store a fine-tune as a delta | modules [`pack`] and [`delta`] |
//!
//! The crate depends on no ML framework: it is what an inference runtime links.

mod container;
mod control;
mod decode;
mod error;
mod open;
pub mod packed;
mod parallel;
mod quality_layers;
mod read;
mod read_back;
mod safetensors_file;
mod shard_mark;
pub mod sparse;
mod types;
mod verify;
mod whole;
pub mod writer;

pub use container::{delta, pack};
pub use control::{Control, Progress};
pub use error::{CheckpointError, FileError, Result, TensorError};
pub use open::Checkpoint;
pub use read::{Rows, Values};
pub use safetensors_file::SafetensorsFile;
pub use shard_mark::{ShardMark, VERSION};
pub use types::{Element, MARK_KEY, QUANT_METHOD, QualityLayerMark, QualityPrefix, Storage, TensorInfo, element_of};
