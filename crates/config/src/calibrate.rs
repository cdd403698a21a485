//! The `calibrate` section: text, labels, and which statistics are kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_calibrate::{HessianKind, HessianWeighting, Labels};

/// How sensitivities are measured.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    /// A UTF-8 text file, or `fixture` for the generated one, or rows as in `evaluate.text`.
    pub text: String,
    /// Text between two rows.
    #[serde(default = "default_join")]
    pub join: String,
    /// Number of rows to take, from the first; all if absent.
    #[serde(default)]
    pub documents: Option<usize>,
    /// First and last share of the tokens to use, 0 to 1.
    #[serde(default = "default_part")]
    pub part: [f64; 2],
    /// Tokens in a sequence.
    #[serde(default = "default_context")]
    pub context: usize,
    /// Number of sequences, spread evenly over the part.
    #[serde(default = "default_sequences")]
    pub sequences: usize,
    /// Tokens in a batch, at least one sequence. Smaller batches take less memory and round differently.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,
    /// Seed of sampled labels.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Labels of the loss.
    #[serde(default)]
    pub labels: Labels,
    /// Number of further sequences, spread among the others, on which losses are predicted and measured.
    #[serde(default)]
    pub held_out: usize,
    /// Number of folds: parts of the text whose sensitivities are kept apart.
    #[serde(default = "default_one")]
    pub folds: usize,
    /// How much of the input Hessian H = E[x x^T] is kept.
    #[serde(default)]
    pub hessian: HessianKind,
    /// Side of the blocks of a block-diagonal H.
    #[serde(default = "default_block")]
    pub hessian_block: usize,
    /// Weight of each token in H and in the gradient covariance.
    #[serde(default)]
    pub hessian_weighting: HessianWeighting,
    /// How much of the output-gradient covariance G = E[g g^T] is kept.
    #[serde(default)]
    pub gradient_covariance: HessianKind,
}

pub(crate) fn default_join() -> String {
    "\n\n".into()
}
pub(crate) fn default_part() -> [f64; 2] {
    [0.0, 1.0]
}
pub(crate) fn default_context() -> usize {
    256
}
pub(crate) fn default_sequences() -> usize {
    64
}
pub(crate) fn default_batch_tokens() -> usize {
    crate::BATCH_TOKENS
}
pub(crate) fn default_seed() -> u64 {
    1
}
fn default_one() -> usize {
    1
}
pub(crate) fn default_block() -> usize {
    128
}
