//! Errors as quantization leaves them, without a quantizer: noise at the water level, shaped by error feedback.

use faer::linalg::triangular_solve::solve_unit_lower_triangular_in_place;
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::curvature::Curvature;
use crate::damping::{Damping, water_damping};
use crate::ldl::LdlFactor;
use crate::loss::QuadraticLoss;
use crate::weights::LossWeights;

/// Rows that are solved at once.
const ROWS: usize = 64;

/// Errors `[rows, cols]` of a matrix in which every weight loses as much of a level, nats per token; row by row, for each
/// of `levels`, with the loss that is predicted for them.
///
/// Errors before feedback are those of the test channel of a Gaussian source (Cover & Thomas, 10.3.2): with the distortion
/// `d = min(level / (w_ij d_i D_j), σ²)`, where `w_ij` is the loss weight, `d_i` and `D_j` are what feedback over rows and
/// columns leaves of it and `σ²` is the mean square of the tile's weights, `n_ij = -b weight + sqrt(b (1 - b)) σ z` with
/// `b = d / σ²`: noise where steps are fine, and the weight itself where its rate is zero. Feedback with
/// `H = (I+U) D (I+U)ᵀ` and `G = (I+V) d (I+V)ᵀ` leaves `E = (I+V)^-T N (I+U)^-1`. `uniform` fills row `i` with numbers `z`
/// of mean zero and variance one.
pub fn shaped_noise(
    weights: &[f32],
    loss_weights: &LossWeights,
    tile: usize,
    curvature: Curvature,
    levels: &[f64],
    uniform: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Vec<(Vec<f32>, f64)> {
    let (rows, cols) = (loss_weights.rows.len(), loss_weights.cols.len());
    let lookup = loss_weights.lookup_share();
    let whole = curvature.gradient_covariance.filter(|g| g.blocks() == 1);
    let model = QuadraticLoss::new(loss_weights, tile, curvature);
    let across = cols.div_ceil(tile);
    let squares = tile_squares(weights, cols, tile);
    let at = |level: f64| {
        // As quantization damps its factors.
        let (of_rows, of_columns) = water_damping(weights, loss_weights, tile, level);
        let over_columns = || {
            let damping = Damping { uniform: 0.0, lookup, levels: &of_columns };
            curvature.hessian.map(|h| LdlFactor::new(h, &damping))
        };
        let over_rows = || whole.map(|g| LdlFactor::new(g, &Damping { uniform: 0.0, lookup: 0.0, levels: &of_rows }));
        let (columns, outputs) = rayon::join(over_columns, over_rows);
        let share = |factor: &Option<LdlFactor>, n: usize| factor.as_ref().map_or(1.0, |f| f.share(n));
        let by_column: Vec<f64> = (0..cols).map(|j| f64::from(loss_weights.cols[j]) * share(&columns, j)).collect();
        let by_row: Vec<f64> = (0..rows).map(|i| f64::from(loss_weights.rows[i]) * share(&outputs, i)).collect();
        let mut errors = vec![0.0f32; rows * cols];
        errors.par_chunks_exact_mut(cols).enumerate().for_each(|(i, row)| {
            uniform(i, row);
            for (j, error) in row.iter_mut().enumerate() {
                let n = i / tile * across + j / tile;
                let (weight, square) = (f64::from(weights[i * cols + j]), squares[n].max(f64::MIN_POSITIVE));
                let cost = f64::from(loss_weights.tiles[n]) * by_row[i] * by_column[j];
                let share = (level / (cost * square).max(f64::MIN_POSITIVE)).min(1.0);
                let noise = (share * (1.0 - share) * square).sqrt() * f64::from(*error);
                *error = (noise - share * weight) as f32;
            }
        });
        if let Some(outputs) = &outputs {
            let mut transposed = transpose(&errors, rows, cols);
            spread(&mut transposed, rows, outputs);
            errors = transpose(&transposed, cols, rows);
        }
        if let Some(columns) = &columns {
            spread(&mut errors, cols, columns);
        }
        let loss = model.of(errors.clone());
        (errors, loss)
    };
    levels.iter().map(|&level| at(level)).collect()
}

/// Mean square of the weights of each tile.
fn tile_squares(weights: &[f32], cols: usize, tile: usize) -> Vec<f64> {
    let across = cols.div_ceil(tile);
    let of_band = |band: &[f32]| {
        let mut sums = vec![(0.0f64, 0.0f64); across];
        for row in band.chunks_exact(cols) {
            row.iter().enumerate().for_each(|(j, w)| {
                let (sum, count) = &mut sums[j / tile];
                *sum += f64::from(w * w);
                *count += 1.0;
            });
        }
        sums.into_iter().map(|(sum, count)| sum / count).collect::<Vec<f64>>()
    };
    weights.par_chunks(tile * cols).flat_map_iter(of_band).collect()
}

/// What feedback leaves of each row `n` of noise: `e (I+U) = n` solved for `e`.
fn spread(noise: &mut [f32], cols: usize, factor: &LdlFactor) {
    let mut start = 0;
    while start < cols {
        let Some((range, upper)) = factor.block(start) else {
            start += 1;
            continue;
        };
        let side = range.len();
        noise.par_chunks_mut(ROWS * cols).for_each(|rows| {
            let count = rows.len() / cols;
            // Columns of a column-major matrix are the rows of the noise.
            let all = MatMut::from_column_major_slice_mut(rows, cols, count);
            let own = all.get_mut(range.clone(), ..);
            let upper = MatRef::from_row_major_slice(upper, side, side);
            solve_unit_lower_triangular_in_place(upper.transpose(), own, Par::Seq);
        });
        start = range.end;
    }
}

fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut into = vec![0.0f32; values.len()];
    into.par_chunks_exact_mut(rows).enumerate().for_each(|(j, column)| {
        column.iter_mut().enumerate().for_each(|(i, v)| *v = values[i * cols + j]);
    });
    into
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::SymmetricBlocks;

    const ROWS: usize = 48;
    const COLS: usize = 80;

    /// Numbers of variance one that look like noise.
    fn noise(row: usize, into: &mut [f32]) {
        for (j, v) in into.iter_mut().enumerate() {
            let mut state = (row * COLS + j) as u64 + 1;
            for _ in 0..4 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state ^= state >> 29;
            }
            *v = ((state >> 40) as f32 / 16777216.0 - 0.5) * 12f32.sqrt();
        }
    }

    fn correlated(side: usize, r: f32) -> SymmetricBlocks {
        SymmetricBlocks::from_dense(&Array2::from_shape_fn((side, side), |(i, j)| {
            r.powi(i.abs_diff(j) as i32) * (1.0 + (i % 5) as f32) * (1.0 + (j % 5) as f32)
        }))
    }

    /// Every weight loses the level by the quadratic model, however inputs and outputs are correlated; noise that is not
    /// shaped loses more at the same variances.
    #[test]
    fn every_weight_loses_the_level() {
        let (hessian, covariance) = (correlated(COLS, 0.9), correlated(ROWS, 0.8));
        let loss_weights = LossWeights {
            tiles: vec![0.5; ROWS.div_ceil(16) * COLS.div_ceil(16)],
            rows: covariance.diagonal.to_vec(),
            cols: hessian.diagonal.to_vec(),
            lookup: vec![],
        };
        let weights = vec![1.0; ROWS * COLS];
        let level = 1e-9;
        for curvature in [
            Curvature::default(),
            Curvature { hessian: Some(&hessian), gradient_covariance: None },
            Curvature { hessian: Some(&hessian), gradient_covariance: Some(&covariance) },
        ] {
            let [small, large] =
                shaped_noise(&weights, &loss_weights, 16, curvature, &[level, 9.0 * level], &noise).try_into().unwrap();
            let (small, large) = (small.1, large.1);
            let expected = level * (ROWS * COLS) as f64;
            assert!((small / expected - 1.0).abs() < 0.06, "{small}, expected {expected}");
            assert!((large / small / 9.0 - 1.0).abs() < 1e-3, "{large} after {small}");
        }
    }

    /// Where a loss weight is zero, the error is the weight itself.
    #[test]
    fn weights_that_cost_nothing_are_lost() {
        let loss_weights = LossWeights { tiles: vec![0.0], rows: vec![1.0; 16], cols: vec![1.0; 16], lookup: vec![] };
        let errors = shaped_noise(&[0.5; 256], &loss_weights, 16, Curvature::default(), &[1.0], &noise);
        assert_eq!(errors[0].0, [-0.5; 256]);
    }
}
