//! Diagonal model: a weight of the squared error for every entry of a matrix.

/// Fisher information of a weight matrix `[rows, cols]`, summed three ways (true Fisher: labels drawn from the
/// model, Kunstner et al. 2019).
#[derive(Debug, Clone, Copy)]
pub struct FisherSums<'a> {
    /// By tile, in raster order.
    pub tiles: &'a [f64],
    /// By row.
    pub rows: &'a [f64],
    /// By column.
    pub cols: &'a [f64],
}

/// Costs of errors of a weight matrix: an error `e` at `(i, j)` in tile `t` loses `tiles[t] rows[i] cols[j] e²`
/// nats per token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossWeights {
    /// By tile, in raster order.
    pub tiles: Vec<f32>,
    /// By row, around one.
    pub rows: Vec<f32>,
    /// By column, around one.
    pub cols: Vec<f32>,
    /// Of an embedding, the share of each row's weight that comes from looking the row up, where errors of columns
    /// do not add up; else empty.
    pub lookup: Vec<f32>,
}

impl LossWeights {
    /// Half the Fisher information: `1/2 F_ij = tiles[t] rows[i] cols[j]`, each tile's sum spread over its entries in
    /// proportion to the sums of their rows and columns. Tiles are `tile` on a side.
    pub fn from_fisher(fisher: FisherSums, lookup: Vec<f32>, tile: usize) -> Self {
        let across = fisher.cols.len().div_ceil(tile);
        // Rows and columns around one: products of single-precision numbers stay in range.
        let normal = |by: &[f64]| {
            let mean = (by.iter().sum::<f64>() / by.len().max(1) as f64).max(f64::MIN_POSITIVE);
            by.iter().map(|v| (v / mean) as f32).collect::<Vec<f32>>()
        };
        let (rows, cols) = (normal(fisher.rows), normal(fisher.cols));
        let part = |by: &[f32], n: usize| by[n * tile..by.len().min((n + 1) * tile)].iter().sum::<f32>();
        let tiles = fisher.tiles.iter().enumerate().map(|(n, fisher)| {
            let sum = f64::from(part(&rows, n / across)) * f64::from(part(&cols, n % across));
            // Relative to their means rows may be too small for single precision: nothing is known of such a tile.
            if sum > 0.0 { (0.5 * fisher / sum) as f32 } else { 0.0 }
        });
        Self { tiles: tiles.collect(), rows, cols, lookup }
    }

    /// Share of the whole matrix' weight that comes from looking rows up; 0 of other matrices than embeddings.
    pub fn lookup_share(&self) -> f64 {
        let all: f64 = self.rows.iter().map(|&r| f64::from(r)).sum();
        let part: f64 = self.rows.iter().zip(&self.lookup).map(|(&r, &s)| f64::from(r * s)).sum();
        part / all.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of a tile sum to half its information, whatever its place.
    #[test]
    fn a_tile_keeps_its_information() {
        let rows: Vec<f64> = (0..5).map(|i| 1.0 + f64::from(i)).collect();
        let cols: Vec<f64> = (0..7).map(|j| 2.0 + f64::from(j % 3)).collect();
        let tiles: Vec<f64> = (0..6).map(|t| 0.5 + f64::from(t)).collect();
        let fisher = FisherSums { tiles: &tiles, rows: &rows, cols: &cols };
        let weights = LossWeights::from_fisher(fisher, vec![], 3);
        let mut sums = [0.0; 6];
        for i in 0..5 {
            for j in 0..7 {
                let t = i / 3 * 3 + j / 3;
                sums[t] += f64::from(weights.tiles[t] * weights.rows[i] * weights.cols[j]);
            }
        }
        sums.iter().zip(&tiles).for_each(|(sum, t)| assert!((sum - t / 2.0).abs() < 1e-5, "{sum} {t}"));
    }
}
