//! Errors of running a checkpoint.

/// Result of running a checkpoint.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// A checkpoint that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Error of the model or its tokenizer.
    #[error(transparent)]
    Model(#[from] waterfill_model::ModelError),
    /// Error of the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] waterfill_checkpoint::CheckpointError),
    /// A prompt that cannot be continued.
    #[error("the prompt has {tokens} tokens, expected 1 to {most}: the model takes {positions}")]
    Prompt {
        /// Its tokens.
        tokens: usize,
        /// Most tokens that leave room for the continuation.
        most: usize,
        /// Positions of the model.
        positions: usize,
    },
    /// Products from tiles and from dense weights that differ more than rounding explains.
    #[error("{tensor}: a product from its tiles is off by {found:.2e} of its size, expected at most {most:.2e}")]
    Differs {
        /// Name of the weight.
        tensor: String,
        /// Error over the norm of the dense product.
        found: f64,
        /// Bound.
        most: f64,
    },
}

impl From<candle_core::Error> for RuntimeError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
