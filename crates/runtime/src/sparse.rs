//! Products with 2:4 sparse refinements.

use rayon::prelude::*;
use waterfill_checkpoint::sparse::{FOUR, SparseTensor};
use waterfill_codec::TILE;

/// A refinement that is multiplied without its zeros.
pub struct SparseLinear(SparseTensor);

impl SparseLinear {
    /// From levels and places.
    pub fn new(tensor: SparseTensor) -> Self {
        Self(tensor)
    }

    /// The levels.
    pub fn tensor(&self) -> &SparseTensor {
        &self.0
    }

    /// Adds `x` `[tokens, cols]` times the transposed matrix to `out` `[tokens, rows]`: half the products of a dense one.
    /// Every row is computed in one order, so the result does not depend on the number of threads.
    pub fn add_to(&self, x: &[f32], out: &mut [f32]) {
        let SparseTensor { rows, cols, row_scales, col_scales, scales, levels, .. } = &self.0;
        let (groups, across) = (self.0.groups(), cols.div_ceil(TILE));
        let width = groups * FOUR;
        // Whole groups of inputs with the columns' scales.
        let mut inputs = vec![0.0; x.len() / (*cols).max(1) * width];
        for (to, from) in inputs.chunks_exact_mut(width).zip(x.chunks_exact(*cols)) {
            to[..*cols].copy_from_slice(from);
            to.iter_mut().zip(col_scales).for_each(|(v, s)| *v *= s);
        }
        let row = |r: usize| -> Vec<f32> {
            let places: Vec<[usize; 2]> = (0..groups).map(|g| self.0.place(r, g)).collect();
            let levels = &levels[r * groups * 2..][..groups * 2];
            let scales = &scales[r / TILE * across..][..across];
            let row_scale = row_scales.get(r).copied().unwrap_or(1.0);
            let token = |x: &[f32]| {
                let tile = |(n, scale): (usize, &f32)| {
                    let groups = n * TILE / FOUR..groups.min((n + 1) * TILE / FOUR);
                    let product = |g: usize| {
                        let [a, b] = places[g];
                        let four = &x[g * FOUR..][..FOUR];
                        f32::from(levels[2 * g]) * four[a] + f32::from(levels[2 * g + 1]) * four[b]
                    };
                    scale * groups.map(product).sum::<f32>()
                };
                row_scale * scales.iter().enumerate().map(tile).sum::<f32>()
            };
            inputs.chunks_exact(width).map(token).collect()
        };
        let products: Vec<Vec<f32>> = (0..*rows).into_par_iter().map(row).collect();
        for (r, tokens) in products.iter().enumerate() {
            tokens.iter().enumerate().for_each(|(t, value)| out[t * rows + r] += value);
        }
    }
}
