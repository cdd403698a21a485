//! Errors of export.

use std::path::PathBuf;

/// Result of an export.
pub type Result<T> = std::result::Result<T, ExportError>;

/// A model that cannot be exported, or a file that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target cannot represent the model.
    #[error("cannot be exported to {target}: {reason}")]
    Target {
        /// The target.
        target: &'static str,
        /// The obstacle, and what would be accepted.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file does not have the expected form.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The value found and the one expected.
        reason: String,
    },
    /// The quantizer failed.
    #[error("tensor {tensor}: {source}")]
    Quantizer {
        /// Name of the tensor.
        tensor: String,
        /// candle's error.
        source: candle_core::Error,
    },
    /// The checkpoint that is exported.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// Its configuration.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
}

/// The model cannot be written as GGUF.
pub(crate) fn refused(reason: impl Into<String>) -> ExportError {
    ExportError::Target { target: "gguf", reason: reason.into() }
}
