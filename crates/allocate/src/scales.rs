//! Row and column scales from sensitivities, and the spread model of the entropy coder from
//! weights.

use waterfill_calibrate::Sensitivity;
use waterfill_codec::encoder::sigma_fit;
use waterfill_codec::encoder::sigma_fit::{fit_sigma, quarter_octaves, rms, sigma_vector};
use waterfill_codec::{Dtype, TILE, TensorPlan, TilePlan, scale};

use crate::factor::Factor;
use crate::policy::{Granularity, ShardRule};

/// Largest row or column index, quarter octaves: three octaves either way.
const MAX_SCALE: f64 = 12.0;
/// One weight matrix with its Fisher information in the form that allocation uses.
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
    /// `unseen` is the share of a row's information that half an unseen token stands for
    /// (Krichevsky & Trofimov 1981): rows of tokens that did not occur are not free.
    pub fn new(sensitivity: &Sensitivity, rule: ShardRule, unseen: f64) -> Self {
        let (rows, cols) = (sensitivity.row_fisher.len(), sensitivity.col_fisher.len());
        let across = cols.div_ceil(TILE);
        let total: f64 = sensitivity.row_fisher.sum().max(f64::MIN_POSITIVE);
        let by_row: Vec<f64> = sensitivity.row_fisher.iter().map(|&f| f + unseen * total).collect();
        // A dead column still must not get an infinite step.
        let least = total / cols as f64 * 1e-6;
        let by_col: Vec<f64> = sensitivity.col_fisher.iter().map(|&f| f.max(least)).collect();
        let sum_cols: f64 = by_col.iter().sum();
        let shards = &sensitivity.tile_fisher;
        let tiles = (0..rows.div_ceil(TILE) * across)
            .map(|n| {
                let (row, col) = (n / across, n % across);
                let values = shards.iter().map(|s| s[[row, col]]);
                let fisher = match rule {
                    ShardRule::Mean => values.sum::<f64>() / shards.len() as f64,
                    ShardRule::Worst => values.fold(0.0, f64::max),
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

    /// With error feedback a column's errors cost D_j instead of H_jj.
    pub fn feed_back(&mut self, factor: &Factor) {
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
}

/// Everything of a plan that does not depend on lambda: scales, spreads, bases; tiles hold their
/// spread and nothing else yet.
pub(crate) fn plan_scales(info: &Information, weights: &[f32], dtype: Dtype, granularity: Granularity) -> TensorPlan {
    let (rows, cols) = (info.rows, info.cols);
    let (mut row_scale, mut col_scale) = (Vec::new(), Vec::new());
    if granularity != Granularity::Tile {
        row_scale = water_fill(&info.by_row, cols);
    }
    if granularity == Granularity::RowColumn {
        col_scale = water_fill(&info.by_col, rows);
    }
    let (row_rms, col_rms) = fit_sigma(weights, rows, cols);
    let row_sigma = sigma_vector(&row_rms, cols);
    let col_sigma = sigma_vector(&col_rms, rows);
    let sigma = |i: usize, j: usize| {
        let entry = |v: &[i8], n: usize| v.get(n).map_or(0.0, |&x| f64::from(x));
        ((entry(&row_sigma, i) + entry(&col_sigma, j)) / 4.0).exp2()
    };
    let all = rms(weights.iter().enumerate().map(|(n, &w)| f64::from(w) / sigma(n / cols, n % cols)));
    // The base step is a quarter of the spread: near three bits, where tile indices are small.
    let step_base = (scale::nearest_index(all) - 16).clamp(-scale::MAX_INDEX / 2, scale::MAX_INDEX / 2);
    let sigma_base = ((all.max(f64::MIN_POSITIVE).log2() * 8.0 - f64::from(step_base)) / 2.0).round();
    let mut plan = TensorPlan {
        step_base,
        sigma_base: sigma_base.clamp(-1000.0, 1000.0) as i32,
        row_scale,
        col_scale,
        row_sigma: row_sigma.clone(),
        col_sigma: col_sigma.clone(),
        ..TensorPlan::uniform(dtype, rows, cols, TilePlan::default())
    };
    let across = plan.tiles_across();
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        let (top, left) = (n / across * TILE, n % across * TILE);
        let inside = (top..rows.min(top + TILE)).flat_map(|i| (left..cols.min(left + TILE)).map(move |j| (i, j)));
        let tile_rms = rms(inside.map(|(i, j)| f64::from(weights[i * cols + j]) / sigma(i, j)));
        tile.sigma = quarter_octaves(tile_rms / all, 40.0) as i16;
    }
    plan
}

/// Steps proportional to 1/sqrt(information) around its geometric mean: reverse water-filling for
/// components that are all above the water. Empty when the gain, half of log2(arithmetic over
/// geometric mean) bits for each of `others` weights an entry has, does not pay for the entries.
pub fn water_fill(information: &[f64], others: usize) -> Vec<i8> {
    let mean = information.iter().sum::<f64>() / information.len() as f64;
    let log_mean = information.iter().map(|v| v.log2()).sum::<f64>() / information.len() as f64;
    if (mean.log2() - log_mean) / 2.0 * others as f64 <= sigma_fit::ENTRY_BITS {
        return Vec::new();
    }
    information.iter().map(|v| (-2.0 * (v.log2() - log_mean)).round().clamp(-MAX_SCALE, MAX_SCALE) as i8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_follow_the_inverse_root_of_the_information() {
        let information: Vec<f64> = (0..64).map(|i| if i % 2 == 0 { 1.0 } else { 16.0 }).collect();
        let scales = water_fill(&information, 1000);
        // A factor of 16 in information is a factor of 4 in step: 8 quarter octaves.
        assert!(scales.iter().enumerate().all(|(i, &s)| s == if i % 2 == 0 { 4 } else { -4 }), "{scales:?}");
        assert!(water_fill(&[1.0; 64], 1000).is_empty());
        assert!(water_fill(&information, 2).is_empty(), "two weights a row cannot pay for its scale");
    }
}
