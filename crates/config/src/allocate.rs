//! The `allocate` section: wanted sizes or lambdas, formats, floors and measured corrections.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_allocate::{FoldRule, FormatName, Granularity, RateWeights};
use waterfill_codec::Format;

/// How bits are distributed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allocate {
    /// One compressed checkpoint for each lambda: nats of loss per token for one bit of the file. A list, or `{from, to,
    /// points}`, evenly spaced by logarithms.
    #[serde(default, deserialize_with = "crate::lambdas::read")]
    #[schemars(with = "crate::lambdas::Lambdas")]
    pub lambdas: Vec<f64>,
    /// One compressed checkpoint for each size.
    #[serde(default)]
    pub sizes: Vec<Size>,
    /// Formats that may be used; int2, int3 and fp4 with `experimental` only.
    #[serde(default = "default_formats")]
    pub formats: Vec<FormatName>,
    /// `safe` gives embedding, q, k, v and head at least the quality of FP8.
    #[serde(default)]
    pub policy: PolicyName,
    /// Least quality of further tensors.
    #[serde(default)]
    pub floors: Vec<Floor>,
    /// Share by which predicted losses are raised before they are weighed against bits.
    #[serde(default)]
    pub margin: f64,
    /// No tensor counts as less sensitive than this share of the median tensor, by the predicted
    /// loss of erasing it: the quadratic model underrates saturated attention.
    #[serde(default = "default_sensitivity_floor")]
    pub sensitivity_floor: f64,
    /// What quantization at two losses loses on held-out text of the calibration: of all tensors together, for
    /// predictions of KL, and of groups of them alone, to correct the group's predicted loss by the measured one.
    #[serde(default = "default_probes")]
    pub probes: Probes,
    /// Groups of tensors of each compressed checkpoint that are measured on held-out text, for a second allocation of
    /// the same bytes. The better one is kept, or a uniform allocation if that is better still.
    #[serde(default)]
    pub closed_loop: Probes,
    /// How the folds of the calibration combine.
    #[serde(default)]
    pub fold_rule: FoldRule,
    /// Which weights share scales and steps: `tile` (one step for each tile), `row-column` (also a scale for each row and
    /// column), or as other runtimes do it in linear layers: `tensor`, `channel` (a row), `group:N` (N columns of a row).
    #[serde(default)]
    pub granularity: Granularity,
    /// How bits in the file and bits in memory count. Absent, those of the file, or those in memory where `sizes` are sizes
    /// in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateWeights>,
}

impl Allocate {
    /// How bits in the file and bits in memory count.
    pub fn rate(&self) -> RateWeights {
        let in_memory = self.lambdas.is_empty() && self.sizes.iter().all(|size| size.is_resident());
        match self.rate {
            Some(rate) => rate,
            None if in_memory && !self.sizes.is_empty() => RateWeights { storage: 0.0, resident: 1.0 },
            None => RateWeights::default(),
        }
    }
}

/// Groups of tensors whose loss is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Probes {
    /// Nothing: losses are taken as predicted.
    #[default]
    None,
    /// All tensors together.
    Together,
    /// All tensors of one role, such as `q_proj`.
    Roles,
    /// Every tensor by itself.
    Tensors,
}

/// A wanted size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// Bits of the file over all weights.
    BitsPerWeight(f64),
    /// Bytes of the file.
    Bytes(u64),
    /// Bits in a runtime's memory over all weights: linear layers, embedding and head in packed tiles, other tensors as they
    /// are.
    ResidentBitsPerWeight(f64),
    /// The same in gigabytes of 10^9 bytes: a budget that is not exceeded. Activations and caches are not in it.
    ResidentGb(f64),
    /// Both at once: gigabytes in memory and bytes of the file, neither of which is exceeded.
    Within {
        /// As `resident_gb`.
        resident_gb: f64,
        /// As `bytes`.
        bytes: u64,
    },
}

impl Size {
    /// Whether it limits memory.
    pub fn is_resident(&self) -> bool {
        matches!(self, Self::ResidentBitsPerWeight(_) | Self::ResidentGb(_) | Self::Within { .. })
    }
}

/// A predefined set of floors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// No floors.
    #[default]
    Free,
    /// FP8 or better for embedding, q, k, v and head.
    Safe,
}

/// Least quality of the tensors that a pattern matches.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// Glob over tensor names, such as `*.layers.0.*`.
    pub pattern: String,
    /// Formats below this one are not used, and each matrix loses at most what its tiles would in it.
    pub at_least: FormatName,
}

fn default_formats() -> Vec<FormatName> {
    [Format::Int4, Format::Int8, Format::Fp8, Format::Lossless].map(FormatName).into()
}
fn default_probes() -> Probes {
    Probes::Together
}
fn default_sensitivity_floor() -> f64 {
    0.3
}
