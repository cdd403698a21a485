//! Errors of calibration.

use std::path::PathBuf;

use waterfill_model::ModelError;

/// Result of calibration.
pub type Result<T> = std::result::Result<T, CalibrateError>;

/// Calibration failed, or its result cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The model or its data.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A safetensors file.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The store.
    #[error(transparent)]
    Artifact(#[from] waterfill_store::ArtifactError),
    /// A sensitivity is not a number: the model's activations overflow on this text.
    #[error("{weight}: {statistic} is not finite; the model overflows on the calibration text")]
    NotFinite {
        /// Name of the weight.
        weight: String,
        /// Which statistic.
        statistic: &'static str,
    },
    /// More folds than sequences.
    #[error("{folds} folds for {sequences} sequences, expected at most one fold for each")]
    Folds {
        /// Folds asked for.
        folds: usize,
        /// Sequences there are.
        sequences: usize,
    },
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A sensitivity file is missing, malformed, or lacks a weight.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The value found and the one expected.
        reason: String,
    },
}

impl From<candle_core::Error> for CalibrateError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
