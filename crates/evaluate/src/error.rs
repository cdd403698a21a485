//! Errors of evaluation.

use std::path::PathBuf;

/// Result of an evaluation.
pub type Result<T> = std::result::Result<T, EvaluateError>;

/// An evaluation that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The model or its text.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The store.
    #[error(transparent)]
    Artifact(#[from] waterfill_store::ArtifactError),
    /// A question file or directory is unusable.
    #[error("{path}: {reason}")]
    Questions {
        /// The file or directory.
        path: PathBuf,
        /// The value found and the one expected.
        reason: String,
    },
    /// A continuation that leaves no room for any of what stands before it.
    #[error(
        "question {question:?}: a choice of {tokens} tokens does not fit into the {context} that the model takes; leave such questions out with skip_long: true"
    )]
    Prompt {
        /// Its end.
        question: String,
        /// Tokens of the choice.
        tokens: usize,
        /// Most the model takes.
        context: usize,
    },
}

impl From<candle_core::Error> for EvaluateError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
