//! The `encode` section: preset, tools, error feedback, trellis and quality layers.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_codec::{BitShiftTrellis, Trellis};
use waterfill_quantize::rdo::{Preset, Tool};

use crate::quality_layers::QualityLayers;

/// How tiles are coded: a preset, and tools added to it or taken from it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Encode {
    /// `fast` codes tiles as allocated, `balanced` searches with the tools that pay, `best` with all that
    /// do not lose quality.
    pub preset: Preset,
    /// Tools to add; experimental ones with `experimental` only.
    pub with: Vec<Tool>,
    /// Tools to take away.
    pub without: Vec<Tool>,
    /// Whether the error of each column is fed back into the columns after it (LDLQ).
    pub feedback: bool,
    /// Added to H and to the gradient covariance, in units of each entry of the diagonal, which shrinks correlations; chosen
    /// for each matrix from the calibration if absent.
    pub damping: Option<f64>,
    /// States of the trellis, a power of two from 4 to 256; 0 quantizes without a trellis. Where memory comes first, those of
    /// the bit-shift trellis of planes, 256 to 65536; 0 for uniform levels. The preset decides if absent.
    pub states: Option<usize>,
    /// Share of lambda by which levels are chosen for their rate (RDOQ).
    pub rounding: f32,
    /// Codes tensors one after the other and adjusts the weights that are not coded yet, on calibration text, to
    /// compensate the loss of those that are. Holds all weights in memory.
    pub sequential: Option<Sequential>,
    /// Several layers of quality in one checkpoint: a base, and refinements in separate shards that can be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality_layers: Option<QualityLayers>,
}

/// How weights that are not coded yet are adjusted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sequential {
    /// Batches of 2048 tokens after every part of a block: q, k and v; o; gate and up; down.
    pub steps: usize,
    /// Largest step of a weight as a share of its likely quantization error.
    pub rate: f64,
}

impl Default for Sequential {
    fn default() -> Self {
        Self { steps: 10, rate: 0.015 }
    }
}

impl Default for Encode {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            with: vec![],
            without: vec![],
            feedback: true,
            damping: None,
            states: None,
            rounding: 0.3,
            sequential: None,
            quality_layers: None,
        }
    }
}

impl Encode {
    /// The configured bit-shift trellis of planes of a fixed width, or the one of the preset.
    pub fn bit_shift(&self) -> Option<BitShiftTrellis> {
        let preset = match self.preset {
            Preset::Fast => 0,
            Preset::Balanced => 1 << 12,
            Preset::Best => 1 << 14,
        };
        let states = self.states.unwrap_or(preset);
        if states.is_power_of_two() { BitShiftTrellis::new(states.trailing_zeros()) } else { None }
    }

    /// The configured trellis, or the one of the preset.
    pub fn trellis(&self) -> Option<Trellis> {
        let preset = match self.preset {
            Preset::Fast => 0,
            Preset::Balanced => 8,
            Preset::Best => 256,
        };
        let states = self.states.unwrap_or(preset);
        if states.is_power_of_two() { Trellis::new(states.trailing_zeros()) } else { None }
    }

    /// Coding tools that the search uses.
    pub fn tools(&self) -> BTreeSet<Tool> {
        let mut tools = self.preset.tools();
        tools.extend(&self.with);
        tools.retain(|t| !self.without.contains(t));
        tools
    }
}
