//! Everything that can stop a run.

use std::path::PathBuf;

/// Result of pipeline operations.
pub type Result<T> = std::result::Result<T, PipelineError>;

/// A run that cannot start or go on. Messages of the stages name file, tensor and tile.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A configuration that cannot be used.
    #[error(transparent)]
    Config(#[from] waterfill_config::ConfigError),
    /// A value of the configuration that does not fit the model or the data.
    #[error("{key}: {reason}")]
    Value {
        /// Dotted key.
        key: String,
        /// Value found, and what was expected.
        reason: String,
    },
    /// A file or directory that would be overwritten.
    #[error("{path}: exists already; choose another name or remove it")]
    Exists {
        /// The file or directory.
        path: PathBuf,
    },
    /// A configuration with several goals where one is expected.
    #[error("{path}: a delta has one size, allocate asks for {found}")]
    Goals {
        /// The delta.
        path: PathBuf,
        /// Number of goals.
        found: usize,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A JSON file of an artifact has other fields.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Error of the parser.
        source: serde_json::Error,
    },
    /// A stage computed a number that is none; its result is not kept.
    #[error("{path}: {field} is {value}, expected a finite number; the stage's result is not kept")]
    NotFinite {
        /// The file that was to be written.
        path: PathBuf,
        /// Dotted place of the number, such as the name of a tensor.
        field: String,
        /// NaN or infinite.
        value: f64,
    },
    /// An accelerator's memory did not suffice.
    #[error("{stage}: {device} has too little memory: {advice}; what is finished is kept")]
    DeviceMemory {
        /// The stage in words.
        stage: String,
        /// The device as the user named it.
        device: String,
        /// Memory needed, memory free, and a batch that would fit.
        advice: String,
    },
    /// The hub.
    #[error(transparent)]
    Hub(#[from] waterfill_hub::HubError),
    /// A stage of another crate.
    #[error("{stage}: {source}")]
    Stage {
        /// The stage in words.
        stage: String,
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
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
}

impl PipelineError {
    /// Names the file of an error of the system.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

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
