//! Errors of allocation.

use std::path::PathBuf;

/// Result of an allocation.
pub type Result<T> = std::result::Result<T, AllocateError>;

/// An allocation that cannot be computed, or files that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The sensitivities.
    #[error(transparent)]
    Calibrate(#[from] waterfill_calibrate::CalibrateError),
    /// The store.
    #[error(transparent)]
    Artifact(#[from] waterfill_store::ArtifactError),
    /// A plan that the codec refuses.
    #[error("{weight}: {source}")]
    Codec {
        /// Name of the weight.
        weight: String,
        /// The codec's error.
        source: waterfill_codec::CodecError,
    },
    /// A file of this stage is missing or malformed.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The value found and the one expected.
        reason: String,
    },
    /// A floor's pattern is not a glob.
    #[error("floor pattern {pattern:?}: {reason}")]
    Pattern {
        /// As configured.
        pattern: String,
        /// The glob parser's message.
        reason: String,
    },
    /// No candidate satisfies formats and floors.
    #[error("{weight}, tile ({row}, {col}): no allowed format; formats {formats}, floor {floor}")]
    NoCandidate {
        /// Name of the weight.
        weight: String,
        /// Row of tiles.
        row: usize,
        /// Column of tiles.
        col: usize,
        /// Formats allowed by the policy.
        formats: String,
        /// Floor for this weight.
        floor: String,
    },
    /// A size that no allocation reaches.
    #[error("a size of {target} bytes{place} cannot be met: these formats and floors give {least} to {most} bytes")]
    Target {
        /// Bytes asked for.
        target: u64,
        /// Of the file, or in memory.
        place: &'static str,
        /// Smallest size.
        least: u64,
        /// Largest size.
        most: u64,
    },
}
