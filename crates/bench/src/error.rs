//! Errors of benchmarks.

use std::path::PathBuf;

/// A benchmark that cannot run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The model.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
    /// The calibration.
    #[error(transparent)]
    Calibrate(#[from] waterfill_calibrate::CalibrateError),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The allocation.
    #[error(transparent)]
    Allocate(#[from] waterfill_allocate::AllocateError),
    /// The codec.
    #[error(transparent)]
    Codec(#[from] waterfill_codec::CodecError),
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] waterfill_runtime::RuntimeError),
    /// The dense checkpoint to compare with.
    #[error(transparent)]
    Encode(#[from] waterfill_quantize::EncodeError),
    /// A process that was to load a checkpoint.
    #[error("a start in a process of its own failed: {reason}")]
    Process {
        /// Its error.
        reason: String,
    },
    /// A coded tensor did not decode to its source.
    #[error("the coder is faulty: what was coded did not come back")]
    Round,
    /// Nothing to compare.
    #[error("{path}: has no full Hessians; calibrate with hessian: full")]
    Moments {
        /// The artifact.
        path: PathBuf,
    },
}
