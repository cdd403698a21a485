//! The `calibrate` section: text, labels, and which statistics are kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_calibrate::{HessianKind, HessianWeighting, Labels};

use crate::texts::TextEntry;

/// How sensitivities are measured.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    /// A UTF-8 text file, or `fixture` for the generated one, or rows as in `evaluate.text`; or a list of such texts, each
    /// with its share: `[{text: a.txt, share: 2}, {text: hf:OWNER/NAME:PATTERN}]`.
    #[serde(serialize_with = "crate::texts::write", deserialize_with = "crate::texts::read")]
    #[schemars(with = "crate::texts::Texts")]
    pub text: Vec<TextEntry>,
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
    /// Number of sequences, spread evenly over the part, whose gradients are taken.
    #[serde(default = "default_sequences")]
    pub sequences: usize,
    /// Number of sequences for Hessians, at least `sequences`, which are among them; the others are read forward only, at
    /// a third of the time. `sequences` if absent.
    #[serde(default)]
    pub hessian_sequences: Option<usize>,
    /// Tokens in a batch, at least one sequence. Smaller batches take less memory and round differently.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,
    /// Seed of sampled labels.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Labels of the loss.
    #[serde(default)]
    pub labels: Labels,
    /// Number of further sequences, spread among the others, on which predictions are checked. An eighth of all if absent, at
    /// least four and at least two of each text.
    #[serde(default)]
    pub held_out: Option<usize>,
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

impl Calibrate {
    /// Sequences on which predictions are checked.
    pub fn held_out(&self) -> usize {
        let all = self.hessian_sequences.unwrap_or(0).max(self.sequences);
        self.held_out.unwrap_or_else(|| (all / 8).max(4).max(2 * self.text.len()))
    }

    /// Sequences that are read forward only.
    pub fn further(&self) -> usize {
        self.hessian_sequences.map_or(0, |all| all.saturating_sub(self.sequences))
    }
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
