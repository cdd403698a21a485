//! The `baseline` section: a common quantizer to compare with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calibrate::default_block;

/// Codes of a fixed width for all matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// How codes are chosen.
    pub method: BaselineMethod,
    /// Widths of codes, 2 to 8; one checkpoint for each.
    pub bits: Vec<u32>,
    /// Columns of a row that share a scale; for `gptq`.
    #[serde(default = "default_block")]
    pub group: usize,
}

/// How codes of a fixed width are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BaselineMethod {
    /// Rounding to the nearest, with one scale for each 16x16 tile.
    Absmax,
    /// FP8 E4M3 with one scale for each 16x16 tile; eight bits.
    Fp8,
    /// GPTQ error feedback in the columns' own order, with one scale for each group of a row.
    Gptq,
}
