//! Errors of checkpoint directories and files.

mod file;
mod tensor;

use std::path::PathBuf;

use waterfill_codec::CodecError;

pub use file::FileError;
pub use tensor::TensorError;

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
        /// The system's error.
        source: std::io::Error,
    },
    /// A file does not have the expected form.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Found and expected form.
        reason: Box<FileError>,
    },
    /// A tensor is missing, damaged, or has another type or shape than needed.
    #[error("{path}: tensor {tensor}: {reason}")]
    Tensor {
        /// The shard or directory.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Found and expected form.
        reason: Box<TensorError>,
    },
    /// A coded tensor is damaged or not of this version.
    #[error("{path}: tensor {tensor}: {source}")]
    Codec {
        /// The shard.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The codec's error.
        source: Box<CodecError>,
    },
    /// What was just written cannot be read back.
    #[error("{path}: not written, since it does not come back: {error}")]
    ReadBack {
        /// The file or directory to be written.
        path: PathBuf,
        /// What its reader says.
        error: Box<CheckpointError>,
    },
    /// The caller cancelled the work.
    #[error("decoding was cancelled")]
    Cancelled,
}

impl CheckpointError {
    /// Wraps an I/O error with the file it happened on.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Says why a file cannot be used.
    pub fn file(path: impl Into<PathBuf>, reason: FileError) -> Self {
        Self::File { path: path.into(), reason: Box::new(reason) }
    }

    /// Says why a tensor cannot be used; `path` is its shard or directory.
    pub fn tensor(path: impl Into<PathBuf>, tensor: impl Into<String>, reason: TensorError) -> Self {
        Self::Tensor { path: path.into(), tensor: tensor.into(), reason: Box::new(reason) }
    }
}

/// Names the file of an I/O error.
pub(crate) trait AtPath<T> {
    /// The result, an error with its file.
    fn at(self, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(CheckpointError::io(path))
    }
}
