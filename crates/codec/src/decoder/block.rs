//! Decoding a whole block at once: 32 rows in 32 lanes by up to 16 columns. Equal to
//! [`code_block`](crate::syntax::slice::code_block) for blocks of levels or bit patterns.

#![allow(clippy::needless_range_loop)] // Loops over lanes by number are what the compiler makes wide.

use std::ops::Range;

use crate::constants::{BAND, LANE_PROB_BITS, TILE};
use crate::decoder::block_output::{Columns, write_columns};
use crate::entropy::table_data::LEVEL_TABLES;
use crate::entropy::tables::{
    CLASSES, ESCAPE, LEVEL_ZERO, PREFIX_FIRST, PREFIX_ZERO, Tables, UNIT_CLASS, largest_level, level_table,
};
use crate::format::{Dtype, Format};
use crate::simd::{dispatched, expand_bits, expand_fields};
use crate::syntax::float_prefix::{EntropyTables, FloatPrefixModel};
use crate::syntax::rests::Rests;
use crate::syntax::sample::{SampleDecoder, code_escape};
use crate::syntax::slice::SlicePlan;
use crate::syntax::tensor_plan::entry;
use crate::syntax::tile_plan::{TileMode, TilePlan, band};

dispatched! {
    /// Decodes a block of levels or bit patterns into `samples`, column by column; false, with nothing read, for any other.
    pub(super) fn decode_block(
        decoder: &mut SampleDecoder,
        slice: &SlicePlan,
        entropy_tables: &EntropyTables,
        rows: Range<usize>,
        cols: Range<usize>,
        samples: &mut [i32],
    ) -> bool = decode_block_inline
}

#[inline(always)]
fn decode_block_inline(
    decoder: &mut SampleDecoder,
    slice: &SlicePlan,
    entropy_tables: &EntropyTables,
    rows: Range<usize>,
    cols: Range<usize>,
    samples: &mut [i32],
) -> bool {
    let plan = slice.plan;
    if rows.len() != BAND || plan.tile != TILE || plan.parameters.neighbours.is_some() {
        return false;
    }
    let tiles = [rows.start, rows.start + TILE].map(|row| *slice.tile_at(row, cols.start));
    let (first, width) = (rows.start, cols.len());
    let mut sigmas = [[0; BAND]; TILE];
    if tiles.iter().all(|t| t.format == Format::Lossless) {
        let Some(model) = entropy_tables.lossless() else { return false };
        if model.dtype().layout().is_none() {
            decode_symbols(decoder, &model, cols, samples);
            return true;
        }
        let base = plan.sigma_base + (plan.step_base >> 1);
        fill_sigmas(
            &mut sigmas,
            tiles.map(|t| base + i32::from(t.sigma)),
            rows,
            cols,
            |r| entry(&plan.row_sigma, r),
            |c| entry(&plan.col_sigma, c),
        );
        // Raw bits of zeros, then of other elements by row.
        let widths = |rests: &Rests| {
            let zero = u32::from(rests.signed_zeros);
            (zero, std::array::from_fn(|i| rests.width(plan.dtype, first + i)))
        };
        let rests: Option<(u32, [u32; BAND])> = plan.parameters.rests.as_ref().map(widths);
        let rests = rests.as_ref();
        // One copy for each type, so that its shifts are constants.
        match model.dtype() {
            Dtype::Bf16 => decode_patterns::<{ Dtype::Bf16 as u8 }>(decoder, &model, &sigmas, rests, width, samples),
            Dtype::F16 => decode_patterns::<{ Dtype::F16 as u8 }>(decoder, &model, &sigmas, rests, width, samples),
            Dtype::F32 => decode_patterns::<{ Dtype::F32 as u8 }>(decoder, &model, &sigmas, rests, width, samples),
            Dtype::E4M3 => decode_patterns::<{ Dtype::E4M3 as u8 }>(decoder, &model, &sigmas, rests, width, samples),
            _ => decode_patterns::<{ Dtype::E5M2 as u8 }>(decoder, &model, &sigmas, rests, width, samples),
        }
        return true;
    }
    let levels = |t: &TilePlan| t.format.level_range().is_some() && t.mode == TileMode::Coded;
    if plan.parameters.trellis.is_some() {
        return false;
    }
    if !tiles.iter().all(levels) {
        return false;
    }
    let unit = |t: &TilePlan| plan.sigma_base + i32::from(t.sigma) - i32::from(t.step) - i32::from(t.coarse);
    let row_part = |r| entry(&plan.row_sigma, r) - entry(&plan.row_scale, r);
    let col_part = |c| entry(&plan.col_sigma, c) - entry(&plan.col_scale, c);
    fill_sigmas(&mut sigmas, tiles.map(|t| unit(&t)), rows.clone(), cols.clone(), row_part, col_part);
    for (half, tile) in tiles.iter().enumerate() {
        if tile.transform.is_identity() || !plan.is_full(rows.start + half * TILE, cols.start) {
            continue;
        }
        for (j, column) in sigmas.iter_mut().enumerate() {
            for (i, sigma) in column[half * TILE..][..TILE].iter_mut().enumerate() {
                *sigma = unit(tile) + i32::from(plan.parameters.bands[band(tile.transform, i, j)]);
            }
        }
    }
    decode_levels(decoder, &sigmas, width, samples);
    true
}

