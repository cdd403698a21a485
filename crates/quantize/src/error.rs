//! Errors of writing a checkpoint.

use std::path::PathBuf;

/// Result of writing a checkpoint.
pub type Result<T> = std::result::Result<T, EncodeError>;

/// A checkpoint that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The checkpoint that is read, or the files that are written.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The allocation.
    #[error(transparent)]
    Allocate(#[from] waterfill_allocate::AllocateError),
    /// The sensitivities.
    #[error(transparent)]
    Calibrate(#[from] waterfill_calibrate::CalibrateError),
    /// The model that weights adapt in.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
    /// The store.
    #[error(transparent)]
    Artifact(#[from] waterfill_store::ArtifactError),
    /// A plan that does not fit the tensor, or a weight that cannot be coded.
    #[error("tensor {tensor}: {source}")]
    Codec {
        /// Name of the tensor.
        tensor: String,
        /// The codec's error.
        source: waterfill_codec::CodecError,
    },
    /// Quality layers without error feedback.
    #[error("tensor {tensor}: refinement layers need error feedback, which is off")]
    Layers {
        /// Name of the tensor.
        tensor: String,
    },
    /// A directory that would be overwritten.
    #[error("{path}: exists already; choose another directory or remove it")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
}
