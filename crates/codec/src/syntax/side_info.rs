//! Syntax of side information: row and column vectors, frequency tables, parameters of tools (section 4 of
//! `docs/BITSTREAM.md`).

use crate::constants::LANE_PROB_ONE;
use crate::entropy::models::{BitModel, Coder, IntModel};
use crate::error::{CodecError, Result};
use crate::syntax::bit_shift::BitShiftTrellis;
use crate::syntax::tensor_plan::{FrequencyTables, MAX_FREQUENCY_TABLES, TensorPlan};
use crate::syntax::tile_header::{HeaderContext, HeaderModels, code_tile};
use crate::syntax::tile_plan::TilePlan;
use crate::syntax::tools::Tools;
use crate::syntax::trellis::Trellis;

/// Codes an optional vector of small indices; an absent vector is empty.
pub fn code_vector<C: Coder>(coder: &mut C, values: &mut Vec<i8>, length: usize) {
    let present = coder.raw(1, u32::from(!values.is_empty())) == 1;
    values.resize(if present { length } else { 0 }, 0);
    code_entries(coder, values);
}

fn code_entries<C: Coder>(coder: &mut C, values: &mut [i8]) {
    let mut model = IntModel::default();
    for value in values {
        if coder.exhausted() {
            return;
        }
        *value = model.code(coder, i32::from(*value)).clamp(-127, 127) as i8;
    }
}

/// Largest number of weights of a dictionary.
pub const MAX_DICTIONARY: usize = 1 << 22;

/// Scales counts to frequencies; every symbol that occurs keeps at least one. `None` without counts.
pub fn frequencies(counts: &[u64; 256]) -> Option<[u16; 256]> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let one = i64::from(LANE_PROB_ONE);
    let mut frequencies = counts.map(|c| match c {
        0 => 0,
        _ => ((c as f64 * one as f64 / total as f64).round() as i64).max(1),
    });
    // The most frequent symbols absorb the rounding: it costs least there.
    let mut excess = frequencies.iter().sum::<i64>() - one;
    while excess != 0 {
        let largest = frequencies.iter_mut().max().expect("256 entries");
        let change = if excess > 0 { excess.min((*largest / 16).max(1)) } else { excess };
        *largest -= change;
        excess -= change;
    }
    Some(frequencies.map(|f| f as u16))
}

/// Codes the frequencies of a table: bit lengths as differences from the previous one, then the lower bits.
///
/// # Errors
/// Frequencies read that do not sum to 2^12.
pub fn code_frequencies<C: Coder>(coder: &mut C, frequencies: &mut [u16; 256]) -> Result<()> {
    let mut present = [BitModel::default(); 2];
    let mut length = IntModel::default();
    let (mut occurs, mut last) = (0, 4);
    for frequency in frequencies.iter_mut() {
        // A symbol that occurs is likely next to another that occurs.
        occurs = usize::from(coder.bit(&mut present[occurs], *frequency > 0));
        if occurs == 0 {
            *frequency = 0;
            continue;
        }
        let bits = (u16::BITS - frequency.leading_zeros()) as i32;
        let bits = (last + length.code(coder, bits - last)).clamp(1, 13);
        last = bits;
        let low = bits as u32 - 1;
        *frequency = 1 << low | coder.raw_wide(low, u32::from(*frequency) & ((1 << low) - 1)) as u16;
    }
    match frequencies.iter().map(|&f| u32::from(f)).sum::<u32>() {
        LANE_PROB_ONE => Ok(()),
        sum => Err(CodecError::Field { field: "sum of frequencies", found: sum.into(), expected: "4096" }),
    }
}

fn code_frequency_tables<C: Coder>(coder: &mut C, frequency_tables: &mut FrequencyTables) -> Result<()> {
    let tables = coder.raw(4, frequency_tables.len() as u32) as usize;
    if !(1..=MAX_FREQUENCY_TABLES).contains(&tables) {
        return Err(CodecError::Field { field: "prefix tables", found: tables as i64, expected: "1..=8" });
    }
    frequency_tables.resize(tables, [0; 256]);
    frequency_tables.iter_mut().try_for_each(|table| code_frequencies(coder, table))
}

