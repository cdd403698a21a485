//! Everything that can stop a run.

use std::path::PathBuf;

/// Result of pipeline operations.
pub type Result<T> = std::result::Result<T, PipelineError>;

/// A run that cannot start or go on. Messages of the stages name file, tensor and tile.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A configuration file cannot be used.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An accelerator's memory did not suffice.
    #[error("{stage}: {device} has too little memory: {advice}; what is finished is kept")]
    DeviceMemory {
        /// What was being done.
        stage: String,
        /// As the user named it.
        device: String,
        /// What was needed, what was free, and what would fit.
        advice: String,
    },
    /// The hub.
    #[error(transparent)]
    Hub(#[from] waterfill_hub::HubError),
    /// A path that is neither an artifact nor a checkpoint.
    #[error("{path}: neither an artifact (manifest.json) nor a checkpoint (config.json and safetensors)")]
    Unknown {
        /// The path.
        path: PathBuf,
    },
    /// A file of an artifact is malformed.
    #[error("{path}: {reason}")]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] waterfill_store::ArtifactError),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The model or its data.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
    /// Calibration.
    #[error(transparent)]
    Calibrate(#[from] waterfill_calibrate::CalibrateError),
    /// Allocation.
    #[error(transparent)]
    Allocate(#[from] waterfill_allocate::AllocateError),
    /// Encoding.
    #[error(transparent)]
    Encode(#[from] waterfill_quantize::EncodeError),
    /// Evaluation.
    #[error(transparent)]
    Evaluate(#[from] waterfill_evaluate::EvaluateError),
    /// Files for other runtimes.
    #[error(transparent)]
    Export(#[from] waterfill_export::ExportError),
    /// Training.
    #[error(transparent)]
    Train(#[from] waterfill_train::TrainError),
    /// The report.
    #[error(transparent)]
    Report(#[from] waterfill_report::ReportError),
}

impl PipelineError {
    /// Whether an accelerator's memory did not suffice.
    pub(crate) fn is_out_of_device_memory(&self) -> bool {
        use waterfill_calibrate::CalibrateError;
        use waterfill_evaluate::EvaluateError;
        match self {
            Self::Model(error)
            | Self::Calibrate(CalibrateError::Model(error))
            | Self::Evaluate(EvaluateError::Model(error)) => error.is_out_of_device_memory(),
            _ => false,
        }
    }
}