#[inline(always)]
fn fill_sigmas(
    sigmas: &mut Columns<i32>,
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
    for (column, col) in sigmas.iter_mut().zip(cols) {
        let add = col_part(col);
        for i in 0..BAND {
            column[i] = first[i] + add;
        }
    }
}

dispatched! {
    /// Decodes a block of lossless bf16 tiles straight into `out`; false, with nothing read, for any other.
    pub(super) fn decode_bf16_block(
        decoder: &mut SampleDecoder,
        slice: &SlicePlan,
        entropy_tables: &EntropyTables,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [u8],
    ) -> bool = decode_bf16_block_inline
}

#[inline(always)]
fn decode_bf16_block_inline(
    decoder: &mut SampleDecoder,
    slice: &SlicePlan,
    entropy_tables: &EntropyTables,
    rows: Range<usize>,
    cols: Range<usize>,
    out: &mut [u8],
) -> bool {
    let plan = slice.plan;
    let tiles = || (rows.start..rows.end).step_by(TILE).map(|row| slice.tile_at(row, cols.start));
    if plan.dtype != Dtype::Bf16
        || rows.len() != BAND
        || plan.parameters.rests.is_some()
        || plan.tile != TILE
        || !tiles().all(|t| t.format == Format::Lossless)
    {
        return false;
    }
    let Some(model) = entropy_tables.lossless() else { return false };
    let width = cols.len();
    let base = plan.sigma_base + (plan.step_base >> 1);
    let mut symbols = [[0u8; BAND]; TILE];
    let mut origins = [[0u16; BAND]; TILE];
    let even = plan.row_sigma.is_empty() && plan.col_sigma.is_empty() && tiles().all(|t| t.sigma == 0);
    let mut sigmas = [[0; BAND]; TILE];
    if even {
        let (table, origin) = model.context(base, 0);
        origins = [[origin as u16; BAND]; TILE];
        decoder.lanes.next_columns_evenly(model.tables(), table, &mut symbols[..width]);
    } else {
        let mut parts = [0; 2];
        parts.iter_mut().zip(tiles()).for_each(|(p, t)| *p = base + i32::from(t.sigma));
        let (row_part, col_part) = (|r| entry(&plan.row_sigma, r), |c| entry(&plan.col_sigma, c));
        fill_sigmas(&mut sigmas, parts, rows.clone(), cols.clone(), row_part, col_part);
        let mut tables = [[0; BAND]; TILE];
        for j in 0..width {
            for i in 0..BAND {
                let (table, origin) = model.context(sigmas[j][i], 0);
                (tables[j][i], origins[j][i]) = ((table as u32) << LANE_PROB_BITS, origin as u16);
            }
        }
        decoder.lanes.next_columns(model.tables(), &tables[..width], &mut symbols[..width]);
    }
    // All raw bits first: stores of eight bytes do not forward to loads of 32 right away.
    let mut rests = [[0u8; BAND]; TILE];
    match decoder.bits.take_bytes(width * BAND / 8 * RAW_BF16 as usize) {
        Some(bytes) => expand_fields(bytes, RAW_BF16, rests[..width].as_flattened_mut()),
        None => {
            for eight in rests[..width].as_flattened_mut().chunks_exact_mut(8) {
                eight.copy_from_slice(&expand_bits(decoder.bits.peek(), RAW_BF16).to_le_bytes());
                decoder.bits.advance(8 * RAW_BF16 as usize);
            }
        }
    }
    let mut patterns = [[0u16; BAND]; TILE];
    for j in 0..width {
        for i in 0..BAND {
            let symbol = u16::from(symbols[j][i]);
            let prefix = symbol.wrapping_add(origins[j][i]).wrapping_sub(PREFIX_FIRST as u16) & 0x7ff;
            let prefix = if symbol == u16::from(PREFIX_ZERO) { 0 } else { prefix };
            let rest = u16::from(rests[j][i]);
            patterns[j][i] = (rest >> 4) << 15 | prefix << 4 | rest & 15;
        }
        if has_escape(&symbols[j]) {
            for i in (0..BAND).filter(|&i| symbols[j][i] == ESCAPE) {
                let sigma = if even { base } else { sigmas[j][i] };
                let prefix = model.prefix_of(decoder, model.context(sigma, 0).1, ESCAPE, 0);
                patterns[j][i] = Dtype::Bf16.join(prefix, rests[j][i].into()) as u16;
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

/// Bits that a bf16 pattern has besides its prefix.
const RAW_BF16: u32 = Dtype::Bf16.raw_bits();

/// Decodes the levels of a block, given their sigma indices.
#[inline(always)]
fn decode_levels(decoder: &mut SampleDecoder, sigmas: &Columns<i32>, width: usize, samples: &mut [i32]) {
    let last = LEVEL_TABLES as i32 - 1;
    let mut tables = [[0; BAND]; TILE];
    let mut widest = [0; TILE];
    for j in 0..width {
        for i in 0..BAND {
            let class = (sigmas[j][i] + UNIT_CLASS).clamp(0, CLASSES as i32 - 1);
            widest[j] = class.max(widest[j]);
            let table = if class > last { last - 3 + ((class - last - 1) & 3) } else { class };
            tables[j][i] = (table as u32) << LANE_PROB_BITS;
        }
    }
    let mut symbols = [[0u8; BAND]; TILE];
    decoder.lanes.next_columns(Tables::fixed(), &tables[..width], &mut symbols[..width]);
    for j in 0..width {
        let column = &mut samples[j * BAND..(j + 1) * BAND];
        if widest[j] <= last && !has_escape(&symbols[j]) {
            for i in 0..BAND {
                column[i] = i32::from(symbols[j][i]) - LEVEL_ZERO;
            }
            continue;
        }
        for i in 0..BAND {
            let (shift, table) = level_table(crate::entropy::tables::class_of(sigmas[j][i]));
            let quotient = match symbols[j][i] {
                ESCAPE => code_escape(decoder, largest_level(table), 0),
                symbol => i32::from(symbol) - LEVEL_ZERO,
            };
            column[i] = crate::syntax::sample::join_level(decoder, shift, quotient, 0);
        }
    }
}

/// Decodes a block of bytes or nibbles, which are symbols themselves.
#[inline(always)]
fn decode_symbols(decoder: &mut SampleDecoder, model: &FloatPrefixModel, cols: Range<usize>, samples: &mut [i32]) {
    let mut tables = [[0; BAND]; TILE];
    for (tables, col) in tables.iter_mut().zip(cols.clone()) {
        *tables = [(model.context(0, col).0 as u32) << LANE_PROB_BITS; BAND];
    }
    let mut symbols = [[0u8; BAND]; TILE];
    let width = cols.len();
    decoder.lanes.next_columns(model.tables(), &tables[..width], &mut symbols[..width]);
    samples.iter_mut().zip(symbols.as_flattened()).for_each(|(sample, &symbol)| *sample = symbol.into());
}

/// Decodes the bit patterns of a block, given their sigma indices, and raw bits by row where not all are coded.
#[inline(always)]
fn decode_patterns<const DTYPE: u8>(
    decoder: &mut SampleDecoder,
    model: &FloatPrefixModel,
    sigmas: &Columns<i32>,
    widths: Option<&(u32, [u32; BAND])>,
    width: usize,
    samples: &mut [i32],
) {
    let dtype = const { Dtype::ALL[DTYPE as usize] };
    let raw = dtype.raw_bits();
    let mut tables = [[0; BAND]; TILE];
    let mut origins = [[0; BAND]; TILE];
    for j in 0..width {
        for i in 0..BAND {
            let (table, origin) = model.context(sigmas[j][i], 0);
            tables[j][i] = (table as u32) << LANE_PROB_BITS;
            origins[j][i] = origin;
        }
    }
    let mut symbols = [[0u8; BAND]; TILE];
    decoder.lanes.next_columns(model.tables(), &tables[..width], &mut symbols[..width]);
    let mask = (1u32 << dtype.prefix_bits()) - 1;
    for j in 0..width {
        let column = &mut samples[j * BAND..(j + 1) * BAND];
        let mut rests = [0; BAND];
        match widths {
            None => read_fields(decoder, raw, &mut rests),
            Some((zero, widths)) => {
                for i in 0..BAND {
                    let bits = if symbols[j][i] == PREFIX_ZERO { *zero } else { widths[i] };
                    rests[i] = decoder.bits.read(bits) << (raw - bits);
                }
            }
        }
        for i in 0..BAND {
            let prefix = (i32::from(symbols[j][i]) - PREFIX_FIRST + origins[j][i]) as u32 & mask;
            let prefix = if symbols[j][i] == PREFIX_ZERO { 0 } else { prefix };
            column[i] = dtype.join(prefix, rests[i]) as i32;
        }
        if has_escape(&symbols[j]) {
            for i in (0..BAND).filter(|&i| symbols[j][i] == ESCAPE) {
                let prefix = model.prefix_of(decoder, origins[j][i], ESCAPE, 0);
                column[i] = dtype.join(prefix, rests[i]) as i32;
            }
        }
    }
}

/// True if any symbol is the escape. Testing all is faster than stopping at the first.
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
            eight.copy_from_slice(&expand_bits(decoder.bits.peek(), bits).to_le_bytes());
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
