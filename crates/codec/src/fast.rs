//! Decoding a whole block at once: 32 rows in 32 lanes by up to 16 columns. Gives exactly what
//! [`crate::slice::code_block`] gives, for blocks of levels or patterns.

#![allow(clippy::needless_range_loop)] // Loops over lanes by number are what the compiler makes wide.

use std::ops::Range;

use crate::TILE;
use crate::error::Result;
use crate::format::{Dtype, Format};
use crate::lanes::{BAND, LaneDecoder, lane_of};
use crate::plan::entry;
use crate::plane::{TileScales, bf16};
use crate::sample::{HeadModel, SampleDecoder, code_escape};
use crate::side::Books;
use crate::simd::{decode_columns, decode_columns_evenly, spread_bits, spread_fields, transpose};
use crate::slice::SlicePlan;
use crate::table::{
    CLASSES, ESCAPE, HEAD_FIRST, HEAD_ZERO, LEVEL_ZERO, PROB_BITS, Tables, UNIT_CLASS, largest_level, level_table,
};
use crate::tables::LEVEL_TABLES;
use crate::tile::{Kind, TilePlan};
use crate::transform::band;

/// A number for every sample of a block, column by column.
pub type Columns<T> = [[T; BAND]; TILE];

/// Decodes a block into `samples` (column by column) when it is one of those this module knows;
/// false, with nothing read, when it is not.
#[inline(always)]
pub(crate) fn decode_block(
    decoder: &mut SampleDecoder,
    slice: &SlicePlan,
    books: &Books,
    rows: Range<usize>,
    cols: Range<usize>,
    samples: &mut [i32],
) -> bool {
    let plan = slice.plan;
    if rows.len() != BAND || plan.tile != TILE || plan.parameters.neighbours.is_some() {
        return false;
    }
    let tiles = [rows.start, rows.start + TILE].map(|row| *slice.tile_at(row, cols.start));
    let width = cols.len();
    let mut spreads = [[0; BAND]; TILE];
    if tiles.iter().all(|t| t.format == Format::Lossless) {
        let Some(model) = books.patterns().filter(|m| m.dtype().layout().is_some()) else { return false };
        let base = plan.spread_base + (plan.step_base >> 1);
        fill_spreads(
            &mut spreads,
            tiles.map(|t| base + i32::from(t.spread)),
            rows,
            cols,
            |r| entry(&plan.row_spread, r),
            |c| entry(&plan.col_spread, c),
        );
        // One copy for each type, so that its shifts are constants.
        match model.dtype() {
            Dtype::Bf16 => decode_patterns::<{ Dtype::Bf16 as u8 }>(decoder, &model, &spreads, width, samples),
            Dtype::F16 => decode_patterns::<{ Dtype::F16 as u8 }>(decoder, &model, &spreads, width, samples),
            Dtype::F32 => decode_patterns::<{ Dtype::F32 as u8 }>(decoder, &model, &spreads, width, samples),
            Dtype::E4M3 => decode_patterns::<{ Dtype::E4M3 as u8 }>(decoder, &model, &spreads, width, samples),
            _ => decode_patterns::<{ Dtype::E5M2 as u8 }>(decoder, &model, &spreads, width, samples),
        }
        return true;
    }
    let levels = |t: &TilePlan| t.format.level_range().is_some() && t.kind == Kind::Coded;
    if plan.parameters.trellis.is_some() {
        return false;
    }
    if !tiles.iter().all(levels) {
        return false;
    }
    let unit = |t: &TilePlan| plan.spread_base + i32::from(t.spread) - i32::from(t.step) - i32::from(t.coarse);
    let row_part = |r| entry(&plan.row_spread, r) - entry(&plan.row_scale, r);
    let col_part = |c| entry(&plan.col_spread, c) - entry(&plan.col_scale, c);
    fill_spreads(&mut spreads, tiles.map(|t| unit(&t)), rows.clone(), cols.clone(), row_part, col_part);
    for (half, tile) in tiles.iter().enumerate() {
        if tile.transform.is_identity() || !plan.is_full(rows.start + half * TILE, cols.start) {
            continue;
        }
        for (j, column) in spreads.iter_mut().enumerate() {
            for (i, spread) in column[half * TILE..][..TILE].iter_mut().enumerate() {
                *spread = unit(tile) + i32::from(plan.parameters.bands[band(tile.transform, i, j)]);
            }
        }
    }
    decode_levels(decoder, &spreads, width, samples);
    true
}

