//! Decoding one slice: its streams, its blocks in order, its tiles into a sink.

use std::collections::HashMap;
use std::ops::Range;

use crate::constants::{BAND, MAX_BLOCK, MAX_TILE, TILE};
use crate::decoder::bit_shift_block::decode_bit_shift_block;
use crate::decoder::block::{decode_bf16_block, decode_block};
use crate::decoder::block_output::write_block;
use crate::decoder::trellis_block::decode_trellis_block;
use crate::entropy::adaptive_rans::Decoder;
use crate::error::{CodecError, Part, Result};
use crate::format::Format;
use crate::recon::reconstruct::{Planes, write_tile};
use crate::syntax::float_prefix::EntropyTables;
use crate::syntax::header::{Header, slice_check};
use crate::syntax::lattice::Groups;
use crate::syntax::sample::SampleDecoder;
use crate::syntax::slice::{BlockContext, SlicePlan, code_block};
use crate::syntax::streams::{SLICE_PREFIX, split_streams};
use crate::syntax::tensor_plan::TensorPlan;
use crate::syntax::tile_plan::{TileMode, TilePlan};

/// A slice to decode.
pub(super) struct CodedSlice<'a> {
    pub number: usize,
    pub bytes: &'a [u8],
    pub rows: Range<usize>,
    pub header: &'a Header,
    pub plan: &'a TensorPlan,
    /// Every tile, in a uniform tensor.
    pub first: TilePlan,
    pub entropy_tables: &'a EntropyTables,
}

impl CodedSlice<'_> {
    /// Decodes the slice into a sink; returns its tiles in raster order. Of a lattice the sink gets symbols.
    pub fn decode(&self, sink: &mut impl Sink) -> Result<(Vec<TilePlan>, Groups)> {
        let (bytes, n) = (self.bytes, self.number);
        let (_, found) = self.header.slices[n];
        let computed = slice_check(bytes);
        if computed != found && !cfg!(fuzzing) {
            return Err(CodecError::Check { part: Part::Slice(n), found, computed });
        }
        let [headers, escapes, bits, symbols] = split_streams(bytes).ok_or(CodecError::Truncated {
            what: "streams of a slice",
            needed: SLICE_PREFIX as u64,
            available: bytes.len() as u64,
        })?;
        let mut slice = SlicePlan::blank(self.plan, self.header.tools, self.rows.clone(), self.first);
        let mut headers = Decoder::new(headers);
        let mut in_planes = HashMap::new();
        slice.code_headers(&mut headers, &mut |tile, levels| {
            if let Some(levels) = levels {
                in_planes.insert(tile, levels.map(|l| l as i16));
            }
            [0; 256]
        })?;
        if !self.header.dtype.is_weight()
            && let Some(tile) = slice.tiles.iter().find(|t| t.format != Format::Lossless)
        {
            let expected = "lossless tiles only in a tensor of this type";
            return Err(CodecError::Field { field: "tile format", found: tile.format as i64, expected });
        }
        let mut groups = Groups::default();
        if let Some(lattice) = &self.plan.parameters.lattice {
            let shape = (self.header.dtype, self.rows.clone(), self.header.cols);
            lattice.code_groups(&mut headers, &mut groups, shape)?;
        }
        let mut decoder = SampleDecoder::new(symbols, self.header.lanes, bits, escapes);
        self.decode_blocks(&slice, &mut decoder, &in_planes, sink)?;
        if !(headers.finish() && decoder.finish()) {
            return Err(CodecError::Entropy { part: Part::Slice(n) });
        }
        Ok((slice.tiles, groups))
    }

    fn decode_blocks(
        &self,
        slice: &SlicePlan,
        decoder: &mut SampleDecoder,
        in_planes: &HashMap<usize, [i16; 256]>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let side = self.plan.tile;
        let mut block = [0; MAX_BLOCK];
        let mut tile_samples = [0; MAX_TILE];
        let mut plane = [0; MAX_TILE];
        let mut context = BlockContext::new(self.plan);
        let mut planes = Planes::new(slice);
        for (rows, cols) in slice.blocks() {
            if cols.start == 0 {
                context.clear_left();
            }
            let (height, width) = (rows.len(), cols.len());
            if planes.is_empty() && sink.bf16_block(decoder, slice, self.entropy_tables, rows.clone(), cols.clone()) {
                // Lossless elements count as zeros for the levels to their right.
                context.clear_left();
                context.clear_codes(cols);
                continue;
            }
            let block = &mut block[..height * width];
            let states = &mut context.shifted;
            let codes = decode_bit_shift_block(decoder, slice, rows.clone(), cols.clone(), states, block);
            let known = codes
                || decode_trellis_block(decoder, slice, rows.clone(), cols.clone(), &mut context.states, block)
                || decode_block(decoder, slice, self.entropy_tables, rows.clone(), cols.clone(), block);
            if known && !codes {
                context.clear_codes(cols.clone());
            }
            if !known {
                code_block(decoder, slice, self.entropy_tables, rows.clone(), cols.clone(), &mut context, block)?;
            } else if planes.is_empty()
                && height == BAND
                && side == TILE
                && sink.block(slice, rows.clone(), cols.clone(), block)?
            {
                continue;
            }
            for top in rows.clone().step_by(side) {
                let n = (top - slice.rows.start) / side * self.plan.tiles_across() + cols.start / side;
                let tall = side.min(rows.end - top);
                let count = tall * width;
                match in_planes.get(&n) {
                    Some(levels) if slice.tiles[n].mode == TileMode::BitPlanes => {
                        tile_samples.iter_mut().zip(levels).for_each(|(s, &l)| *s = l.into());
                    }
                    _ => {
                        for (j, column) in block.chunks_exact(height).enumerate() {
                            let part = &column[top - rows.start..][..tall];
                            part.iter().enumerate().for_each(|(i, &s)| tile_samples[i * width + j] = s);
                        }
                    }
                }
                if slice.tiles[n].format.level_range().is_some() {
                    planes.predict(slice, n, &mut plane[..count])?;
                    planes.reconstruct(slice, n, &mut plane[..count], &tile_samples[..count]);
                }
                sink.tile(slice, n, &mut plane[..count], &tile_samples[..count])?;
            }
        }
        Ok(())
    }
}

