//! Limits of an allocation, and the weights of its rate.

use std::collections::BTreeMap;

use globset::{Glob, GlobMatcher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_codec::{Dtype, Format, TILE};

use crate::error::{AllocateError, Result};
use crate::structure::{FormatCosts, Sharing, Structure};

/// Least quality of the matrices with names that match a pattern.
#[derive(Debug, Clone)]
pub struct Floor {
    matcher: GlobMatcher,
    /// Formats below this one are not used, and a matrix loses at most what its tiles would in this one.
    pub at_least: Format,
}

impl Floor {
    /// A floor for names that match a glob such as `*.q_proj.weight`.
    ///
    /// # Errors
    /// A pattern that is not a glob.
    pub fn new(pattern: &str, at_least: Format) -> Result<Self> {
        let failed = |e: globset::Error| AllocateError::Pattern { pattern: pattern.into(), reason: e.to_string() };
        Ok(Self { matcher: Glob::new(pattern).map_err(failed)?.compile_matcher(), at_least })
    }
}

/// Weights of a bit in the file and of a bit in memory: rate = storage * file bits + resident * memory bits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateWeights {
    /// Bits of the file.
    #[serde(default = "default_storage")]
    pub storage: f64,
    /// Bits in a runtime's memory.
    #[serde(default)]
    pub resident: f64,
}

fn default_storage() -> f64 {
    1.0
}

impl RateWeights {
    /// Whether bits in memory come first. Then levels take planes of a fixed width, with steps and scales that suit it, and
    /// quantization keeps what allocation chose; else steps follow from lambda and what they cost when they are coded.
    pub fn memory_first(&self) -> bool {
        self.resident > 0.0 && self.resident >= self.storage
    }
}

impl Default for RateWeights {
    fn default() -> Self {
        Self { storage: default_storage(), resident: 0.0 }
    }
}

/// Limits of an allocation, and the weights of its rate.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Formats that may be used.
    pub formats: Vec<Format>,
    /// Least quality by name; the highest that matches holds.
    pub floors: Vec<Floor>,
    /// Predicted losses are multiplied by 1 + margin.
    pub margin: f64,
    /// Weights of bits in the file and in memory.
    pub rate: RateWeights,
    /// Measured factors of predicted losses, by weight.
    pub corrections: BTreeMap<String, f64>,
    /// Matrices that are to have one format each.
    pub structure: Option<Structure>,
}

impl Policy {
    /// Factor of a weight's predicted losses.
    pub fn correction(&self, weight: &str) -> f64 {
        self.corrections.get(weight).copied().unwrap_or(1.0)
    }

    /// Floor of a weight.
    pub fn floor(&self, weight: &str) -> Option<Format> {
        let matching = self.floors.iter().filter(|f| f.matcher.is_match(weight));
        matching.map(|f| f.at_least).max_by_key(|&f| rank(f))
    }

    /// This policy with one format for each set of matrices: the one of lowest summed J among those that all of the set can
    /// have. Sets without such a format get none, and [`crate::select_weight`] then fails.
    pub fn with_formats<'a>(&self, costs: impl IntoIterator<Item = (&'a str, FormatCosts)>) -> Self {
        let Some(structure) = &self.structure else { return self.clone() };
        let mut sets: BTreeMap<&str, Vec<(&str, FormatCosts)>> = BTreeMap::new();
        for (name, costs) in costs {
            if let Some(set) = structure.sets.get(name) {
                sets.entry(set).or_default().push((name, costs));
            }
        }
        let mut formats = BTreeMap::new();
        for members in sets.values() {
            let total = |format: &Format| members.iter().map(|(_, costs)| costs.get(format)).sum::<Option<f64>>();
            let possible = self.formats.iter().filter_map(|f| Some((total(f)?, *f)));
            if let Some((_, format)) = possible.min_by(|a, b| a.0.total_cmp(&b.0)) {
                formats.extend(members.iter().map(|(name, _)| (name.to_string(), format)));
            }
        }
        Self { structure: Some(Structure { formats, ..structure.clone() }), ..self.clone() }
    }

    /// Which tiles of a matrix share their step; `None` where tiles have formats of their own.
    pub fn sharing(&self, name: &str) -> Option<Sharing> {
        self.structure.as_ref().filter(|s| s.sets.contains_key(name)).map(|s| s.sharing)
    }

    /// Whether a format is allowed for a weight with this floor.
    pub fn allows(&self, format: Format, floor: Option<Format>) -> bool {
        self.formats.contains(&format) && floor.is_none_or(|f| rank(format) >= rank(f))
    }
}

/// INT8 and FP8 are of one rank; which loses less depends on the tile.
fn rank(format: Format) -> u8 {
    match format {
        Format::Int2 | Format::Int3 | Format::Int4 | Format::Fp4 => 0,
        Format::Int8 | Format::Fp8 | Format::Fp8E5M2 => 1,
        Format::Lossless => 2,
    }
}

/// Bits that say where a tile is, about: one for each bucket, and what buckets keep for each row of tiles.
const PLACE: f64 = 6.0;

/// Bits of a whole tile of samples of `width` bits in a runtime's memory, with its place and its scale, as
/// [`waterfill_checkpoint::packed::PackedTensor`] holds them.
pub(crate) fn resident_bits(format: Format, width: u8) -> f64 {
    let scale = if format == Format::Lossless { 0.0 } else { 8.0 };
    f64::from(width) * (TILE * TILE) as f64 + PLACE + scale
}

/// Bits of a tile of a matrix that has one format, as other runtimes hold it: its samples.
pub(crate) fn resident_bits_of_format(format: Format, dtype: Dtype, weights: usize) -> f64 {
    format.resident_bits(dtype) * weights as f64
}
