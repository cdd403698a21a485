//! The loss of errors whose columns add up: 1/2 sum_i a_i e_i H e_i^T.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::Array2;
use waterfill_allocate::Importance;
use waterfill_calibrate::SecondMomentMatrix;

/// The quadratic model of the loss of one matrix.
pub struct QuadraticLoss<'a> {
    importance: &'a Importance,
    tile: usize,
    /// Diagonal blocks of H with their first columns, in units of the importance of columns.
    blocks: Vec<(usize, Array2<f32>)>,
}

impl<'a> QuadraticLoss<'a> {
    /// Without a moment, errors of different columns do not add up.
    pub fn new(importance: &'a Importance, tile: usize, moment: Option<&SecondMomentMatrix>) -> Self {
        let blocks = moment.map_or(Vec::new(), |moment| {
            let (wanted, found): (f32, f32) = (importance.cols.iter().sum(), moment.diagonal.sum());
            let unit = if found > 0.0 { wanted / found } else { 0.0 };
            (0..moment.blocks()).map(|n| (moment.range(n).start, moment.block(n) * unit)).collect()
        });
        Self { importance, tile, blocks }
    }

    /// Nats per token that errors (row-major, of rows from `first` on) lose.
    pub fn of_rows(&self, first: usize, errors: &[f32]) -> f64 {
        let cols = self.importance.cols.len();
        let across = cols.div_ceil(self.tile);
        let mut scaled = errors.to_vec();
        for (i, line) in scaled.chunks_exact_mut(cols).enumerate() {
            let tiles = &self.importance.tiles[(first + i) / self.tile * across..][..across];
            line.iter_mut().enumerate().for_each(|(j, e)| *e *= tiles[j / self.tile].sqrt());
        }
        let count = scaled.len() / cols.max(1);
        let row = |i: usize| f64::from(self.importance.rows[first + i]);
        // The share of a row whose errors do not add up.
        let apart = |i: usize| match self.blocks.is_empty() {
            true => 1.0,
            false => self.importance.lookup.get(first + i).map_or(0.0, |&s| f64::from(s)),
        };
        let mut loss = 0.0;
        for (i, line) in scaled.chunks_exact(cols).enumerate().filter(|&(i, _)| apart(i) > 0.0) {
            let squares = line.iter().zip(&self.importance.cols).map(|(e, c)| f64::from(e * e * c));
            loss += row(i) * apart(i) * squares.sum::<f64>();
        }
        for (start, h) in &self.blocks {
            let side = h.nrows();
            let mut product = vec![0.0f32; count * side];
            let errors = MatRef::from_row_major_slice(&scaled, count, cols).get(.., *start..start + side);
            let h = MatRef::from_row_major_slice(h.as_slice().expect("row-major"), side, side);
            let into = MatMut::from_row_major_slice_mut(&mut product, count, side);
            matmul(into, Accum::Replace, errors, h, 1.0f32, Par::Seq);
            for (i, line) in product.chunks_exact(side).enumerate() {
                let own = &scaled[i * cols + start..][..side];
                let sum: f64 = line.iter().zip(own).map(|(p, e)| f64::from(p * e)).sum();
                loss += row(i) * (1.0 - apart(i)) * sum;
            }
        }
        loss
    }
}
