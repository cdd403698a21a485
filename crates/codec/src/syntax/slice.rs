//! Syntax of a slice: the headers of its tiles in raster order, then its samples (sections 5 to 7 of
//! `docs/BITSTREAM.md`).
//!
//! Samples are coded band by band (32 rows, or a tile's side where that is larger), in a band column by column, in a
//! column row by row. Lanes then run over rows, and error feedback over columns, as in an encoder that decides
//! columns one after the other.

use std::ops::Range;

use crate::constants::BAND;
use crate::entropy::interleaved_rans::lane_of;
use crate::entropy::models::{Coder, RateCounter};
use crate::entropy::tables::class_of;
use crate::error::{CodecError, Result};
use crate::format::Format;
use crate::scale::SigmaIndex;
use crate::syntax::bit_planes::code_bit_planes;
use crate::syntax::bit_shift::BitShiftTrellis;
use crate::syntax::float_prefix::{EntropyTables, FloatPrefixModel};
use crate::syntax::sample::{SampleCoder, code_level, code_trellis_level};
use crate::syntax::tensor_plan::TensorPlan;
use crate::syntax::tile_header::{HeaderContext, HeaderModels, code_tile, same_header};
use crate::syntax::tile_plan::{Palette, TileMode, TilePlan};
use crate::syntax::tools::Tools;
use crate::syntax::trellis::Trellis;
use crate::units::Rate;

/// Rows of a slice with the decisions about their tiles.
pub struct SlicePlan<'a> {
    /// Plan of the tensor; its own `tiles` are not used.
    pub plan: &'a TensorPlan,
    /// Tools of the tensor.
    pub tools: Tools,
    /// Rows of the slice.
    pub rows: Range<usize>,
    /// Tiles of the slice in raster order.
    pub tiles: Vec<TilePlan>,
}

impl<'a> SlicePlan<'a> {
    /// Part of a plan that covers `rows`.
    pub fn of(plan: &'a TensorPlan, rows: Range<usize>) -> Self {
        let across = plan.tiles_across();
        let tiles = plan.tiles[rows.start / plan.tile * across..rows.end.div_ceil(plan.tile) * across].to_vec();
        Self { plan, tools: plan.tools(), rows, tiles }
    }

    /// A slice to decode, in which all tiles are `tile` so far.
    pub(crate) fn blank(plan: &'a TensorPlan, tools: Tools, rows: Range<usize>, tile: TilePlan) -> Self {
        let tiles = vec![tile; rows.len().div_ceil(plan.tile) * plan.tiles_across()];
        Self { plan, tools, rows, tiles }
    }

    /// Tile of the weight in `row` of the tensor and `col`.
    #[inline]
    pub fn tile_at(&self, row: usize, col: usize) -> &TilePlan {
        &self.tiles[(row - self.rows.start) / self.plan.tile * self.plan.tiles_across() + col / self.plan.tile]
    }

    /// Rows and columns of tile `n` of the slice.
    pub fn tile_range(&self, n: usize) -> (Range<usize>, Range<usize>) {
        let (side, across) = (self.plan.tile, self.plan.tiles_across());
        let (row, col) = (self.rows.start + n / across * side, n % across * side);
        (row..self.rows.end.min(row + side), col..self.plan.cols.min(col + side))
    }

    /// Codes the headers of all tiles, then the levels of tiles in bit planes. `planes` is called with the index of
    /// such a tile to get its levels (row-major), and again with the coded ones to set them.
    ///
    /// # Errors
    /// Values that no tile may have.
    pub fn code_headers<C: Coder>(
        &mut self,
        coder: &mut C,
        planes: &mut impl FnMut(usize, Option<&[i32; 256]>) -> [i32; 256],
    ) -> Result<()> {
        let mut models = HeaderModels::default();
        if !self.tools.has(Tools::UNIFORM) {
            self.code_tiles(coder, &mut models)?;
        }
        for n in 0..self.tiles.len() {
            if self.tiles[n].mode == TileMode::BitPlanes && self.tiles[n].format.level_range().is_some() {
                let mut levels = planes(n, None);
                code_bit_planes(coder, models.planes(), &mut levels);
                planes(n, Some(&levels));
            }
        }
        Ok(())
    }

