//! Matrix products in several tasks of a fixed size, so that a large product keeps all threads busy
//! and has the same result at any number of them.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Rows of a task: fewer spend more time packing the other factor.
const ROWS: usize = 512;

/// `x` `[n, k]` times `w` `[k, m]`.
pub(crate) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let rows = x.dim(0)?;
    if rows <= ROWS || !x.device().is_cpu() {
        return x.matmul(w);
    }
    let starts: Vec<usize> = (0..rows).step_by(ROWS).collect();
    let part = |&start: &usize| x.narrow(0, start, ROWS.min(rows - start))?.matmul(w);
    let parts = starts.par_iter().map(part).collect::<Result<Vec<Tensor>>>()?;
    Tensor::cat(&parts, 0)
}