/// Codes everything of a plan that is neither in the header nor in slices. A decoder fills in vectors and parameters.
///
/// # Errors
/// Values outside their limits.
pub fn code_side<C: Coder>(coder: &mut C, plan: &mut TensorPlan, tools: Tools, first: &mut TilePlan) -> Result<()> {
    code_vector(coder, &mut plan.row_scale, plan.rows);
    code_vector(coder, &mut plan.col_scale, plan.cols);
    code_vector(coder, &mut plan.row_sigma, plan.rows);
    code_vector(coder, &mut plan.col_sigma, plan.cols);
    let parameters = &mut plan.parameters;
    parameters.merge = tools.has(Tools::MERGE);
    if tools.has(Tools::LINEAR) {
        code_entries(coder, &mut parameters.linear);
    }
    if tools.has(Tools::CENTROIDS) {
        code_entries(coder, &mut parameters.centroids);
    }
    if tools.has(Tools::TRANSFORMS) {
        code_entries(coder, &mut parameters.bands);
    }
    if tools.has(Tools::NEIGHBOURS) {
        code_entries(coder, parameters.neighbours.get_or_insert([0; 8]));
    }
    if tools.has(Tools::DICTIONARY) {
        let rows = coder.raw(8, (parameters.dictionary.len() as u32).wrapping_sub(1) & 255) as usize + 1;
        let mut step = IntModel::default();
        parameters.dictionary_step = step.code(coder, parameters.dictionary_step.into()).clamp(-2000, 2000) as i16;
        if rows * plan.cols > MAX_DICTIONARY {
            let found = (rows * plan.cols) as i64;
            return Err(CodecError::Field { field: "weights of the dictionary", found, expected: "at most 2^22" });
        }
        parameters.dictionary.resize(rows, vec![0; plan.cols]);
        parameters.dictionary.iter_mut().for_each(|row| code_entries(coder, row));
    }
    if tools.has(Tools::LEARNED) {
        let matrix = parameters.learned.get_or_insert_with(|| Box::new([0; 256]));
        for value in matrix.iter_mut() {
            // Entries of an orthogonal matrix lie within one; sums of sixteen products then fit 32 bits.
            let read = coder.raw(14, (i32::from(*value) + (1 << 13)) as u32 & 0x3fff) as i32 - (1 << 13);
            *value = read.clamp(-4096, 4096) as i16;
        }
    }
    if tools.has(Tools::FILTER) {
        code_entries(coder, parameters.filter.get_or_insert([0; 2]));
    }
    if tools.has(Tools::TRELLIS) {
        let states = coder.raw(4, parameters.trellis.map_or(0, Trellis::log2_states));
        let wrong = CodecError::Field { field: "log2 of trellis states", found: states.into(), expected: "2..=8" };
        parameters.trellis = Some(Trellis::new(states).ok_or(wrong)?);
    }
    if tools.has(Tools::BIT_SHIFT) {
        let bits = 1 + coder.raw(4, parameters.bit_shift.map_or(0, BitShiftTrellis::state_bits).wrapping_sub(1) & 15);
        let wrong = CodecError::Field { field: "bits of a trellis state", found: bits.into(), expected: "8..=16" };
        parameters.bit_shift = Some(BitShiftTrellis::new(bits).ok_or(wrong)?);
    }
    if tools.has(Tools::FREQUENCY_TABLES) {
        code_frequency_tables(coder, &mut parameters.frequency_tables)?;
    }
    if tools.has(Tools::RESTS) {
        let rests = parameters.rests.get_or_insert_default();
        rests.cut = coder.raw(5, rests.cut.into()) as u8;
        rests.signed_zeros = coder.raw(1, rests.signed_zeros.into()) == 1;
        code_vector(coder, &mut rests.rows, plan.rows);
    }
    if tools.has(Tools::LATTICE) {
        parameters.lattice.get_or_insert_default().code(coder)?;
    }
    if tools.has(Tools::UNIFORM) {
        let full = plan.rows >= plan.tile && plan.cols >= plan.tile;
        let context = HeaderContext { tools, left: None, full };
        code_tile(coder, &mut HeaderModels::default(), &context, first)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::adaptive_rans::{Decoder, Encoder};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vectors_and_tables_are_read_back(
            mut vector in prop::collection::vec(-127i8..=127, 0..40),
            counts in prop::collection::vec((any::<u8>(), 1u64..1_000_000), 1..60),
        ) {
            let mut histogram = [0; 256];
            counts.iter().for_each(|&(e, n)| histogram[usize::from(e)] += n);
            let mut table = frequencies(&histogram).unwrap();
            for (count, frequency) in histogram.iter().zip(table) {
                prop_assert_eq!(*count > 0, frequency > 0);
            }
            let (sent, length) = ((vector.clone(), table), vector.len());
            let mut encoder = Encoder::default();
            code_vector(&mut encoder, &mut vector, length);
            code_frequencies(&mut encoder, &mut table).unwrap();
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let (mut vector, mut table) = (Vec::new(), [0; 256]);
            code_vector(&mut decoder, &mut vector, length);
            code_frequencies(&mut decoder, &mut table).unwrap();
            prop_assert!(decoder.finish());
            prop_assert_eq!((vector, table), sent);
        }
    }
}
