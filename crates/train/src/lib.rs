//! Training small Llama-architecture models on the CPU, with candle: a tokenizer, AdamW with
//! warmup-stable-decay, and state on disk, so that a stopped run resumes where it was.

mod data;
mod loss;
mod network;
mod optimizer;
mod tokenizer;
mod trainer;

use std::path::PathBuf;

pub use optimizer::Schedule;
pub use tokenizer::train_tokenizer;
pub use trainer::{LetterWeights, Settings, Summary, train};

/// Result of training.
pub type Result<T> = std::result::Result<T, TrainError>;

/// A model that cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The tokenizer library failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A text is too short.
    #[error("{path}: {found} tokens, training needs {needed}")]
    Short {
        /// The text.
        path: PathBuf,
        /// Number of its tokens.
        found: usize,
        /// Number that the settings need.
        needed: usize,
    },
    /// An array is missing or got no gradient.
    #[error("parameter {name} is missing")]
    Parameter {
        /// Name of the parameter.
        name: String,
    },
    /// The loss is not finite.
    #[error("step {step}: the loss is {loss}; a lower learning_rate may help")]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Artifact(#[from] waterfill_store::ArtifactError),
    /// The checkpoint that is written.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// The model.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
    /// candle failed.
    #[error("tensor library: {0}")]
    Candle(#[from] candle_core::Error),
}
