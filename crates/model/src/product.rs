//! Matrix products in several tasks of a fixed size, so that a large product keeps all threads busy
//! and has the same result at any number of them.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Rows of a task: fewer spend more time packing the other factor.
const ROWS: usize = 512;
/// Columns of a task where the rows are few.
const COLUMNS: usize = 2048;

/// `x` `[n, k]` times `w` `[k, m]`.
pub(crate) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (x.dim(0)?, w.dim(1)?);
    if !x.device().is_cpu() || (rows <= ROWS && columns <= COLUMNS) {
        return x.matmul(w);
    }
    let parts = |length: usize, task: usize, part: &(dyn Fn(usize, usize) -> Result<Tensor> + Sync)| {
        let starts: Vec<usize> = (0..length).step_by(task).collect();
        starts.par_iter().map(|&start| part(start, task.min(length - start))).collect::<Result<Vec<Tensor>>>()
    };
    match rows > ROWS {
        true => Tensor::cat(&parts(rows, ROWS, &|start, count| x.narrow(0, start, count)?.matmul(w))?, 0),
        false => Tensor::cat(&parts(columns, COLUMNS, &|start, count| x.matmul(&w.narrow(1, start, count)?))?, 1),
    }
}
