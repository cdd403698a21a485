//! What can be wrong with a checkpoint directory.

use std::path::PathBuf;

use waterfill_codec::CodecError;

/// Result of a checkpoint operation.
pub type Result<T> = std::result::Result<T, CheckpointError>;

/// A checkpoint that cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
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
    /// A tensor is missing or has another type or shape than needed.
    #[error("{path}: tensor {tensor}: {reason}")]
    Tensor {
        /// The shard or directory.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The caller asked for an end.
    #[error("decoding was cancelled")]
    Cancelled,
    /// A coded tensor is damaged or not of this version.
    #[error("{path}: tensor {tensor}: {source}")]
    Codec {
        /// The shard.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What the codec found.
        source: CodecError,
    },
}

impl CheckpointError {
    /// Wraps an I/O error with the file it happened on.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::File { path: path.into(), reason: reason.into() }
    }
}
