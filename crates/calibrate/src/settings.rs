//! Settings and figures of a calibration.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Labels of the loss that gradients are taken of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// Drawn from the model's own distribution: true Fisher information (Kunstner et al. 2019).
    #[default]
    Sampled,
    /// The text's own next tokens: empirical Fisher information.
    Data,
}

/// How much of a Hessian H = E[x x^T] is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HessianKind {
    /// All of it: in the 8B layout 8 GB for the whole model.
    #[default]
    Full,
    /// Square blocks along the diagonal.
    BlockDiagonal,
    /// The diagonal, E[x_j^2], which is kept anyway.
    Diagonal,
}

/// Weight of each token in H.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HessianWeighting {
    /// All tokens alike (GPTQ, Frantar et al. 2023).
    Plain,
    /// By the energy of the output gradient, sum_i g_ti^2 (GuidedQuant, Kim et al. 2025).
    #[default]
    Gradient,
}

/// How much of a Hessian is kept, and how tokens count in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HessianSettings {
    /// Full, block-diagonal or diagonal.
    pub kind: HessianKind,
    /// Side of the blocks when block-diagonal.
    pub block: usize,
    /// Plain or by gradient energy.
    pub weighting: HessianWeighting,
}

impl HessianSettings {
    /// Side of the diagonal blocks of a matrix of `width`; `None` when only the diagonal is kept.
    pub(crate) fn side(&self, width: usize) -> Option<usize> {
        match self.kind {
            HessianKind::Full => Some(width),
            HessianKind::BlockDiagonal => Some(self.block),
            HessianKind::Diagonal => None,
        }
    }
}

/// Settings of a calibration.
#[derive(Debug, Clone)]
pub struct CalibrateSettings {
    /// Labels of the loss.
    pub labels: Labels,
    /// Seed of sampled labels.
    pub seed: u64,
    /// Parts of the text with tile Fisher information of their own.
    pub folds: usize,
    /// How much of the input Hessians H is kept.
    pub hessian: HessianSettings,
    /// How much of the output-gradient covariances G of linear layers is kept, tokens weighted by the energy of the input;
    /// blocks are those of `hessian`.
    pub gradient_covariance: HessianKind,
    /// Tokens of a batch; affects rounding, so it is part of the result's identity.
    pub batch_tokens: usize,
}

/// Figures of a calibration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrateSummary {
    /// Tokens used.
    pub tokens: u64,
    /// Mean negative log-likelihood of the calibration text, nats per token.
    pub nll: f64,
    /// By weight, how much its Hessian is believed; empty without Hessians.
    pub hessians: BTreeMap<String, Shrinkage>,
    /// The same of its output-gradient covariance.
    pub gradient_covariances: BTreeMap<String, Shrinkage>,
}

/// How much the correlations of a matrix of second moments are believed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shrinkage {
    /// Added to the diagonal, in units of each of its entries; chosen from parts of the text.
    pub damping: f64,
    /// `(Σ w)² / Σ w²` over the weights `w` of tokens (Kish 1965), for each row of the matrix.
    pub effective_tokens_per_column: f64,
}
