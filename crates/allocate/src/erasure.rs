//! Predicted loss of erasing a matrix, and the sensitivity floor that follows from it.

use std::ops::Range;

use waterfill_calibrate::Sensitivity;
use waterfill_codec::{Loss, TILE};

use crate::information::{FoldRule, Information};

/// Predicted loss of setting a whole matrix to zero, `1/2 Σ_ij F_ij w_ij²` nats per token; `read` returns the weights of a
/// range of rows, row-major.
///
/// # Errors
/// Those of `read`.
pub fn erasure_loss<E>(
    read: impl Fn(Range<usize>) -> std::result::Result<Vec<f32>, E>,
    sensitivity: &Sensitivity,
    fold_rule: FoldRule,
) -> std::result::Result<Loss, E> {
    let info = Information::new(sensitivity, fold_rule, 0.0);
    let across = info.cols.div_ceil(TILE);
    let block = |by: &[f64], n: usize| by[n * TILE..by.len().min((n + 1) * TILE)].iter().sum::<f64>();
    let rows: Vec<f64> = (0..info.rows.div_ceil(TILE)).map(|n| block(&info.by_row, n)).collect();
    let cols: Vec<f64> = (0..across).map(|n| block(&info.by_col, n)).collect();
    let mut loss = 0.0;
    for top in (0..info.rows).step_by(TILE) {
        let weights = read(top..info.rows.min(top + TILE))?;
        for (i, line) in weights.chunks_exact(info.cols).enumerate().map(|(i, line)| (top + i, line)) {
            for (j, &w) in line.iter().enumerate() {
                let energy = (rows[i / TILE] * cols[j / TILE]).max(f64::MIN_POSITIVE);
                let density = info.tiles[i / TILE * across + j / TILE] / energy;
                loss += 0.5 * density * info.by_row[i] * info.by_col[j] * f64::from(w).powi(2);
            }
        }
    }
    Ok(Loss(loss))
}

/// Factors, at least 1, by which the losses of every matrix are multiplied so that none has less than `share` of the
/// median erasure loss; `erasures` are those of [`erasure_loss`].
///
/// The quadratic model sees only small errors. Attention that is saturated or nearly uniform has
/// almost no gradient, so that the model would let its projections be erased, which then changes
/// what the heads attend to. No matrix is taken to be less sensitive, for the energy it carries,
/// than a share of the usual one.
pub fn sensitivity_floor(erasures: &[Loss], share: f64) -> Vec<f64> {
    let mut sorted: Vec<f64> = erasures.iter().map(|l| l.0).collect();
    sorted.sort_by(f64::total_cmp);
    let least = share * sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    erasures.iter().map(|l| if l.0 > 0.0 { (least / l.0).clamp(1.0, 1e6) } else { 1.0 }).collect()
}
