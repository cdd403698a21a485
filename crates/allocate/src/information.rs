//! Fisher information of a matrix, in the form that allocation uses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_calibrate::Sensitivity;
use waterfill_codec::TILE;
use waterfill_quadratic::{FisherSums, LdlFactor, LossWeights};

/// How the sensitivities of several calibration folds combine, tile by tile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FoldRule {
    /// Their mean.
    #[default]
    Mean,
    /// The largest.
    Worst,
}

/// Fisher information of one weight matrix `[rows, cols]`, with what calibration cannot have seen added.
pub(crate) struct Information {
    pub rows: usize,
    pub cols: usize,
    /// Fisher information by tile, raster order.
    pub tiles: Vec<f64>,
    /// By row and by column: within a tile, entries are proportional to their product.
    pub by_row: Vec<f64>,
    pub by_col: Vec<f64>,
    /// Share of each row that comes from looking it up; empty but for embeddings.
    pub lookup: Vec<f32>,
}

impl Information {
    /// `unseen` is the share of the matrix' information that is added to every row: errors in rows of tokens that did not
    /// occur are not free.
    pub fn new(sensitivity: &Sensitivity, rule: FoldRule, unseen: f64) -> Self {
        let (rows, cols) = (sensitivity.row_fisher.len(), sensitivity.col_fisher.len());
        let across = cols.div_ceil(TILE);
        let total: f64 = sensitivity.row_fisher.sum().max(f64::MIN_POSITIVE);
        let by_row: Vec<f64> = sensitivity.row_fisher.iter().map(|&f| f + unseen * total).collect();
        // A dead column still must not get an infinite step.
        let least = total / cols as f64 * 1e-6;
        let by_col: Vec<f64> = sensitivity.col_fisher.iter().map(|&f| f.max(least)).collect();
        let sum_cols: f64 = by_col.iter().sum();
        let folds = &sensitivity.tile_fisher;
        let tiles = (0..rows.div_ceil(TILE) * across)
            .map(|n| {
                let (row, col) = (n / across, n % across);
                let values = folds.iter().map(|s| s[[row, col]]);
                let fisher = match rule {
                    FoldRule::Mean => values.sum::<f64>() / folds.len() as f64,
                    FoldRule::Worst => values.fold(0.0, f64::max),
                };
                let height = TILE.min(rows - row * TILE) as f64;
                let width: f64 = by_col[col * TILE..cols.min((col + 1) * TILE)].iter().sum();
                fisher + unseen * total * height * width / sum_cols
            })
            .collect();
        let share = |(&part, &all): (&f64, &f64)| (part / all.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0) as f32;
        let lookup = sensitivity.lookup_row_fisher.as_ref();
        let lookup = lookup.map_or(vec![], |l| l.iter().zip(&sensitivity.row_fisher).map(share).collect());
        Self { rows, cols, tiles, by_row, by_col, lookup }
    }

    /// With error feedback an error of column j costs D_j instead of H_jj (see [`LdlFactor`]).
    pub fn apply_feedback(&mut self, factor: &LdlFactor) {
        let across = self.cols.div_ceil(TILE);
        for first in 0..across {
            let range = first * TILE..self.cols.min((first + 1) * TILE);
            let before: f64 = self.by_col[range.clone()].iter().sum();
            for j in range.clone() {
                self.by_col[j] *= factor.share(j);
            }
            let share = self.by_col[range].iter().sum::<f64>() / before.max(f64::MIN_POSITIVE);
            self.tiles.iter_mut().skip(first).step_by(across).for_each(|t| *t *= share);
        }
    }

    /// Costs of errors: half the information.
    pub fn loss_weights(&self) -> LossWeights {
        let sums = FisherSums { tiles: &self.tiles, rows: &self.by_row, cols: &self.by_col };
        LossWeights::from_fisher(sums, self.lookup.clone(), TILE)
    }
}
