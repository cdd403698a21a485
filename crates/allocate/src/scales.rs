//! Row and column scales from sensitivities, and the spread model of the entropy coder from
//! weights.

use waterfill_calibrate::Sensitivity;
use waterfill_codec::{Dtype, TILE, TensorPlan, TilePlan, scale};

use crate::policy::{Granularity, ShardRule};

/// Largest row or column index, quarter octaves: three octaves either way.
const MAX_SCALE: f64 = 12.0;
/// Bits that an entry of a row or column vector costs, about.
const ENTRY_BITS: f64 = 3.5;

/// One weight matrix with its Fisher information in the form that allocation uses.
pub(crate) struct Information {
    pub rows: usize,
    pub cols: usize,
    /// Fisher information by tile, raster order.
    pub tiles: Vec<f64>,
    /// By row and by column: within a tile, entries are proportional to their product.
    pub by_row: Vec<f64>,
    pub by_col: Vec<f64>,
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
        Self { rows, cols, tiles, by_row, by_col }
    }
}

/// Everything of a plan that does not depend on lambda: scales, spreads, bases; tiles hold their
/// spread and nothing else yet.
pub(crate) fn plan_scales(info: &Information, weights: &[f32], dtype: Dtype, granularity: Granularity) -> TensorPlan {
    let (rows, cols) = (info.rows, info.cols);
    let (mut row_scale, mut col_scale) = (Vec::new(), Vec::new());
    if granularity == Granularity::RowColumn {
        row_scale = water_fill(&info.by_row, cols);
        col_scale = water_fill(&info.by_col, rows);
    }
    let (row_rms, col_rms) = fit_spread(weights, rows, cols);
    let row_spread = spread_vector(&row_rms, cols);
    let col_spread = spread_vector(&col_rms, rows);
    let spread = |i: usize, j: usize| {
        let entry = |v: &[i8], n: usize| v.get(n).map_or(0.0, |&x| f64::from(x));
        ((entry(&row_spread, i) + entry(&col_spread, j)) / 4.0).exp2()
    };
    let rms = rms(weights.iter().enumerate().map(|(n, &w)| f64::from(w) / spread(n / cols, n % cols)));
    // The base step is a quarter of the spread: near three bits, where tile indices are small.
    let step_base = (scale::nearest_index(rms) - 16).clamp(-scale::MAX_INDEX / 2, scale::MAX_INDEX / 2);
    let spread_base = ((rms.max(f64::MIN_POSITIVE).log2() * 8.0 - f64::from(step_base)) / 2.0).round();
    let mut plan = TensorPlan {
        dtype,
        rows,
        cols,
        step_base,
        spread_base: spread_base.clamp(-1000.0, 1000.0) as i32,
        row_scale,
        col_scale,
        row_spread: row_spread.clone(),
        col_spread: col_spread.clone(),
        tiles: vec![TilePlan::default(); info.tiles.len()],
    };
    let across = plan.tiles_across();
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        let (top, left) = (n / across * TILE, n % across * TILE);
        let inside = (top..rows.min(top + TILE)).flat_map(|i| (left..cols.min(left + TILE)).map(move |j| (i, j)));
        let tile_rms = self::rms(inside.map(|(i, j)| f64::from(weights[i * cols + j]) / spread(i, j)));
        tile.spread = quarter_octaves(tile_rms / rms, 40.0) as i16;
    }
    plan
}

/// Steps proportional to 1/sqrt(information) around its geometric mean: reverse water-filling for
/// components that are all above the water. Empty when the gain, half of log2(arithmetic over
/// geometric mean) bits for each of `others` weights an entry has, does not pay for the entries.
fn water_fill(information: &[f64], others: usize) -> Vec<i8> {
    let mean = information.iter().sum::<f64>() / information.len() as f64;
    let log_mean = information.iter().map(|v| v.log2()).sum::<f64>() / information.len() as f64;
    if (mean.log2() - log_mean) / 2.0 * others as f64 <= ENTRY_BITS {
        return Vec::new();
    }
    information.iter().map(|v| (-2.0 * (v.log2() - log_mean)).round().clamp(-MAX_SCALE, MAX_SCALE) as i8).collect()
}

/// Root mean squares of a rank-one model of the weights' variances, rows and columns alternately.
fn fit_spread(weights: &[f32], rows: usize, cols: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut row, mut col) = (vec![1.0; rows], vec![1.0f64; cols]);
    for _ in 0..4 {
        let mut sums = vec![0.0; cols];
        for (i, line) in weights.chunks_exact(cols).enumerate() {
            let squares = line.iter().zip(&col).map(|(&w, c)| (f64::from(w) / c).powi(2));
            row[i] = positive((squares.sum::<f64>() / cols as f64).sqrt());
            line.iter().zip(&mut sums).for_each(|(&w, s)| *s += (f64::from(w) / row[i]).powi(2));
        }
        sums.iter().zip(&mut col).for_each(|(s, c)| *c = positive((s / rows as f64).sqrt()));
    }
    (row, col)
}

/// All-zero rows and columns take a spread far below any other.
fn positive(rms: f64) -> f64 {
    if rms > 0.0 { rms } else { 1e-6 }
}

/// Spread indices around the mean; empty when what a Gaussian code gains does not pay for them.
fn spread_vector(rms: &[f64], others: usize) -> Vec<i8> {
    let power = (rms.iter().map(|r| r * r).sum::<f64>() / rms.len() as f64).log2() / 2.0;
    let log_mean = rms.iter().map(|r| r.log2()).sum::<f64>() / rms.len() as f64;
    if (power - log_mean) * others as f64 <= ENTRY_BITS {
        return Vec::new();
    }
    rms.iter().map(|r| quarter_octaves(r / log_mean.exp2(), 60.0) as i8).collect()
}

fn quarter_octaves(ratio: f64, most: f64) -> f64 {
    (4.0 * ratio.max(f64::MIN_POSITIVE).log2()).round().clamp(-most, most)
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for v in values {
        sum += v * v;
        count += 1.0;
    }
    (sum / f64::max(count, 1.0)).sqrt()
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

    #[test]
    fn spreads_are_found_and_zeros_do_no_harm() {
        let weights: Vec<f32> = (0..64 * 32)
            .map(|n| if n / 32 == 5 { 0.0 } else { [1.0, -1.0][n % 2] * if n % 32 < 16 { 4.0 } else { 1.0 } })
            .collect();
        let (row, col) = fit_spread(&weights, 64, 32);
        assert!((col[0] / col[31] - 4.0).abs() < 0.1, "{} {}", col[0], col[31]);
        assert!(row[5] < 1e-3 * row[6]);
        assert!(spread_vector(&col, 64).iter().all(|s| s.abs() == 4));
    }
}