    fn code_tiles<C: Coder>(&mut self, coder: &mut C, models: &mut HeaderModels) -> Result<()> {
        let across = self.plan.tiles_across();
        let down = self.tiles.len() / across.max(1);
        let merge = self.tools.has(Tools::MERGE);
        // True for tiles that have got their header from a group.
        let mut given = vec![false; self.tiles.len()];
        for n in 0..self.tiles.len() {
            if given[n] {
                continue;
            }
            let (row, col) = (n / across, n % across);
            let mut group = 1;
            if merge {
                for (level, side) in [(0, 4), (1, 2)] {
                    if row % side == 0 && col % side == 0 && group == 1 {
                        let equal = self.is_group(n, side, down);
                        group = if models.merged(coder, level, equal) { side } else { 1 };
                    }
                }
            }
            let left = (col > 0).then(|| self.tiles[n - 1]);
            let context = HeaderContext { tools: self.tools, left, full: self.is_full(n) };
            code_tile(coder, models, &context, &mut self.tiles[n])?;
            let tile = self.tiles[n];
            for member in
                (row..down.min(row + group)).flat_map(|r| (col..across.min(col + group)).map(move |c| r * across + c))
            {
                if tile.mode == TileMode::BitPlanes && !self.is_full(member) {
                    return Err(CodecError::Field {
                        field: "tile mode",
                        found: 3,
                        expected: "0..=2 in a tile that is cut",
                    });
                }
                self.tiles[member] = tile;
                given[member] = true;
            }
        }
        Ok(())
    }

    /// True if the tensor's edge does not cut tile `n`.
    fn is_full(&self, n: usize) -> bool {
        let (rows, cols) = self.tile_range(n);
        rows.len() == self.plan.tile && cols.len() == self.plan.tile
    }

    /// True if the group of `side` by `side` tiles from tile `n` on can share one header.
    fn is_group(&self, n: usize, side: usize, down: usize) -> bool {
        let across = self.plan.tiles_across();
        let (row, col) = (n / across, n % across);
        let first = &self.tiles[n];
        (row..down.min(row + side))
            .all(|r| (col..across.min(col + side)).all(|c| same_header(&self.tiles[r * across + c], first)))
    }

    /// Bits of a tile's levels in bit planes, as an estimate.
    pub fn plane_bits(&self, models: &HeaderModels, levels: &[i32; 256]) -> Rate {
        let (mut counter, mut models) = (RateCounter::default(), models.clone());
        code_bit_planes(&mut counter, models.planes(), &mut levels.clone());
        counter.rate()
    }

    /// Rows of a band.
    pub fn band(&self) -> usize {
        self.plan.tile.max(BAND)
    }

    /// Blocks (a band by a tile's columns) in coding order.
    pub fn blocks(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let (band, tile, cols) = (self.band(), self.plan.tile, self.plan.cols);
        let rows = self.rows.clone();
        rows.clone().step_by(band).flat_map(move |row| {
            let bottom = rows.end.min(row + band);
            (0..cols).step_by(tile).map(move |col| (row..bottom, col..cols.min(col + tile)))
        })
    }
}

/// Context of a block: levels to its left and trellis states above it.
pub struct BlockContext {
    /// Magnitudes of the levels in the two columns before the block, by row of the band.
    magnitudes: [[u16; 64]; 2],
    /// Trellis state of each column after the bands above.
    pub(crate) states: Vec<u8>,
    /// The same of a bit-shift trellis.
    pub(crate) shifted: Vec<u32>,
}

impl BlockContext {
    /// The start of a slice.
    pub fn new(plan: &TensorPlan) -> Self {
        let columns = if plan.parameters.trellis.is_some() { plan.cols } else { 0 };
        let shifted = if plan.parameters.bit_shift.is_some() { plan.cols } else { 0 };
        Self { magnitudes: [[0; 64]; 2], states: vec![0; columns], shifted: vec![0; shifted] }
    }

    /// Starts columns of codes again from state zero: after tiles of other samples.
    pub fn clear_codes(&mut self, cols: Range<usize>) {
        self.shifted.get_mut(cols).unwrap_or_default().fill(0);
    }

    /// Clears the levels to the left: at the start of a band, and after lossless tiles.
    pub fn clear_left(&mut self) {
        self.magnitudes = [[0; 64]; 2];
    }
}

/// Bin of the two levels to the left: (2 |last| + |before|) / (0.6 * 2^(sigma / 4)), rounded down, at most 7. `sigma`
/// is the sigma index of the level to code.
#[inline]
pub fn neighbour_bin(last: u16, before: u16, sigma: SigmaIndex) -> usize {
    // 2^(i/4) / 0.6, scaled by 2^10.
    const RECIPROCAL: [u64; 4] = [1707, 1435, 1207, 1015];
    let quarters = sigma.clamp(-40, 60);
    let sum = 2 * u64::from(last) + u64::from(before);
    let scaled = sum * RECIPROCAL[quarters.rem_euclid(4) as usize];
    let octaves = 10 + quarters.div_euclid(4);
    let bin = if octaves >= 0 { scaled >> octaves } else { scaled << -octaves };
    bin.min(7) as usize
}

