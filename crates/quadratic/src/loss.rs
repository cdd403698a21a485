//! The loss of a matrix of errors whose rows and columns add up.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::Array2;
use rayon::prelude::*;

use crate::curvature::Curvature;
use crate::weights::LossWeights;

/// Rows whose products are held at once.
const ROWS: usize = 256;

/// The quadratic model of the loss of one matrix `[rows, cols]`: `1/2 Σ_ik G_ik e_i H e_kᵀ`, with `e_i` row `i` of the
/// errors and the information of output gradient and input taken as independent (K-FAC, Martens & Grosse 2015). The
/// diagonal is that of the [`LossWeights`]; `H` and `G` say how errors off the diagonal add up.
pub struct QuadraticLoss<'a> {
    weights: &'a LossWeights,
    tile: usize,
    /// Diagonal blocks of H with their first columns, in units of the weights of columns.
    blocks: Vec<(usize, Array2<f32>)>,
    /// Correlations of output gradients.
    outputs: Option<Array2<f32>>,
}

impl<'a> QuadraticLoss<'a> {
    /// The model of a matrix with tiles of `tile` on a side. Without a Hessian errors of different columns do not add
    /// up, without a gradient covariance in one block those of different rows do not.
    pub fn new(weights: &'a LossWeights, tile: usize, curvature: Curvature) -> Self {
        let blocks = curvature.hessian.map_or(Vec::new(), |hessian| {
            let (wanted, found): (f32, f32) = (weights.cols.iter().sum(), hessian.diagonal.sum());
            let unit = if found > 0.0 { wanted / found } else { 0.0 };
            (0..hessian.blocks()).map(|n| (hessian.range(n).start, hessian.block(n) * unit)).collect()
        });
        let whole = curvature.gradient_covariance.filter(|g| g.blocks() == 1);
        let outputs = whole.map(|covariance| covariance.correlation_block(0));
        Self { weights, tile, blocks, outputs }
    }

    /// Nats per token that `errors` (row-major, of the whole matrix) lose.
    pub fn of(&self, mut errors: Vec<f32>) -> f64 {
        let (rows, cols) = (self.weights.rows.len(), self.weights.cols.len());
        let across = cols.div_ceil(self.tile);
        for (i, line) in errors.chunks_exact_mut(cols).enumerate() {
            let tiles = &self.weights.tiles[i / self.tile * across..][..across];
            let row = self.weights.rows[i];
            line.iter_mut().enumerate().for_each(|(j, e)| *e *= (tiles[j / self.tile] * row).sqrt());
        }
        // The share of a row whose errors do not add up.
        let apart = |i: usize| match self.blocks.is_empty() {
            true => 1.0,
            false => self.weights.lookup.get(i).map_or(0.0, |&s| f64::from(s)),
        };
        let mut loss = 0.0;
        for (i, line) in errors.chunks_exact(cols).enumerate().filter(|&(i, _)| apart(i) > 0.0) {
            let squares = line.iter().zip(&self.weights.cols).map(|(e, c)| f64::from(e * e * c));
            loss += apart(i) * squares.sum::<f64>();
        }
        let block = |first: usize| {
            let count = ROWS.min(rows - first);
            let mut loss = 0.0;
            for (start, h) in &self.blocks {
                let side = h.nrows();
                let all = MatRef::from_row_major_slice(&errors, rows, cols).get(.., *start..start + side);
                let h = MatRef::from_row_major_slice(h.as_slice().expect("row-major"), side, side);
                let mut product = vec![0.0f32; count * side];
                let into = MatMut::from_row_major_slice_mut(&mut product, count, side);
                matmul(into, Accum::Replace, all.get(first..first + count, ..), h, 1.0f32, Par::Seq);
                let Some(outputs) = &self.outputs else {
                    for (i, line) in product.chunks_exact(side).enumerate() {
                        let own = &errors[(first + i) * cols + start..][..side];
                        let sum: f64 = line.iter().zip(own).map(|(p, e)| f64::from(p * e)).sum();
                        loss += (1.0 - apart(first + i)) * sum;
                    }
                    continue;
                };
                let product = MatRef::from_row_major_slice(&product, count, side);
                let mut between = vec![0.0f32; count * rows];
                let into = MatMut::from_row_major_slice_mut(&mut between, count, rows);
                matmul(into, Accum::Replace, product, all.transpose(), 1.0f32, Par::Seq);
                for (i, line) in between.chunks_exact(rows).enumerate() {
                    let outputs = outputs.row(first + i);
                    let sum: f64 = line.iter().zip(outputs).map(|(&b, &o)| f64::from(b) * f64::from(o)).sum();
                    loss += (1.0 - apart(first + i)) * sum;
                }
            }
            loss
        };
        // Summed in order, whatever the number of threads.
        let losses: Vec<f64> = (0..rows.div_ceil(ROWS)).into_par_iter().map(|n| block(n * ROWS)).collect();
        loss + losses.iter().sum::<f64>()
    }
}
