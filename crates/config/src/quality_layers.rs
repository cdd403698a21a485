//! The `encode.quality_layers` section: a base and refinements in one checkpoint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Quality layers of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QualityLayers {
    /// Bits per weight that each refinement adds, approximately, from the base on.
    pub bits: Vec<f64>,
    /// Which prefixes of the checkpoint are kept small.
    #[serde(default)]
    pub optimize_for: OptimizeFor,
    /// Overrides `optimize_for`: the share of each row's and column's own second moment that is added to it before error
    /// feedback, in all layers but the last. Feedback enlarges single errors, and refinements code those errors.
    #[serde(default)]
    pub error_penalty: Option<f64>,
    /// Limits the levels of refinements of linear layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<LayerStructure>,
    /// Number of prefixes that are evaluated between two layers, where the file can be cut as well.
    #[serde(default, skip_serializing)]
    pub parts: usize,
}

/// Structure of the levels of a refinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LayerStructure {
    /// At most two of four columns of a row are nonzero, as sparse tensor cores multiply.
    #[serde(rename = "2:4")]
    TwoOfFour,
}

/// Which prefixes of a checkpoint with quality layers are kept small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizeFor {
    /// The base, which is as good as one coded alone.
    Base,
    /// Both, each a little larger than one coded alone.
    #[default]
    Both,
    /// The whole checkpoint.
    All,
}

impl QualityLayers {
    /// Factor of the error penalty of all layers but the last.
    pub fn error_penalty(&self) -> f64 {
        self.error_penalty.unwrap_or(match self.optimize_for {
            OptimizeFor::Base => 0.3,
            OptimizeFor::Both => 1.0,
            OptimizeFor::All => 6.0,
        })
    }

    /// Lambdas of all layers, the base first; the last layer has `lambda`.
    pub fn lambdas(&self, lambda: f64) -> Vec<f64> {
        // One bit is worth a factor of four in loss.
        let mut lambdas = vec![lambda];
        lambdas.extend(self.bits.iter().rev().scan(lambda, |lambda, bits| {
            *lambda *= (2.0 * bits).exp2();
            Some(*lambda)
        }));
        lambdas.reverse();
        lambdas
    }
}
