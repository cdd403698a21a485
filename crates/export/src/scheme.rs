//! Quantization schemes of compressed-tensors.

use serde::{Deserialize, Serialize};

/// How a matrix is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scheme {
    /// Bits of a code, 4 or 8.
    pub bits: u32,
    /// Whether codes are FP8 E4M3 instead of integers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub float: bool,
    /// Columns that share a scale; a whole row without.
    pub group: Option<usize>,
}

impl Scheme {
    /// Schemes of integers that vLLM has kernels for.
    pub const ALL: [Self; 4] = [
        Self { bits: 4, float: false, group: Some(128) },
        Self { bits: 4, float: false, group: Some(32) },
        Self { bits: 8, float: false, group: None },
        Self { bits: 8, float: false, group: Some(128) },
    ];

    /// Name in tables, such as `int4-g128`.
    pub fn name(self) -> String {
        let number = if self.float { "fp" } else { "int" };
        self.group.map_or_else(|| format!("{number}{}", self.bits), |g| format!("{number}{}-g{g}", self.bits))
    }

    /// Whether rows of `cols` weights have whole groups and words.
    pub fn fits(self, cols: usize) -> bool {
        cols.is_multiple_of(self.group.unwrap_or(1)) && cols.is_multiple_of(32)
    }

    /// Bytes of codes and scales.
    pub fn bytes(self, rows: usize, cols: usize) -> u64 {
        (rows * cols * self.bits as usize / 8 + 2 * rows * cols.div_ceil(self.group.unwrap_or(cols))) as u64
    }
}
