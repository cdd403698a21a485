//! Decoding a whole block at once: 32 rows in 32 lanes by up to 16 columns. Gives exactly what
//! [`crate::slice::code_block`] gives, for blocks of levels or patterns.

use std::ops::Range;

use crate::TILE;
use crate::error::Result;
use crate::format::{Dtype, Format};
use crate::lanes::{LaneDecoder, MAX_LANES};
use crate::plan::entry;
use crate::plane::TileScales;
use crate::sample::{HeadModel, SampleCoder, SampleDecoder, code_escape};
use crate::side::Books;
use crate::simd::decode_columns;
use crate::slice::SlicePlan;
use crate::table::{
    CLASSES, ESCAPE, HEAD_FIRST, HEAD_ZERO, LEVEL_ZERO, PROB_BITS, Tables, UNIT_CLASS, largest_level, level_table,
};
use crate::tables::LEVEL_TABLES;
use crate::tile::{Kind, TilePlan};
use crate::transform::band;

/// A number for every sample of a block, column by column.
pub type Columns<T> = [[T; MAX_LANES]; TILE];

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
    if rows.len() != MAX_LANES || plan.tile != TILE || plan.parameters.neighbours.is_some() {
        return false;
    }
    let tiles = [rows.start, rows.start + TILE].map(|row| *slice.tile_at(row, cols.start));
    let width = cols.len();
    let mut spreads = [[0; MAX_LANES]; TILE];
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
            Dtype::Bf16 => decode_patterns(decoder, &model, Dtype::Bf16, &spreads, width, samples),
            Dtype::F32 => decode_patterns(decoder, &model, Dtype::F32, &spreads, width, samples),
            Dtype::F16 => decode_patterns(decoder, &model, Dtype::F16, &spreads, width, samples),
            dtype => decode_patterns(decoder, &model, dtype, &spreads, width, samples),
        }
        return true;
    }
    let levels = |t: &TilePlan| t.format.level_range().is_some() && t.kind == Kind::Coded;
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
    let mut patterns = [[0u16; MAX_LANES]; TILE];
    for (half, tile) in tiles.iter().enumerate() {
        let n = (rows.start - slice.rows.start) / TILE * plan.tiles_across()
            + half * plan.tiles_across()
            + cols.start / TILE;
        let columns = patterns.iter_mut().zip(samples.chunks_exact(MAX_LANES));
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
    let (stride, width) = (plan.cols * 2, cols.len());
    for (i, row) in rows.enumerate() {
        let line = &mut out[(row - slice.rows.start) * stride + cols.start * 2..][..width * 2];
        for (to, column) in line.chunks_exact_mut(2).zip(&patterns) {
            to.copy_from_slice(&column[i].to_le_bytes());
        }
    }
    Ok(true)
}

/// bf16 pattern of a finite value, rounded to nearest even.
#[inline]
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
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
    let mut first = [0; MAX_LANES];
    for (i, (part, row)) in first.iter_mut().zip(rows).enumerate() {
        *part = tiles[i / TILE] + row_part(row);
    }
    for (column, col) in spreads.iter_mut().zip(cols) {
        let add = col_part(col);
        column.iter_mut().zip(&first).for_each(|(s, f)| *s = f + add);
    }
}

#[inline(always)]
fn decode_levels(decoder: &mut SampleDecoder, spreads: &Columns<i32>, width: usize, samples: &mut [i32]) {
    let last = LEVEL_TABLES as i32 - 1;
    let mut tables = [[0; MAX_LANES]; TILE];
    let mut widest = [0; TILE];
    for ((tables, spreads), widest) in tables.iter_mut().zip(spreads).zip(&mut widest) {
        for (table, &spread) in tables.iter_mut().zip(spreads) {
            let class = (spread + UNIT_CLASS).clamp(0, CLASSES as i32 - 1);
            *widest = class.max(*widest);
            let table_class = if class > last { last - 3 + ((class - last - 1) & 3) } else { class };
            *table = (table_class as u32) << PROB_BITS;
        }
    }
    let mut symbols = [[0u8; MAX_LANES]; TILE];
    decode_columns(&mut decoder.lanes, Tables::fixed(), &tables[..width], &mut symbols[..width]);
    for (j, (symbols, column)) in symbols.iter().zip(samples.chunks_exact_mut(MAX_LANES)).enumerate() {
        let escapes = has_escape(symbols);
        if widest[j] <= last && !escapes {
            column.iter_mut().zip(symbols).for_each(|(s, &symbol)| *s = i32::from(symbol) - LEVEL_ZERO);
            continue;
        }
        for ((sample, &symbol), &spread) in column.iter_mut().zip(symbols).zip(&spreads[j]) {
            let (shift, table) = level_table(crate::table::class_of(spread));
            let quotient = match symbol {
                ESCAPE => code_escape(decoder, largest_level(table), 0),
                _ => i32::from(symbol) - LEVEL_ZERO,
            };
            *sample = crate::sample::join_level(decoder, shift, quotient, 0);
        }
    }
}

