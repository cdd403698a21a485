//! Rate-distortion candidates of tiles.

use waterfill_codec::{Format, Loss, Rate, TensorPlan};
use waterfill_quadratic::LossWeights;

/// One way to code a tile, as a point of rate and distortion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RdCandidate {
    /// Number format; of integer formats the narrowest that holds the levels.
    pub format: Format,
    /// Step index, quarter octaves over the plan's base.
    pub step: i16,
    /// Bits of a sample in a runtime's memory: of integers, what their largest level needs
    /// ([`waterfill_checkpoint::packed::PackedFormat`]).
    pub width: u8,
    /// Distortion: predicted loss, nats per token.
    pub loss: Loss,
    /// Estimated coded bits of the samples, without the tile's header.
    pub rate: Rate,
}

/// Rate-distortion candidates of every tile of one weight matrix.
#[derive(Debug, Clone)]
pub struct TensorCandidates {
    /// Row and column scales and spreads; tile formats and steps are still open.
    pub plan: TensorPlan,
    /// Candidates of every tile, in raster order.
    pub tiles: Candidates,
    /// Costs of errors, without error feedback.
    pub loss_weights: LossWeights,
}

/// Candidates of the tiles of a weight matrix, in raster order. Models have millions of tiles with dozens of candidates
/// each, hence an array for each field.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Candidates {
    /// Where each tile's candidates end.
    pub(crate) ends: Vec<usize>,
    pub(crate) formats: Vec<Format>,
    pub(crate) steps: Vec<i16>,
    pub(crate) widths: Vec<u8>,
    pub(crate) losses: Vec<f32>,
    pub(crate) rates: Vec<f32>,
}

impl Candidates {
    /// Adds a tile.
    pub fn push(&mut self, candidates: impl IntoIterator<Item = RdCandidate>) {
        for candidate in candidates {
            self.formats.push(candidate.format);
            self.steps.push(candidate.step);
            self.widths.push(candidate.width);
            self.losses.push(candidate.loss.0 as f32);
            self.rates.push(candidate.rate.0 as f32);
        }
        self.ends.push(self.formats.len());
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.ends.len()
    }

    /// Candidates of tile `n`.
    pub fn tile(&self, n: usize) -> impl Iterator<Item = RdCandidate> + Clone {
        let start = n.checked_sub(1).map_or(0, |before| self.ends[before]);
        (start..self.ends[n]).map(|i| RdCandidate {
            format: self.formats[i],
            step: self.steps[i],
            width: self.widths[i],
            loss: Loss(self.losses[i].into()),
            rate: Rate(self.rates[i].into()),
        })
    }
}

/// What a floor counts for a tile: the loss of the floor's format with its best step.
pub(crate) fn floor_loss(candidates: impl Iterator<Item = RdCandidate>, floor: Format) -> f64 {
    let matching = |p: &RdCandidate| match floor {
        Format::Int8 => p.format.level_range().is_some(),
        other => p.format == other,
    };
    candidates.filter(matching).map(|p| p.loss.0).fold(f64::INFINITY, f64::min)
}