/// Destination of decoded tiles.
pub(super) trait Sink {
    /// Takes a tile: the plane of an integer tile, else its samples, row-major.
    fn tile(&mut self, slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) -> Result<()>;

    /// Decodes a block of lossless bf16 tiles straight to its destination; false, with nothing read, for any other
    /// block or destination.
    fn bf16_block(
        &mut self,
        _: &mut SampleDecoder,
        _: &SlicePlan,
        _: &EntropyTables,
        _: Range<usize>,
        _: Range<usize>,
    ) -> bool {
        false
    }

    /// Takes a block of samples, column by column, of tiles that are not predicted; false if it needs tiles one by
    /// one.
    fn block(&mut self, _: &SlicePlan, _: Range<usize>, _: Range<usize>, _: &[i32]) -> Result<bool> {
        Ok(false)
    }
}

/// Little-endian elements of the slice's rows.
pub(super) struct Output<'a>(pub &'a mut [u8]);

impl Sink for Output<'_> {
    fn tile(&mut self, slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) -> Result<()> {
        write_tile(slice, n, plane, samples, self.0)
    }

    fn bf16_block(
        &mut self,
        decoder: &mut SampleDecoder,
        slice: &SlicePlan,
        entropy_tables: &EntropyTables,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> bool {
        decode_bf16_block(decoder, slice, entropy_tables, rows, cols, self.0)
    }

    fn block(&mut self, slice: &SlicePlan, rows: Range<usize>, cols: Range<usize>, block: &[i32]) -> Result<bool> {
        if slice.plan.parameters.refinement.is_some() {
            return Ok(false);
        }
        write_block(slice, rows, cols, block, self.0)
    }
}

/// Symbols of a lattice, row-major.
pub(super) struct SymbolBuffer(pub Vec<u8>);

impl Sink for SymbolBuffer {
    fn tile(&mut self, slice: &SlicePlan, n: usize, _: &mut [i32], samples: &[i32]) -> Result<()> {
        let (rows, range) = slice.tile_range(n);
        for (row, line) in rows.zip(samples.chunks_exact(range.len())) {
            let to = &mut self.0[(row - slice.rows.start) * slice.plan.cols + range.start..];
            line.iter().zip(to).for_each(|(&symbol, to)| *to = symbol as u8);
        }
        Ok(())
    }
}

/// Row-major planes, codes and patterns.
pub(super) struct PlaneBuffer(pub Vec<i32>);

impl Sink for PlaneBuffer {
    fn tile(&mut self, slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) -> Result<()> {
        let (rows, range) = slice.tile_range(n);
        let tile = &slice.tiles[n];
        let levels = tile.format.level_range().is_some() && !matches!(tile.mode, TileMode::BitShift(_));
        let from = if levels { &*plane } else { samples };
        for (row, line) in rows.zip(from.chunks_exact(range.len())) {
            self.0[(row - slice.rows.start) * slice.plan.cols + range.start..][..line.len()].copy_from_slice(line);
        }
        Ok(())
    }
}
