//! The embedding as a lookup.

use candle_core::Tensor;

use crate::error::Result;
use crate::statistics::{Sums, TILE, vector};

/// Adds the tokens of a batch: row v of the matrix is an output only where token v occurs.
pub(crate) fn add_lookup(sums: &mut Sums, ids: &[&[u32]], gradient: &Tensor) -> Result<()> {
    let hidden = sums.col_x2.len();
    let g2 = vector(&gradient.sqr()?)?;
    let rows = g2.as_slice().expect("one dimension").chunks_exact(hidden);
    for (&id, g2) in ids.iter().copied().flatten().zip(rows) {
        let id = id as usize;
        for (j, &v) in g2.iter().enumerate() {
            sums.tile_fisher[[id / TILE, j / TILE]] += v;
            sums.row_fisher[id] += v;
            sums.col_fisher[j] += v;
        }
        // The gradient's energy belongs to the row that was looked up; its input is a one.
        sums.row_g2[id] += g2.iter().sum::<f64>() / hidden as f64;
    }
    Ok(())
}
