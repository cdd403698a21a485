//! Frequency tables of a tensor's own, where they cost less than they save.

use crate::constants::LANE_PROB_BITS;
use crate::encoder::rests::rests_of_tiles;
use crate::entropy::models::RateCounter;
use crate::entropy::tables::ESCAPE;
use crate::format::Format;
use crate::syntax::float_prefix::FloatPrefixModel;
use crate::syntax::sample::SampleCounter;
use crate::syntax::side_info::{code_frequencies, frequencies};
use crate::syntax::tensor_plan::TensorPlan;
use crate::units::Rate;

/// The plan with a frequency table of its own for lossless tiles, where that costs less than it saves.
pub(super) fn with_frequency_tables(plan: &TensorPlan, pattern: impl Fn(usize) -> u32) -> TensorPlan {
    let mut plan = plan.clone();
    if !plan.parameters.frequency_tables.is_empty() || !plan.tiles.iter().any(|t| t.format == Format::Lossless) {
        return plan;
    }
    plan.parameters.rests = rests_of_tiles(&plan, &pattern);
    let rests = plan.parameters.rests.as_ref();
    let mut counts = [0u64; 256];
    let mut fixed = SampleCounter::default();
    let model = FloatPrefixModel::fixed(plan.dtype);
    for (n, tile) in plan.tiles.iter().enumerate().filter(|(_, t)| t.format == Format::Lossless) {
        let (rows, cols) = plan.tile_range(n);
        for row in rows {
            for col in cols.clone() {
                let pattern = pattern(row * plan.cols + col);
                let (prefix, _) = plan.dtype.split(pattern);
                let sigma = plan.lossless_sigma(tile, row, col);
                model.code_prefix(&mut fixed, row, col, sigma, prefix);
                let (_, origin) = model.context(sigma, col);
                let other = rests.is_some_and(|rests| prefix == 0 && !rests.is_zero(plan.dtype, pattern));
                let symbol = if other { ESCAPE } else { model.symbol_of_any(origin, prefix) };
                counts[usize::from(symbol)] += 1;
            }
        }
    }
    if let Some((table, rate)) = own_table(&counts)
        && rate.0 < fixed.rate().0
    {
        plan.parameters.frequency_tables = vec![table];
    }
    plan
}

/// Frequencies for counted symbols, and the bits that table and symbols take together.
pub(super) fn own_table(counts: &[u64; 256]) -> Option<([u16; 256], Rate)> {
    let mut table = frequencies(counts)?;
    let mut counter = RateCounter::default();
    code_frequencies(&mut counter, &mut table).ok()?;
    let bits = |(&count, &f): (&u64, &u16)| count as f64 * (f64::from(LANE_PROB_BITS) - f64::from(f.max(1)).log2());
    Some((table, counter.rate() + Rate(counts.iter().zip(&table).map(bits).sum())))
}
