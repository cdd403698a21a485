//! Raw bits that a tensor's lossless elements need not have.

use crate::encoder::sigma_fit::ENTRY_BITS;
use crate::encoder::statistics::pattern;
use crate::format::Format;
use crate::syntax::rests::Rests;
use crate::syntax::tensor_plan::TensorPlan;

/// Low bits that are zero in every element, or in those of single rows; zeros have none. `None` where nearly all raw bits are needed.
pub(super) fn rests_of(plan: &TensorPlan, bytes: &[u8]) -> Option<Rests> {
    let (dtype, cols) = (plan.dtype, plan.cols);
    let most = dtype.raw_bits() - 1;
    // Rows whose elements are not cut show it in their first ones.
    let row_cut = |row: usize| {
        let mut any = 0;
        for i in row * cols..(row + 1) * cols {
            any |= pattern(dtype, bytes, i);
            if any & 1 == 1 {
                return 0;
            }
        }
        any.trailing_zeros().min(most)
    };
    let cuts: Vec<u32> = (0..plan.rows).map(row_cut).collect();
    let least = cuts.iter().copied().min().unwrap_or(0);
    let further = cuts.iter().map(|&c| u64::from(c - least) * cols as u64).sum::<u64>();
    let rows = if further as f64 > cuts.len() as f64 * ENTRY_BITS {
        cuts.iter().map(|&c| (c - least) as i8).collect()
    } else {
        Vec::new()
    };
    let sampled = || (0..plan.rows * cols).step_by(61);
    let sign = 1u32 << (dtype.bits() - 1);
    let zeros = |of: u32| sampled().filter(|&i| pattern(dtype, bytes, i) == of).count();
    let (zeros, negative) = (zeros(0), zeros(sign));
    let used = least > 0 || !rows.is_empty() || (zeros + negative) * 64 > sampled().count();
    used.then_some(Rests { cut: least as u8, signed_zeros: negative * 32 > zeros, rows })
}

/// Low bits that are zero in the elements of all lossless tiles; `None` where all raw bits are needed, and few elements are zero.
pub(super) fn rests_of_tiles(plan: &TensorPlan, pattern: impl Fn(usize) -> u32) -> Option<Rests> {
    if !plan.dtype.is_weight() {
        return None;
    }
    let (mut any, mut counts) = (0, [0usize; 3]);
    for (n, _) in plan.tiles.iter().enumerate().filter(|(_, t)| t.format == Format::Lossless) {
        let (rows, cols) = plan.tile_range(n);
        for i in rows.flat_map(|row| cols.clone().map(move |col| row * plan.cols + col)) {
            let pattern = pattern(i);
            any |= pattern;
            counts[0] += 1;
            counts[1] += usize::from(pattern == 0);
            counts[2] += usize::from(pattern == 1 << (plan.dtype.bits() - 1));
        }
    }
    let cut = any.trailing_zeros().min(plan.dtype.raw_bits() - 1);
    let [all, zeros, negative] = counts;
    (cut > 0 || (zeros + negative) * 64 > all).then_some(Rests {
        cut: cut as u8,
        signed_zeros: negative * 32 > zeros,
        rows: Vec::new(),
    })
}
