//! Decoding a block of trellis-coded levels down its columns. Equal to
//! [`code_block`](crate::syntax::slice::code_block) for blocks of levels without transform.
//!
//! The table of a row follows from the level above it, so rows cannot be decoded side by side. Everything else is
//! computed before.

use std::ops::Range;

use crate::entropy::interleaved_rans::lane_of;
use crate::entropy::tables::{
    ESCAPE, LEVEL_ZERO, ODD_TABLE, Tables, class_of, largest_level, largest_odd_index, level_table,
};
use crate::syntax::sample::{MAX_LEVEL, SampleCoder, SampleDecoder, code_escape, join_level};
use crate::syntax::slice::SlicePlan;
use crate::syntax::tensor_plan::entry;
use crate::syntax::tile_plan::TileMode;
use crate::syntax::trellis::parity;

/// Most rows of a block.
const MAX_ROWS: usize = 64;

/// Decodes a block into `samples`, column by column, and moves the columns' `states`; false, with nothing read, for
/// any other block.
pub(crate) fn decode_trellis_block(
    decoder: &mut SampleDecoder,
    slice: &SlicePlan,
    rows: Range<usize>,
    cols: Range<usize>,
    states: &mut [u8],
    samples: &mut [i32],
) -> bool {
    let plan = slice.plan;
    let Some(trellis) = plan.parameters.trellis.filter(|_| plan.parameters.neighbours.is_none()) else { return false };
    // Part of the sigma index by row, an octave less: levels of one quantiser are two steps apart.
    let mut parts = [0; MAX_ROWS];
    for (i, row) in rows.clone().enumerate() {
        let tile = slice.tile_at(row, cols.start);
        if tile.mode != TileMode::Coded || tile.format.level_range().is_none() || !tile.transform.is_identity() {
            return false;
        }
        let unit = i32::from(tile.sigma) - i32::from(tile.step) - i32::from(tile.coarse);
        parts[i] = plan.sigma_base + unit + entry(&plan.row_sigma, row) - entry(&plan.row_scale, row) - 4;
    }
    let (tables, height) = (Tables::fixed(), rows.len());
    for (col, column) in cols.zip(samples.chunks_exact_mut(height)) {
        let part = entry(&plan.col_sigma, col) - entry(&plan.col_scale, col);
        let mut state = states[col];
        for (i, sample) in column.iter_mut().enumerate() {
            let (shift, table) = level_table(class_of(parts[i] + part));
            let odd = parity(state);
            let lane = lane_of(rows.start + i, col);
            let symbol = decoder.lanes.next(tables, table + odd as usize * ODD_TABLE, lane);
            let index = match symbol != ESCAPE && shift == 0 {
                true => i32::from(symbol) - LEVEL_ZERO,
                false => long_index(decoder, shift, table, odd, symbol),
            };
            *sample = (2 * index + odd).clamp(-MAX_LEVEL, MAX_LEVEL);
            state = trellis.next(state, *sample);
        }
        states[col] = state;
    }
    true
}

/// An index after an escape, or with bits that are stored as they are.
fn long_index(decoder: &mut SampleDecoder, shift: u32, table: usize, odd: i32, symbol: u8) -> i32 {
    if odd == 0 {
        let quotient = match symbol {
            ESCAPE => code_escape(decoder, largest_level(table), 0),
            _ => i32::from(symbol) - LEVEL_ZERO,
        };
        return join_level(decoder, shift, quotient, 0);
    }
    let quotient = match symbol {
        ESCAPE => {
            let escaped = code_escape(decoder, largest_odd_index(table) + 1, 0);
            escaped - i32::from(escaped > 0)
        }
        _ => i32::from(symbol) - LEVEL_ZERO,
    };
    quotient << shift | decoder.raw(shift, 0) as i32
}
