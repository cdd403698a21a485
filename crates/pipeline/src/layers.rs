//! Layers of quality, as a configuration says them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Layers of quality.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// About how many bits a weight each refinement adds, from the base on.
    pub bits: Vec<f64>,
    /// What costs less than it might otherwise.
    #[serde(default)]
    pub favour: Favour,
    /// Instead of `favour`: how much feedback of all layers but the last holds back, as the share of its own second moment
    /// that is added to that of each row and column. Feedback makes single errors larger, and refinements code those.
    #[serde(default)]
    pub restraint: Option<f64>,
    /// What refinements of linear layers are limited to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<LayerStructure>,
    /// Prefixes that are evaluated between two layers, where the file may be cut as well.
    #[serde(default, skip_serializing)]
    pub parts: usize,
}

/// Levels that a refinement may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LayerStructure {
    /// At most two in four columns of a row are not zero, as sparse tensor cores multiply.
    #[serde(rename = "2:4")]
    TwoOfFour,
}

/// Which prefixes of a checkpoint in layers are small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Favour {
    /// The base, which is as good as one coded alone.
    Base,
    /// Both, each a little larger than one coded alone.
    #[default]
    Both,
    /// The whole checkpoint.
    All,
}

impl Layers {
    pub(crate) fn restraint(&self) -> f64 {
        self.restraint.unwrap_or(match self.favour {
            Favour::Base => 0.3,
            Favour::Both => 1.0,
            Favour::All => 6.0,
        })
    }

    /// Lambdas of all layers, the base first, where the last one has `lambda`.
    pub(crate) fn lambdas(&self, lambda: f64) -> Vec<f64> {
        // A bit is a factor of four of a loss.
        let mut lambdas = vec![lambda];
        lambdas.extend(self.bits.iter().rev().scan(lambda, |lambda, bits| {
            *lambda *= (2.0 * bits).exp2();
            Some(*lambda)
        }));
        lambdas.reverse();
        lambdas
    }
}
