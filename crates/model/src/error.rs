//! Errors of models and their data.

use std::path::PathBuf;

use waterfill_checkpoint::CheckpointError;

/// Result of a model operation.
pub type Result<T> = std::result::Result<T, ModelError>;

/// A model that cannot be run or data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The configuration asks for something this program does not have.
    #[error("{path}: {reason}")]
    Unsupported {
        /// `config.json`, a file of the tokenizer or the chat template.
        path: PathBuf,
        /// The value found and those supported.
        reason: String,
    },
    /// A text or token file is unusable.
    #[error("{path}: {reason}")]
    Data {
        /// The file.
        path: PathBuf,
        /// The value found and the one expected.
        reason: String,
    },
    /// The chat template refuses the messages, as those for models that know no system prompt do.
    #[error("{path}: the chat template refuses a conversation: {reason}")]
    Conversation {
        /// The file of the template.
        path: PathBuf,
        /// Line and text that the template gives.
        reason: String,
    },
    /// A gradient did not reach a weight.
    #[error("block {block}: no gradient reached {weight}")]
    NoGradient {
        /// Index of the block.
        block: usize,
        /// Name of the linear layer.
        weight: String,
    },
    /// The device asked for is not there.
    #[error("device {asked}: {reason}")]
    Device {
        /// As given by the user.
        asked: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// candle failed.
    #[error("tensor library: {0}")]
    Candle(#[from] candle_core::Error),
}
