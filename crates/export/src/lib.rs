//! Files that other runtimes load, with types chosen by rate and distortion ([`choose`]). GGUF, for llama.cpp: every
//! matrix gets one of its types, quantised by candle's port of llama.cpp's quantisers with importance by column
//! ([`GgufType`]). compressed-tensors, for vLLM: integers with scales by row or group ([`Scheme`]).

mod directory;
mod exact;
mod gguf;
mod metadata;
mod names;
mod packed;
mod select;
mod types;

use std::path::PathBuf;

pub use directory::{Stored, describe, read_values};
pub use exact::exact;
pub use gguf::{Data, GgufFile, GgufTensor, Value, head_bytes, write_gguf};
pub use metadata::metadata;
pub use names::{Name, permute_rows, rope_factors};
pub use packed::{Packed, Scheme};
pub use select::{Candidate, Chosen, choose};
pub use types::{GgufType, Quantised};

/// Result of an export.
pub type Result<T> = std::result::Result<T, ExportError>;

/// A model that cannot be exported, or a file that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target cannot represent the model.
    #[error("cannot be exported to {target}: {reason}")]
    Target {
        /// What was asked for.
        target: &'static str,
        /// What stands in the way, and what would do.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not have the expected form.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The quantiser failed.
    #[error("tensor {tensor}: {source}")]
    Quantiser {
        /// Name of the tensor.
        tensor: String,
        /// What candle said.
        source: candle_core::Error,
    },
    /// The checkpoint that is exported.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// Its configuration.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
}

fn refused(reason: impl Into<String>) -> ExportError {
    ExportError::Target { target: "gguf", reason: reason.into() }
}
