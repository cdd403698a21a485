//! Coding the samples of a slice, and decoding them as a decoder will.

use crate::constants::{MAX_BLOCK, MAX_TILE};
use crate::entropy::adaptive_rans::Encoder;
use crate::error::{CodecError, Result};
use crate::recon::reconstruct::{Planes, finish_tile};
use crate::syntax::float_prefix::EntropyTables;
use crate::syntax::sample::{SampleCoder, SampleEncoder};
use crate::syntax::slice::{BlockContext, SlicePlan, code_block};
use crate::syntax::streams::join_streams;

pub(super) fn encode_slice(slice: &mut SlicePlan, entropy_tables: &EntropyTables, samples: &[i32]) -> Result<Vec<u8>> {
    let mut headers = Encoder::default();
    let levels = TileSamples::of(slice, samples);
    slice.code_headers(&mut headers, &mut |n, _| levels.get(n))?;
    let mut encoder = SampleEncoder::default();
    code_samples(&mut encoder, slice, entropy_tables, samples)?;
    Ok(join_streams(&headers.finish(), encoder, slice.plan.lanes()))
}

/// Samples of single tiles of a slice.
pub(super) struct TileSamples<'a> {
    samples: &'a [i32],
    cols: usize,
    tiles: Vec<(usize, usize)>,
}

impl<'a> TileSamples<'a> {
    pub fn of(slice: &SlicePlan, samples: &'a [i32]) -> Self {
        let start = |n| (slice.tile_range(n).0.start - slice.rows.start, slice.tile_range(n).1.start);
        Self { samples, cols: slice.plan.cols, tiles: (0..slice.tiles.len()).map(start).collect() }
    }

    pub fn get(&self, n: usize) -> [i32; 256] {
        let (row, col) = self.tiles[n];
        std::array::from_fn(|i| self.samples[(row + i / 16) * self.cols + col + i % 16])
    }
}

pub(super) fn code_samples<S: SampleCoder>(
    coder: &mut S,
    slice: &SlicePlan,
    entropy_tables: &EntropyTables,
    samples: &[i32],
) -> Result<()> {
    let (cols_all, first) = (slice.plan.cols, slice.rows.start);
    let mut block = [0; MAX_BLOCK];
    let mut context = BlockContext::new(slice.plan);
    for (rows, cols) in slice.blocks() {
        if cols.start == 0 {
            context.clear_left();
        }
        let height = rows.len();
        for (i, row) in rows.clone().enumerate() {
            let line = &samples[(row - first) * cols_all..][cols.clone()];
            line.iter().enumerate().for_each(|(j, &s)| block[j * height + i] = s);
        }
        let count = height * cols.len();
        let (top, left) = (rows.start, cols.start);
        code_block(coder, slice, entropy_tables, rows, cols, &mut context, &mut block[..count])?;
        if slice.plan.parameters.trellis.is_some() || slice.plan.parameters.bit_shift.is_some() {
            let given = |k: usize| samples[(top - first + k % height) * cols_all + left + k / height];
            if let Some(k) = (0..count).find(|&k| block[k] != given(k)) {
                let expected = "one that the trellis state before it leads to";
                return Err(CodecError::Field { field: "level or state", found: given(k).into(), expected });
            }
        }
    }
    Ok(())
}

/// Decoded bytes of a slice from its samples.
pub(super) fn reconstruct_slice(slice: &SlicePlan, samples: &[i32], out: &mut [u8]) -> Result<()> {
    let plan = slice.plan;
    let mut planes = Planes::new(slice);
    let mut plane = [0; MAX_TILE];
    let mut tile_samples = [0; MAX_TILE];
    for n in 0..slice.tiles.len() {
        let (rows, cols) = slice.tile_range(n);
        let width = cols.len();
        for (line, row) in tile_samples.chunks_exact_mut(width).zip(rows.clone()) {
            line.copy_from_slice(&samples[(row - slice.rows.start) * plan.cols + cols.start..][..width]);
        }
        let count = rows.len() * width;
        finish_tile(slice, &mut planes, n, &mut plane[..count], &tile_samples[..count], out)?;
    }
    Ok(())
}
