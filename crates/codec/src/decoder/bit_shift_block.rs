//! Decoding a block of codes of a bit-shift trellis down its columns. Equal to
//! [`code_block`](crate::syntax::slice::code_block) for such blocks.

use std::ops::Range;

use crate::syntax::sample::SampleDecoder;
use crate::syntax::slice::SlicePlan;
use crate::syntax::tile_plan::TileMode;

/// Decodes a block into `samples`, column by column, and moves the columns' `states`; false, with nothing read, for any
/// other block.
pub(super) fn decode_bit_shift_block(
    decoder: &mut SampleDecoder,
    slice: &SlicePlan,
    rows: Range<usize>,
    cols: Range<usize>,
    states: &mut [u32],
    samples: &mut [i32],
) -> bool {
    let (Some(trellis), side) = (slice.plan.parameters.bit_shift, slice.plan.tile) else { return false };
    let height = rows.len();
    let widths = rows.clone().step_by(side).map(|row| {
        let tile = slice.tile_at(row, cols.start);
        match tile.mode {
            TileMode::BitShift(bits) if tile.format.level_range().is_some() => Some(u32::from(bits)),
            _ => None,
        }
    });
    let Some(widths) = widths.collect::<Option<Vec<u32>>>() else { return false };
    for (col, column) in cols.zip(samples.chunks_exact_mut(height)) {
        let mut state = states[col];
        for (part, &bits) in column.chunks_mut(side).zip(&widths) {
            for sample in part {
                state = trellis.next(state, bits, decoder.bits.read(bits));
                *sample = state as i32;
            }
        }
        states[col] = state;
    }
    true
}
