//! Records and results that cannot be used.

use std::path::PathBuf;

/// Result of experiments.
pub type Result<T> = std::result::Result<T, ExperimentError>;

/// An experiment that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] waterfill_config::ConfigError),
    /// A stage; boxed, since it is much larger than the others.
    #[error(transparent)]
    Pipeline(Box<waterfill_pipeline::PipelineError>),
    /// The store.
    #[error(transparent)]
    Store(#[from] waterfill_store::ArtifactError),
    /// A checkpoint of a run.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The sensitivities of a run.
    #[error(transparent)]
    Calibrate(#[from] waterfill_calibrate::CalibrateError),
    /// Tables, figures and pages.
    #[error(transparent)]
    Report(#[from] waterfill_report::ReportError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A record that is damaged or from another version.
    #[error("{path}: {reason}; a run again makes a new one, and without this file the run is forgotten")]
    Record {
        /// The record.
        path: PathBuf,
        /// Error of the parser, or the version found and expected.
        reason: String,
    },
    /// No run, or several, by the name that was given.
    #[error("{store}: {reason}")]
    NoRun {
        /// The store.
        store: PathBuf,
        /// The name and the runs that it could mean.
        reason: String,
    },
    /// A run lacks what was asked of it.
    #[error("{run}: {reason}")]
    Run {
        /// The run.
        run: String,
        /// The missing part.
        reason: String,
    },
    /// A file of results or of an artifact that does not fit the others.
    #[error("{path}: {reason}")]
    Mismatch {
        /// The file or directory.
        path: PathBuf,
        /// Found and expected.
        reason: String,
    },
    /// A condition on points that cannot be read.
    #[error("{text}: {reason}")]
    Condition {
        /// The condition.
        text: String,
        /// Expected form.
        reason: String,
    },
    /// An artifact is being made in the store.
    #[error("{path}: {key} is being made; wait until no run is at work in this store")]
    Busy {
        /// Folder of the stage.
        path: PathBuf,
        /// Key of the artifact.
        key: String,
    },
}

impl ExperimentError {
    /// Names the file of an error of the system.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<waterfill_pipeline::PipelineError> for ExperimentError {
    fn from(error: waterfill_pipeline::PipelineError) -> Self {
        Self::Pipeline(Box::new(error))
    }
}
