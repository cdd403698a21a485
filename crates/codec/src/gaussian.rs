//! Static tables for levels: a zero-mean Gaussian of known spread, in quarter-octave classes.
//!
//! Class c stands for levels whose standard deviation is 2^((c - 12)/4). Up to class
//! [`TABLES`]` - 1` (8 levels) a table codes the level itself, one symbol for each of -m..=m and
//! an escape; above, the low bits are stored raw and the rounded quotient takes the table of
//! class c - 4*shift. Trained weights are close to Gaussian once their scale is known, so the
//! class carries all the context, and tables cost no side information.

use std::sync::OnceLock;

use crate::symbol::{Coder, SymbolTable};
use crate::tables::{FREQUENCIES, TABLES};

/// Number of classes: spreads of 1/8 to 128 levels.
pub const CLASSES: usize = TABLES + 16;
/// Class of a spread of one level.
pub const UNIT_CLASS: i32 = 12;

/// Class for a spread of 2^(quarter octaves / 4) levels.
pub fn class_of(quarter_octaves: i32) -> usize {
    (quarter_octaves + UNIT_CLASS).clamp(0, CLASSES as i32 - 1) as usize
}

/// Number of low bits stored raw, and the table of the rest.
fn table_of(class: usize) -> (u32, usize) {
    let shift = (class + 1).saturating_sub(TABLES).div_ceil(4);
    (shift as u32, class - 4 * shift)
}

/// The tables, built once from the normative frequencies.
pub struct LevelTables {
    /// Table and largest magnitude it codes without the escape.
    tables: Vec<(SymbolTable, i32)>,
    /// Code length in bits of level -128..=127, by class.
    costs: Vec<[f32; 256]>,
}

impl LevelTables {
    /// The one instance.
    pub fn get() -> &'static Self {
        static INSTANCE: OnceLock<LevelTables> = OnceLock::new();
        INSTANCE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let tables = FREQUENCIES
            .iter()
            .map(|half| {
                let mut frequencies: Vec<u16> = half[1..half.len() - 1].iter().rev().copied().collect();
                frequencies.extend_from_slice(half);
                (SymbolTable::new(&frequencies), half.len() as i32 - 2)
            })
            .collect();
        let mut this = Self { tables, costs: Vec::new() };
        this.costs = (0..CLASSES).map(|class| std::array::from_fn(|i| this.count(class, i as i32 - 128))).collect();
        this
    }

    fn count(&self, class: usize, level: i32) -> f32 {
        let mut counter = crate::symbol::RateCounter::default();
        self.code(&mut counter, class, level);
        counter.rate().0 as f32
    }

    /// Ideal code length of a level in -128..=127.
    #[inline]
    pub fn cost(&self, class: usize, level: i32) -> f32 {
        self.costs[class][(level + 128) as usize & 255]
    }

    /// Codes a level under a class.
    #[inline]
    pub fn code<C: Coder>(&self, coder: &mut C, class: usize, level: i32) -> i32 {
        let (shift, index) = table_of(class);
        let (table, most) = &self.tables[index];
        let offset = (1 << shift) >> 1;
        let quotient = (level + offset) >> shift;
        let escape = 2 * most + 1;
        let symbol = if quotient.abs() <= *most { quotient + most } else { escape };
        let symbol = i32::from(coder.symbol(table, symbol as u8));
        let quotient = if symbol == escape {
            let beyond = coder.exp_golomb((quotient.abs() - most - 1).max(0) as u32);
            let magnitude = most + 1 + beyond.min(1 << 16) as i32;
            if coder.raw(1, u32::from(quotient < 0)) == 1 { -magnitude } else { magnitude }
        } else {
            symbol - most
        };
        if shift == 0 {
            return quotient;
        }
        let low = coder.raw(shift, (level + offset) as u32 & ((1 << shift) - 1));
        (quotient << shift) + low as i32 - offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rans::{Decoder, Encoder};

    #[test]
    fn every_level_survives_under_every_class() {
        let tables = LevelTables::get();
        for class in 0..CLASSES {
            let mut encoder = Encoder::default();
            (-128..=127).for_each(|level| assert_eq!(tables.code(&mut encoder, class, level), level));
            let bytes = encoder.finish(2);
            let mut decoder = Decoder::new(&bytes, 2);
            (-128..=127).for_each(|level| assert_eq!(tables.code(&mut decoder, class, 0), level, "class {class}"));
            assert!(decoder.finish());
        }
    }

    /// The whole reason for static tables: matched to the spread they must cost next to nothing
    /// over the entropy of the quantised Gaussian, computed here in f64.
    #[test]
    fn code_length_of_a_gaussian_is_within_a_hundredth_of_a_bit_of_its_entropy() {
        let tables = LevelTables::get();
        for class in 4..CLASSES - 4 {
            let sigma = (f64::from(class as i32 - UNIT_CLASS) / 4.0).exp2();
            let cdf = |x: f64| 0.5 * libm::erfc(-x / sigma / std::f64::consts::SQRT_2);
            let (mut entropy, mut length) = (0.0, 0.0);
            for level in -127..=127 {
                let p = cdf(f64::from(level) + 0.5) - cdf(f64::from(level) - 0.5);
                if p > 0.0 {
                    entropy -= p * p.log2();
                    length += p * f64::from(tables.cost(class, level));
                }
            }
            assert!(length - entropy < 0.01, "class {class}: {length} bits for an entropy of {entropy}");
        }
    }
}
