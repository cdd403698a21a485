//! Result of adapting weights.

use waterfill_model::ModelError;

/// Result of adapting weights.
pub type Result<T> = std::result::Result<T, ModelError>;