#[inline(always)]
fn decode_patterns(
    decoder: &mut SampleDecoder,
    model: &HeadModel,
    dtype: Dtype,
    spreads: &Columns<i32>,
    width: usize,
    samples: &mut [i32],
) {
    let raw = dtype.raw_bits();
    let mut tables = [[0; MAX_LANES]; TILE];
    let mut origins = [[0; MAX_LANES]; TILE];
    for ((tables, origins), spreads) in tables.iter_mut().zip(&mut origins).zip(spreads) {
        for ((table, origin), &spread) in tables.iter_mut().zip(origins).zip(spreads) {
            let context = model.context(spread, 0);
            (*table, *origin) = ((context.0 as u32) << PROB_BITS, context.1);
        }
    }
    let mut symbols = [[0u8; MAX_LANES]; TILE];
    decode_columns(&mut decoder.lanes, model.tables(), &tables[..width], &mut symbols[..width]);
    let mask = (1u32 << dtype.head_bits()) - 1;
    for (j, (symbols, column)) in symbols.iter().zip(samples.chunks_exact_mut(MAX_LANES)).enumerate() {
        if has_escape(symbols) {
            for ((sample, &symbol), &origin) in column.iter_mut().zip(symbols).zip(&origins[j]) {
                let head = model.head_of(decoder, origin, symbol, 0);
                *sample = dtype.join(head, decoder.raw(raw, 0)) as i32;
            }
            continue;
        }
        let mut rests = [0; MAX_LANES];
        read_fields(decoder, raw, &mut rests);
        for (((sample, &symbol), &origin), &rest) in column.iter_mut().zip(symbols).zip(&origins[j]).zip(&rests) {
            let head = (i32::from(symbol) - HEAD_FIRST + origin) as u32 & mask;
            let head = if symbol == HEAD_ZERO { 0 } else { head };
            *sample = dtype.join(head, rest) as i32;
        }
    }
}

/// Whether any of the symbols is the escape; every one is looked at, which is faster than stopping.
#[inline(always)]
fn has_escape(symbols: &[u8; MAX_LANES]) -> bool {
    symbols.iter().fold(false, |any, &s| any | (s == ESCAPE))
}

/// Reads 32 fields of `bits` bits.
#[inline(always)]
fn read_fields(decoder: &mut SampleDecoder, bits: u32, fields: &mut [u32; MAX_LANES]) {
    let mask = (1u64 << bits) - 1;
    if bits <= 7 {
        for eight in fields.chunks_exact_mut(8) {
            let word = decoder.bits.peek();
            decoder.bits.advance(8 * bits as usize);
            for (k, field) in eight.iter_mut().enumerate() {
                *field = (word >> (k as u32 * bits) & mask) as u32;
            }
        }
    } else {
        for two in fields.chunks_exact_mut(2) {
            let word = decoder.bits.peek();
            decoder.bits.advance(2 * bits as usize);
            two[0] = (word & mask) as u32;
            two[1] = (word >> bits & mask) as u32;
        }
    }
}

/// Decodes columns one symbol after the other: the definition that SIMD versions must equal.
pub fn decode_columns_plain(
    lanes: &mut LaneDecoder,
    tables: &Tables,
    offsets: &[[u32; MAX_LANES]],
    symbols: &mut [[u8; MAX_LANES]],
) {
    for (offsets, symbols) in offsets.iter().zip(symbols) {
        for (lane, (&offset, symbol)) in offsets.iter().zip(symbols).enumerate() {
            *symbol = lanes.next(tables, (offset >> PROB_BITS) as usize, lane);
        }
    }
}
