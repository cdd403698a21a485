//! Side information of a whole tensor: row and column vectors and the lossless codebook.

use crate::error::{CodecError, Result};
use crate::rans::PROB_ONE;
use crate::symbol::{BitModel, Coder, IntModel, SymbolTable};

/// Codes an optional vector of small indices; an absent vector is empty.
pub fn code_vector<C: Coder>(coder: &mut C, values: &mut Vec<i8>, length: usize) {
    let present = coder.raw(1, u32::from(!values.is_empty())) == 1;
    values.resize(if present { length } else { 0 }, 0);
    let mut model = IntModel::default();
    for value in values.iter_mut() {
        *value = model.code(coder, i32::from(*value)).clamp(-127, 127) as i8;
    }
}

/// Frequencies (out of 2^14) of the exponents of a tensor's lossless tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Codebook(pub Vec<u16>);

impl Codebook {
    /// Scales counts to frequencies; every exponent that occurs keeps at least one.
    pub fn from_counts(counts: &[u64; 256]) -> Option<Self> {
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        let one = u64::from(PROB_ONE);
        let mut frequencies = counts.map(|c| if c == 0 { 0 } else { (c * one / total).max(1) as i64 });
        // Rounding is settled where it costs least: at the most frequent exponents.
        let mut excess = frequencies.iter().sum::<i64>() - i64::from(PROB_ONE);
        while excess != 0 {
            let largest = frequencies.iter_mut().max().expect("256 entries");
            let change = if excess > 0 { excess.min((*largest / 2).max(1)) } else { excess };
            *largest -= change;
            excess -= change;
        }
        Some(Self(frequencies.iter().map(|&f| f as u16).collect()))
    }

    /// The table that slices code exponents with.
    pub fn table(&self) -> SymbolTable {
        SymbolTable::new(&self.0)
    }
}

/// Codes an optional codebook.
///
/// # Errors
/// When the frequencies read do not sum to 2^14.
pub fn code_codebook<C: Coder>(coder: &mut C, codebook: &mut Option<Codebook>) -> Result<()> {
    if coder.raw(1, u32::from(codebook.is_some())) == 0 {
        *codebook = None;
        return Ok(());
    }
    let mut frequencies = codebook.take().map_or_else(|| vec![0; 256], |c| c.0);
    // An exponent that occurs is likely next to another that occurs.
    let mut present = [BitModel::default(); 2];
    let mut last = 0;
    for frequency in &mut frequencies {
        last = usize::from(coder.bit(&mut present[last], *frequency > 0));
        *frequency = match last {
            0 => 0,
            _ => coder.raw_wide(14, u32::from(*frequency) - 1) as u16 + 1,
        };
    }
    let sum: i64 = frequencies.iter().map(|&f| i64::from(f)).sum();
    if sum != i64::from(PROB_ONE) {
        return Err(CodecError::Field { field: "sum of codebook frequencies", found: sum, expected: "16384" });
    }
    *codebook = Some(Codebook(frequencies));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rans::{Decoder, Encoder};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn side_information_is_read_back(
            mut vector in prop::collection::vec(-127i8..=127, 0..40),
            counts in prop::collection::vec((any::<u8>(), 1u64..1_000_000), 0..60),
        ) {
            let mut histogram = [0; 256];
            counts.iter().for_each(|&(e, n)| histogram[usize::from(e)] += n);
            let mut codebook = Codebook::from_counts(&histogram);
            if let Some(Codebook(frequencies)) = &codebook {
                for (count, frequency) in histogram.iter().zip(frequencies) {
                    prop_assert_eq!(*count > 0, *frequency > 0);
                }
            }
            let (sent, length) = ((vector.clone(), codebook.clone()), vector.len());
            let mut encoder = Encoder::default();
            code_vector(&mut encoder, &mut vector, length);
            code_codebook(&mut encoder, &mut codebook).unwrap();
            let bytes = encoder.finish(1);
            let mut decoder = Decoder::new(&bytes, 1);
            let (mut vector, mut codebook) = (Vec::new(), None);
            code_vector(&mut decoder, &mut vector, length);
            code_codebook(&mut decoder, &mut codebook).unwrap();
            prop_assert!(decoder.finish());
            prop_assert_eq!((vector, codebook), sent);
        }
    }
}
