//! Side information of a whole tensor: row and column vectors, tables, and what tools share
//! (section 4 of `docs/BITSTREAM.md`).

use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::plan::TensorPlan;
use crate::sample::HeadModel;
use crate::symbol::{BitModel, Coder, IntModel};
use crate::table::{FP4_TABLE, PROB_ONE, Tables};
use crate::tile::{HeaderContext, HeaderModels, TilePlan, code_tile};
use crate::tools::Tools;
use crate::trellis::Trellis;

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

/// Frequencies (out of 2^12) that a tensor brings along for the heads of its patterns: one table, or
/// four by quarter octave; for bytes and nibbles one to eight, by column.
pub type Codebook = Vec<[u16; 256]>;

/// Most weights of a dictionary.
pub const MAX_DICTIONARY: usize = 1 << 22;
/// Most tables of heads.
pub const MAX_HEAD_TABLES: usize = 8;

/// A codebook as the sample coder uses it.
pub struct Books {
    tables: Tables,
    dtype: Dtype,
}

impl Books {
    /// Builds the tables of a plan.
    pub fn new(plan: &TensorPlan) -> Self {
        let mut tables = Tables::default();
        plan.parameters.codebook.iter().for_each(|t| tables.push(t));
        Self { tables, dtype: plan.dtype }
    }

    /// How patterns of lossless tiles are coded.
    pub fn patterns(&self) -> Option<HeadModel<'_>> {
        match (self.tables.len(), self.dtype) {
            (0, Dtype::Byte | Dtype::Nibble) => None,
            (0, _) => Some(HeadModel::fixed(self.dtype)),
            (count, _) => Some(HeadModel::new(&self.tables, 0, count, self.dtype)),
        }
    }

    /// How the magnitudes of a small floating-point format's codes are coded.
    pub fn codes(format: Format) -> HeadModel<'static> {
        match format {
            Format::Fp8 => HeadModel::fixed(Dtype::E4M3),
            Format::Fp8E5M2 => HeadModel::fixed(Dtype::E5M2),
            _ => HeadModel::new(Tables::fixed(), FP4_TABLE, 1, Dtype::Nibble),
        }
    }
}

/// Scales counts to frequencies; every symbol that occurs keeps at least one. `None` without counts.
pub fn frequencies(counts: &[u64; 256]) -> Option<[u16; 256]> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let one = i64::from(PROB_ONE);
    let mut frequencies = counts.map(|c| match c {
        0 => 0,
        _ => ((c as f64 * one as f64 / total as f64).round() as i64).max(1),
    });
    // Rounding is settled where it costs least: at the most frequent symbols.
    let mut excess = frequencies.iter().sum::<i64>() - one;
    while excess != 0 {
        let largest = frequencies.iter_mut().max().expect("256 entries");
        let change = if excess > 0 { excess.min((*largest / 16).max(1)) } else { excess };
        *largest -= change;
        excess -= change;
    }
    Some(frequencies.map(|f| f as u16))
}

/// Codes a table's frequencies: their bit lengths from the neighbour's, then the lower bits.
///
/// # Errors
/// When the frequencies read do not sum to 2^12.
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
        PROB_ONE => Ok(()),
        sum => Err(CodecError::Field { field: "sum of frequencies", found: sum.into(), expected: "4096" }),
    }
}

fn code_codebook<C: Coder>(coder: &mut C, codebook: &mut Codebook) -> Result<()> {
    let tables = coder.raw(4, codebook.len() as u32) as usize;
    if !(1..=MAX_HEAD_TABLES).contains(&tables) {
        return Err(CodecError::Field { field: "head tables", found: tables as i64, expected: "1..=8" });
    }
    codebook.resize(tables, [0; 256]);
    codebook.iter_mut().try_for_each(|table| code_frequencies(coder, table))
}

/// Codes everything of a plan outside header and slices; vectors and parameters are filled in.
///
/// # Errors
/// Values outside their limits.
pub fn code_side<C: Coder>(coder: &mut C, plan: &mut TensorPlan, tools: Tools, first: &mut TilePlan) -> Result<()> {
    code_vector(coder, &mut plan.row_scale, plan.rows);
    code_vector(coder, &mut plan.col_scale, plan.cols);
    code_vector(coder, &mut plan.row_spread, plan.rows);
    code_vector(coder, &mut plan.col_spread, plan.cols);
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
    if tools.has(Tools::CODEBOOK) {
        code_codebook(coder, &mut parameters.codebook)?;
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
    use crate::rans::{Decoder, Encoder};
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
