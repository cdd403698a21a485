//! Steps of tiles whose levels have a fixed number of bits.

use std::ops::Range;

use waterfill_allocate::TrellisStep;
use waterfill_checkpoint::packed::PackedFormat;
use waterfill_codec::scale::scale;
use waterfill_codec::{Format, TileMode, TilePlan};

use super::input::LdlqInput;

/// Steps of codes are fitted at most this many quarter octaves from the allocated one.
const FITTED: i32 = 8;

/// Steps are searched this many quarter octaves around the allocated one.
const SEARCHED: i32 = 4;

/// Smallest and largest level of tile `n`: of its format, and of its width where that is fixed.
pub(super) fn level_range(input: &LdlqInput, n: usize, format: Format) -> Option<(i32, i32)> {
    let (least, most) = format.level_range()?;
    let of_width =
        |bits: u8| PackedFormat::INTEGERS.iter().find(|f| f.level_bits() == Some(bits.into()))?.level_range();
    let fixed = input.widths.and_then(|widths| of_width(widths[n]));
    Some(fixed.map_or((least, most), |(from, to)| (least.max(from), most.min(to))))
}

/// The step of tile `n` with which rounding and clipping `targets` loses least. Targets are those of its columns from the
/// first on, column by column in slices of `rows`: feedback has moved them from the weights that allocation saw.
pub(super) fn best_step(input: &LdlqInput, n: usize, step: i16, rows: Range<usize>, targets: &[f32]) -> i16 {
    let (plan, loss_weights) = (input.plan, input.loss_weights);
    let Some((least, most)) = level_range(input, n, plan.tiles[n].format) else { return step };
    let (own_rows, cols) = plan.tile_range(n);
    let (least, most) = (least as f32, most as f32);
    // Targets and loss weights in steps of the allocated size.
    let mut scaled = Vec::with_capacity(plan.tile * plan.tile);
    let tile = TilePlan { step, ..plan.tiles[n] };
    for (targets, col) in targets.chunks_exact(rows.len()).zip(cols) {
        for row in own_rows.clone() {
            let size = scale(plan.scale_index(&tile, row, col));
            let weight = loss_weights.rows[row] * loss_weights.cols[col] * size * size;
            scaled.push((targets[row - rows.start] / size, weight));
        }
    }
    let possible = plan.steps(n, tile.format);
    if let (TileMode::BitShift(bits), Some(trellis)) = (tile.mode, plan.parameters.bit_shift) {
        let (values, weights): (Vec<f32>, Vec<f32>) = scaled.into_iter().unzip();
        let own = i32::from(step);
        // Far from the allocated step a tile does not follow: at one bit, errors that feed more errors could grow without end.
        let possible = (possible.start() - own).max(-FITTED)..=(possible.end() - own).min(FITTED);
        let best = TrellisStep::best(&TrellisStep::measure(&values, &weights, &possible), trellis, bits);
        return best.map_or(step, |(more, _)| (own + more) as i16);
    }
    let loss = |step: i32| {
        let size = (step as f32 / 4.0).exp2();
        let error = |&(target, weight): &(f32, f32)| {
            let level = (target / size).round_ties_even().clamp(least, most);
            weight * (target - level * size).powi(2)
        };
        scaled.iter().map(error).sum::<f32>()
    };
    let searched = (-SEARCHED..=SEARCHED).filter(|more| possible.contains(&(i32::from(step) + more)));
    let best = searched.map(|more| (loss(more), more)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(step, |(_, more)| step + more as i16)
}
