//! What an allocation may choose and what it pays for.

use std::collections::BTreeMap;

use globset::{Glob, GlobMatcher};
use waterfill_codec::{Dtype, Format};

use crate::error::{AllocateError, Result};
use crate::structure::Structure;

/// Least quality of the weights whose names match a pattern.
#[derive(Debug, Clone)]
pub struct Floor {
    matcher: GlobMatcher,
    /// Formats below this one are not used, and no tile loses more than this format would.
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

/// What a bit is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateWeights {
    /// Price of a bit of the file.
    pub storage: f64,
    /// Price of a bit in a runtime's memory.
    pub resident: f64,
}

/// How the tile sensitivities of several calibration shards combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardRule {
    /// Their mean.
    Mean,
    /// The largest.
    Worst,
}

/// Which scales carry the sensitivities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Tile steps only.
    Tile,
    /// Row and column scales where they pay, and tile steps.
    RowColumn,
    /// Row scales where they pay, and tile steps.
    Row,
}

/// Limits and prices of an allocation.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Formats that may be used.
    pub formats: Vec<Format>,
    /// Least quality by name; the highest that matches holds.
    pub floors: Vec<Floor>,
    /// Predicted losses are multiplied by 1 + margin.
    pub margin: f64,
    /// What a bit is.
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

/// Bits of a tile's samples in a runtime's memory, its step included.
pub(crate) fn resident_bits(format: Format, dtype: Dtype, weights: usize) -> f64 {
    let step = if format == Format::Lossless { 0.0 } else { 8.0 };
    format.resident_bits(dtype) * weights as f64 + step
}