/// Coding of the samples in the rows of one tile.
enum Run<'a> {
    Nothing,
    Levels,
    Trellis(Trellis),
    Codes(FloatPrefixModel<'a>, u32),
    Lossless(FloatPrefixModel<'a>),
    Palette(Palette),
    BitShift(BitShiftTrellis, u32),
}

/// Codes the samples of a block, `samples` column by column.
///
/// # Errors
/// Bit patterns or codes that the tensor has no table for.
pub fn code_block<S: SampleCoder>(
    coder: &mut S,
    slice: &SlicePlan,
    entropy_tables: &EntropyTables,
    rows: Range<usize>,
    cols: Range<usize>,
    context: &mut BlockContext,
    samples: &mut [i32],
) -> Result<()> {
    let plan = slice.plan;
    let neighbours = plan.parameters.neighbours;
    let no_table = CodecError::Field { field: "tables of a tensor of bytes", found: 0, expected: "1 or more" };
    let mut runs = Vec::with_capacity(8);
    for top in rows.clone().step_by(plan.tile) {
        let tile = slice.tile_at(top, cols.start);
        let run = match (tile.format, tile.mode) {
            (Format::Lossless, _) => Run::Lossless(entropy_tables.lossless().ok_or(no_table.clone())?),
            (format, _) if format.minifloat().is_some() => {
                let bits = format.minifloat().map_or(0, |m| m.magnitude_bits());
                Run::Codes(EntropyTables::codes(format), bits)
            }
            (_, TileMode::Coded) => match plan.trellis_of(tile, top, cols.start) {
                Some(trellis) => Run::Trellis(trellis),
                None => Run::Levels,
            },
            (_, TileMode::Palette(palette)) => Run::Palette(palette),
            (_, TileMode::Skip | TileMode::BitPlanes) => Run::Nothing,
            (_, TileMode::BitShift(bits)) => match plan.parameters.bit_shift {
                Some(trellis) => Run::BitShift(trellis, bits.into()),
                None => Run::Nothing,
            },
        };
        runs.push((top, *tile, run));
    }
    for (col, column) in cols.zip(samples.chunks_exact_mut(rows.len())) {
        for (top, tile, run) in &runs {
            let bottom = rows.end.min(top + plan.tile);
            let part = &mut column[top - rows.start..bottom - rows.start];
            for (row, sample) in (*top..bottom).zip(part) {
                match run {
                    Run::Nothing => {}
                    Run::Levels | Run::Trellis(_) => {
                        let mut sigma = plan.level_sigma(tile, row, col);
                        if let Some(adjust) = &neighbours {
                            let [last, before] = [0, 1].map(|n| context.magnitudes[n][row - rows.start]);
                            sigma += i32::from(adjust[neighbour_bin(last, before, sigma)]);
                        }
                        let lane = lane_of(row, col);
                        *sample = match run {
                            Run::Trellis(trellis) => {
                                let state = &mut context.states[col];
                                let level = code_trellis_level(coder, lane, sigma, *state, *sample);
                                *state = trellis.next(*state, level);
                                level
                            }
                            _ => code_level(coder, lane, class_of(sigma), *sample),
                        };
                    }
                    Run::Codes(model, bits) => {
                        let mask = (1 << bits) - 1;
                        let sigma = plan.code_sigma(tile, row, col);
                        let prefix = model.code_prefix(coder, lane_of(row, col), 0, sigma, *sample as u32 & mask);
                        *sample = (coder.raw(1, *sample as u32 >> bits & 1) << bits | prefix & mask) as i32;
                    }
                    Run::Lossless(model) => {
                        let sigma = plan.lossless_sigma(tile, row, col);
                        let rests = plan.parameters.rests.as_ref().map(|rests| (rests, row));
                        let place = (col, sigma);
                        *sample = model.code_pattern(coder, lane_of(row, col), place, rests, *sample as u32) as i32;
                    }
                    Run::BitShift(trellis, bits) => {
                        let state = &mut context.shifted[col];
                        let code = coder.raw(*bits, *sample as u32 & ((1 << bits) - 1));
                        *state = trellis.next(*state, *bits, code);
                        *sample = *state as i32;
                    }
                    Run::Palette(palette) => *sample = coder.raw(palette.bits(), *sample as u32) as i32,
                }
                if neighbours.is_some() {
                    let [last, before] = &mut context.magnitudes;
                    let i = row - rows.start;
                    before[i] = last[i];
                    last[i] = if matches!(run, Run::Levels | Run::Trellis(_)) {
                        sample.unsigned_abs().min(0xffff) as u16
                    } else {
                        0
                    };
                }
            }
            if let (Some(state), false) = (context.shifted.get_mut(col), matches!(run, Run::BitShift(..))) {
                *state = 0;
            }
        }
    }
    Ok(())
}
