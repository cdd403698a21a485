//! What can go wrong while evaluating.

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
    Artifact(#[from] waterfill_artifacts::ArtifactError),
    /// A question file or directory is unusable.
    #[error("{path}: {reason}")]
    Questions {
        /// The file or directory.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A context too short to hold even the end of a prompt.
    #[error(
        "question {question:?}: {tokens} tokens without examples, the model takes {context}, too few for an answer"
    )]
    Prompt {
        /// Its beginning.
        question: String,
        /// Tokens of the prompt.
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