/// Writes a block that [`decode_block`] decoded, of bf16 weights, in tiles whose samples are their
/// planes; false, with nothing written, where it is another.
///
/// # Errors
/// Scales out of range.
#[inline(always)]
pub(crate) fn write_block(
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

#[inline(always)]
fn fill_spreads(
    spreads: &mut Columns<i32>,
    tiles: [i32; 2],
    rows: Range<usize>,
    cols: Range<usize>,
    row_part: impl Fn(usize) -> i32,
    col_part: impl Fn(usize) -> i32,
) {
    let mut first = [0; BAND];
    for i in 0..BAND {
        first[i] = tiles[i / TILE] + row_part(rows.start + i);
    }
    for (column, col) in spreads.iter_mut().zip(cols) {
        let add = col_part(col);
        for i in 0..BAND {
            column[i] = first[i] + add;
        }
    }
}

/// Decodes a block of lossless bf16 tiles straight into `out`; false, with nothing read, when it is
/// another.
#[inline(always)]
pub(crate) fn decode_bf16_block(
    decoder: &mut SampleDecoder,
    slice: &SlicePlan,
    books: &Books,
    rows: Range<usize>,
    cols: Range<usize>,
    out: &mut [u8],
) -> bool {
    let plan = slice.plan;
    let tiles = || (rows.start..rows.end).step_by(TILE).map(|row| slice.tile_at(row, cols.start));
    if plan.dtype != Dtype::Bf16
        || rows.len() != BAND
        || plan.tile != TILE
        || !tiles().all(|t| t.format == Format::Lossless)
    {
        return false;
    }
    let Some(model) = books.patterns() else { return false };
    let width = cols.len();
    let base = plan.spread_base + (plan.step_base >> 1);
    let mut symbols = [[0u8; BAND]; TILE];
    let mut origins = [[0u16; BAND]; TILE];
    let even = plan.row_spread.is_empty() && plan.col_spread.is_empty() && tiles().all(|t| t.spread == 0);
    let mut spreads = [[0; BAND]; TILE];
    if even {
        let (table, origin) = model.context(base, 0);
        origins = [[origin as u16; BAND]; TILE];
        decode_columns_evenly(&mut decoder.lanes, model.tables(), table, &mut symbols[..width]);
    } else {
        let mut parts = [0; 2];
        parts.iter_mut().zip(tiles()).for_each(|(p, t)| *p = base + i32::from(t.spread));
        let (row_part, col_part) = (|r| entry(&plan.row_spread, r), |c| entry(&plan.col_spread, c));
        fill_spreads(&mut spreads, parts, rows.clone(), cols.clone(), row_part, col_part);
        let mut tables = [[0; BAND]; TILE];
        for j in 0..width {
            for i in 0..BAND {
                let (table, origin) = model.context(spreads[j][i], 0);
                (tables[j][i], origins[j][i]) = ((table as u32) << PROB_BITS, origin as u16);
            }
        }
        decode_columns(&mut decoder.lanes, model.tables(), &tables[..width], &mut symbols[..width]);
    }
    // All rests first: what is written in eights cannot be read in thirty-twos right away.
    let mut rests = [[0u8; BAND]; TILE];
    match decoder.bits.take_bytes(width * BAND / 8 * RAW_BF16 as usize) {
        Some(bytes) => spread_fields(bytes, RAW_BF16, rests[..width].as_flattened_mut()),
        None => {
            for eight in rests[..width].as_flattened_mut().chunks_exact_mut(8) {
                eight.copy_from_slice(&spread_bits(decoder.bits.peek(), RAW_BF16).to_le_bytes());
                decoder.bits.advance(8 * RAW_BF16 as usize);
            }
        }
    }
    let mut patterns = [[0u16; BAND]; TILE];
    for j in 0..width {
        for i in 0..BAND {
            let symbol = u16::from(symbols[j][i]);
            let head = symbol.wrapping_add(origins[j][i]).wrapping_sub(HEAD_FIRST as u16) & 0x7ff;
            let head = if symbol == u16::from(HEAD_ZERO) { 0 } else { head };
            let rest = u16::from(rests[j][i]);
            patterns[j][i] = (rest >> 4) << 15 | head << 4 | rest & 15;
        }
        if has_escape(&symbols[j]) {
            for i in (0..BAND).filter(|&i| symbols[j][i] == ESCAPE) {
                let spread = if even { base } else { spreads[j][i] };
                let head = model.head_of(decoder, model.context(spread, 0).1, ESCAPE, 0);
                patterns[j][i] = Dtype::Bf16.join(head, rests[j][i].into()) as u16;
            }
        }
    }
    write_columns(
        &patterns,
        width,
        plan.cols * 2,
        &mut out[((rows.start - slice.rows.start) * plan.cols + cols.start) * 2..],
    );
    true
}

/// Bits that a bf16 pattern has besides its head.
const RAW_BF16: u32 = Dtype::Bf16.raw_bits();

/// Writes columns of 16-bit elements as rows of `stride` bytes.
#[inline(always)]
fn write_columns(columns: &Columns<u16>, width: usize, stride: usize, out: &mut [u8]) {
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

/// Levels of a block, whose spreads in quarter octaves are known.
#[inline(always)]
fn decode_levels(decoder: &mut SampleDecoder, spreads: &Columns<i32>, width: usize, samples: &mut [i32]) {
    let last = LEVEL_TABLES as i32 - 1;
    let mut tables = [[0; BAND]; TILE];
    let mut widest = [0; TILE];
    for j in 0..width {
        for i in 0..BAND {
            let class = (spreads[j][i] + UNIT_CLASS).clamp(0, CLASSES as i32 - 1);
            widest[j] = class.max(widest[j]);
            let table = if class > last { last - 3 + ((class - last - 1) & 3) } else { class };
            tables[j][i] = (table as u32) << PROB_BITS;
        }
    }
    let mut symbols = [[0u8; BAND]; TILE];
    decode_columns(&mut decoder.lanes, Tables::fixed(), &tables[..width], &mut symbols[..width]);
    for j in 0..width {
        let column = &mut samples[j * BAND..(j + 1) * BAND];
        if widest[j] <= last && !has_escape(&symbols[j]) {
            for i in 0..BAND {
                column[i] = i32::from(symbols[j][i]) - LEVEL_ZERO;
            }
            continue;
        }
        for i in 0..BAND {
            let (shift, table) = level_table(crate::table::class_of(spreads[j][i]));
            let quotient = match symbols[j][i] {
                ESCAPE => code_escape(decoder, largest_level(table), 0),
                symbol => i32::from(symbol) - LEVEL_ZERO,
            };
            column[i] = crate::sample::join_level(decoder, shift, quotient, 0);
        }
    }
}

/// Patterns of a block, whose spreads in quarter octaves are known.
#[inline(always)]
fn decode_patterns<const DTYPE: u8>(
    decoder: &mut SampleDecoder,
    model: &HeadModel,
    spreads: &Columns<i32>,
    width: usize,
    samples: &mut [i32],
) {
    let dtype = const { Dtype::ALL[DTYPE as usize] };
    let raw = dtype.raw_bits();
    let mut tables = [[0; BAND]; TILE];
    let mut origins = [[0; BAND]; TILE];
    for j in 0..width {
        for i in 0..BAND {
            let (table, origin) = model.context(spreads[j][i], 0);
            tables[j][i] = (table as u32) << PROB_BITS;
            origins[j][i] = origin;
        }
    }
    let mut symbols = [[0u8; BAND]; TILE];
    decode_columns(&mut decoder.lanes, model.tables(), &tables[..width], &mut symbols[..width]);
    let mask = (1u32 << dtype.head_bits()) - 1;
    for j in 0..width {
        let column = &mut samples[j * BAND..(j + 1) * BAND];
        let mut rests = [0; BAND];
        read_fields(decoder, raw, &mut rests);
        for i in 0..BAND {
            let head = (i32::from(symbols[j][i]) - HEAD_FIRST + origins[j][i]) as u32 & mask;
            let head = if symbols[j][i] == HEAD_ZERO { 0 } else { head };
            column[i] = dtype.join(head, rests[i]) as i32;
        }
        if has_escape(&symbols[j]) {
            for i in (0..BAND).filter(|&i| symbols[j][i] == ESCAPE) {
                let head = model.head_of(decoder, origins[j][i], ESCAPE, 0);
                column[i] = dtype.join(head, rests[i]) as i32;
            }
        }
    }
}

/// Whether any of the symbols is the escape; every one is looked at, which is faster than stopping.
#[inline(always)]
fn has_escape(symbols: &[u8; BAND]) -> bool {
    let mut any = 0u8;
    for &symbol in symbols {
        any |= u8::from(symbol == ESCAPE);
    }
    any != 0
}

/// Reads 32 fields of `bits` bits.
#[inline(always)]
fn read_fields(decoder: &mut SampleDecoder, bits: u32, fields: &mut [u32; BAND]) {
    if bits <= 7 {
        let mut bytes = [0u8; BAND];
        for eight in bytes.chunks_exact_mut(8) {
            eight.copy_from_slice(&spread_bits(decoder.bits.peek(), bits).to_le_bytes());
            decoder.bits.advance(8 * bits as usize);
        }
        for i in 0..BAND {
            fields[i] = bytes[i].into();
        }
    } else {
        let mask = (1u64 << bits) - 1;
        for two in fields.chunks_exact_mut(2) {
            let word = decoder.bits.peek();
            decoder.bits.advance(2 * bits as usize);
            two[0] = (word & mask) as u32;
            two[1] = (word >> bits & mask) as u32;
        }
    }
}

/// Decodes columns one symbol after the other, `first` being the number of the first: the definition
/// that SIMD versions must equal.
pub fn decode_columns_plain(
    lanes: &mut LaneDecoder,
    tables: &Tables,
    offsets: &[[u32; BAND]],
    first: usize,
    symbols: &mut [[u8; BAND]],
) {
    for ((col, offsets), symbols) in (first..).zip(offsets).zip(symbols) {
        for (row, (&offset, symbol)) in offsets.iter().zip(symbols).enumerate() {
            *symbol = lanes.next(tables, (offset >> PROB_BITS) as usize, lane_of(row, col));
        }
    }
}
