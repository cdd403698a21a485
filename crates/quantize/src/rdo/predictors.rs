//! Predictors that a tile may have.

use waterfill_codec::{Predictor, TILE};

use super::tile::{Target, TileSearch};
use super::tools::Tool;

impl TileSearch<'_> {
    /// Predictors worth looking at for a tile; none first, which skipping needs.
    pub(super) fn predictors(&self, n: usize, target: &Target) -> Vec<Predictor> {
        let (rows, cols) = self.slice.tile_range(n);
        let (first_row, first_col) = (rows.start == self.slice.rows.start, cols.start == 0);
        let mut list = vec![Predictor::None];
        let mut add = |tool: Tool, possible: bool, predictor: Predictor| {
            if possible && self.input.tools.contains(&tool) {
                list.push(predictor);
            }
        };
        add(Tool::Left, !first_col, Predictor::Left);
        add(Tool::Top, !first_row, Predictor::Top);
        add(Tool::RowMean, !first_col, Predictor::RowMean);
        add(Tool::ColMean, !first_row, Predictor::ColMean);
        let has_linear = self.slice.plan.parameters.linear != [0; 3];
        add(Tool::Linear, has_linear && !(first_row && first_col), Predictor::Linear);
        let mean = target.values[..target.count].iter().sum::<f32>() / target.count as f32;
        add(Tool::Constant, mean.abs() >= 0.5, Predictor::Constant(mean.round().clamp(-127.0, 127.0) as i16));
        for index in 0..self.slice.plan.parameters.dictionary.len() {
            add(Tool::Dictionary, true, Predictor::Dictionary(index as u8));
        }
        if self.uses(Tool::RowCopy) {
            list.extend(self.nearest_row(n, target).map(Predictor::Row));
        }
        let square = target.count == TILE * TILE && self.slice.plan.tile == TILE;
        if self.uses(Tool::RankOne) && square {
            list.extend(rank_one(target));
        }
        list
    }

    /// Distance of the earlier row that is nearest to the mean of the tile's rows.
    fn nearest_row(&self, n: usize, target: &Target) -> Option<u16> {
        let (rows, cols) = self.slice.tile_range(n);
        let width = cols.len();
        let mut mean = [0.0; 64];
        for line in target.values[..target.count].chunks_exact(width) {
            line.iter().zip(&mut mean).for_each(|(v, m)| *m += v / rows.len() as f32);
        }
        let step = self.slice.tiles[n].step;
        let most = (rows.start - self.slice.rows.start).min(32);
        let distance = |d: usize| {
            let values = cols.clone().map(|col| self.planes.value(&self.slice, rows.start - d, col, step));
            values.zip(&mean).map(|(p, m)| (p as f32 - m).powi(2)).sum::<f32>()
        };
        let measured = (1..=most).map(|d| (distance(d), d));
        measured.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, d)| d as u16)
    }
}

/// Outer product nearest to the tile, by power iteration.
fn rank_one(target: &Target) -> Option<Predictor> {
    let mut v = [1.0f32; TILE];
    let mut u = [0.0f32; TILE];
    for _ in 0..4 {
        for (i, u) in u.iter_mut().enumerate() {
            *u = (0..TILE).map(|j| target.values[i * TILE + j] * v[j]).sum();
        }
        let norm = u.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
        u.iter_mut().for_each(|x| *x /= norm);
        for (j, v) in v.iter_mut().enumerate() {
            *v = (0..TILE).map(|i| target.values[i * TILE + j] * u[i]).sum();
        }
    }
    // Predictions are products over 64: balance the factors.
    let peak = |x: &[f32; TILE]| x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let (top, side) = (peak(&u), peak(&v));
    if top * side < 0.5 {
        return None;
    }
    let factor = (64.0 * side / top).sqrt();
    let quantize = |x: f32| x.round().clamp(-127.0, 127.0) as i8;
    Some(Predictor::RankOne(u.map(|x| quantize(x * factor)), v.map(|x| quantize(x * 64.0 / factor))))
}
