//! Writing a whole block of bf16 weights at once.

use std::ops::Range;

use crate::constants::{BAND, TILE};
use crate::error::Result;
use crate::format::{Dtype, Format};
use crate::recon::reconstruct::{TileScales, bf16};
use crate::simd::{dispatched, transpose};
use crate::syntax::bit_shift;
use crate::syntax::slice::SlicePlan;
use crate::syntax::tile_plan::{TileMode, TilePlan};

/// A number for every sample of a block, column by column.
pub(super) type Columns<T> = [[T; BAND]; TILE];

dispatched! {
    /// Writes a block of bf16 weights whose tiles have their samples as planes; false, with nothing written, for any other.
    ///
    /// # Errors
    /// Scales out of range.
    pub(super) fn write_block(
        slice: &SlicePlan,
        rows: Range<usize>,
        cols: Range<usize>,
        samples: &[i32],
        out: &mut [u8],
    ) -> Result<bool> = write_block_inline
}

#[inline(always)]
fn write_block_inline(
    slice: &SlicePlan,
    rows: Range<usize>,
    cols: Range<usize>,
    samples: &[i32],
    out: &mut [u8],
) -> Result<bool> {
    let plan = slice.plan;
    let simple = |t: &TilePlan| t.coarse == 0 && t.transform.is_identity() || t.format == Format::Lossless;
    let tiles = [rows.start, rows.start + TILE].map(|row| slice.tile_at(row, cols.start));
    if plan.dtype != Dtype::Bf16 || plan.parameters.filter.is_some() || !tiles.iter().all(|t| simple(t)) {
        return Ok(false);
    }
    let mut patterns = [[0u16; BAND]; TILE];
    for (half, tile) in tiles.iter().enumerate() {
        let n = (rows.start - slice.rows.start) / TILE * plan.tiles_across()
            + half * plan.tiles_across()
            + cols.start / TILE;
        let columns = patterns.iter_mut().zip(samples.chunks_exact(BAND));
        let columns = columns.map(|(to, from)| (&mut to[half * TILE..][..TILE], &from[half * TILE..][..TILE]));
        if tile.format == Format::Lossless {
            columns.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(t, &s)| *t = s as u16));
            continue;
        }
        let (low, high) = tile.format.level_range().unwrap_or((0, 0));
        let scales = TileScales::new(slice, n)?;
        let constant = scales.constant(plan);
        for (j, (to, from)) in columns.enumerate() {
            let mut factors = [constant.unwrap_or(0.0); TILE];
            if constant.is_none() {
                factors.iter_mut().enumerate().for_each(|(i, f)| *f = scales.at(i, j));
            }
            if matches!(tile.mode, TileMode::BitShift(_)) {
                for ((to, &state), factor) in to.iter_mut().zip(from).zip(factors) {
                    *to = bf16(bit_shift::level(state as u32) as f32 * factor);
                }
                continue;
            }
            for ((to, &level), factor) in to.iter_mut().zip(from).zip(factors) {
                *to = bf16(level.clamp(low, high) as f32 * factor);
            }
        }
    }
    write_columns(
        &patterns,
        cols.len(),
        plan.cols * 2,
        &mut out[((rows.start - slice.rows.start) * plan.cols + cols.start) * 2..],
    );
    Ok(true)
}

/// Writes columns of 16-bit elements as rows of `stride` bytes.
#[inline(always)]
pub(super) fn write_columns(columns: &Columns<u16>, width: usize, stride: usize, out: &mut [u8]) {
    let rows = transpose(columns);
    for (i, row) in rows.iter().enumerate() {
        let line = &mut out[i * stride..][..width * 2];
        if width == TILE {
            for j in 0..TILE {
                line[2 * j..2 * j + 2].copy_from_slice(&row[j].to_le_bytes());
            }
        } else {
            line.chunks_exact_mut(2).zip(row).for_each(|(to, p)| to.copy_from_slice(&p.to_le_bytes()));
        }
    }
}
