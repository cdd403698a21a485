//! Points of many tiles in little memory: an array for each field.

use waterfill_codec::{Format, Loss, Rate};

use crate::points::Point;

/// Points of the tiles of a weight matrix, in raster order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Candidates {
    /// Where each tile's points end.
    pub(crate) ends: Vec<usize>,
    pub(crate) formats: Vec<Format>,
    pub(crate) steps: Vec<i16>,
    pub(crate) losses: Vec<f32>,
    pub(crate) rates: Vec<f32>,
}

impl Candidates {
    /// Adds a tile.
    pub fn push(&mut self, points: impl IntoIterator<Item = Point>) {
        for point in points {
            self.formats.push(point.format);
            self.steps.push(point.step);
            self.losses.push(point.loss.0 as f32);
            self.rates.push(point.rate.0 as f32);
        }
        self.ends.push(self.formats.len());
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.ends.len()
    }

    /// Points of tile `n`.
    pub fn tile(&self, n: usize) -> impl Iterator<Item = Point> + Clone {
        let start = n.checked_sub(1).map_or(0, |before| self.ends[before]);
        (start..self.ends[n]).map(|i| Point {
            format: self.formats[i],
            step: self.steps[i],
            loss: Loss(self.losses[i].into()),
            rate: Rate(self.rates[i].into()),
        })
    }
}
