//! Static tables of sample symbols: the normative Gaussian ones, and those that a tensor carries.
//!
//! The fixed tables are zero-mean Gaussians, a quarter octave of sigma apart. Trained weights are close to Gaussian
//! once their scale is known. The class, which follows from scales that the decoder has, is therefore all the context
//! that is needed, and tables cost no side information.

use std::sync::OnceLock;

use crate::constants::{LANE_PROB_BITS, LANE_PROB_ONE};
use crate::entropy::table_data::{HEADS, LEVEL_TABLES, LEVELS, ODD_LEVELS};
use crate::scale::SigmaIndex;

/// Classes of a level's sigma: 1/8 to 128 levels.
pub const CLASSES: usize = LEVEL_TABLES + 16;
/// Class of a sigma of one level.
pub const UNIT_CLASS: i32 = 12;
/// Symbol of a level of zero.
pub const LEVEL_ZERO: i32 = 128;
/// Symbol of values that have none of their own.
pub const ESCAPE: u8 = 0;
/// Symbol of a prefix of zero.
pub const PREFIX_ZERO: u8 = 1;
/// Symbols before the first prefix.
pub const PREFIX_FIRST: i32 = 2;
/// Octaves below the sigma that prefixes have symbols for.
pub const PREFIX_OCTAVES: i32 = 8;

/// Class of a sigma index in levels.
#[inline]
pub fn class_of(sigma: SigmaIndex) -> usize {
    (sigma + UNIT_CLASS).clamp(0, CLASSES as i32 - 1) as usize
}

/// Number of a level's low bits that are raw, and the table of the rest.
#[inline]
pub fn level_table(class: usize) -> (u32, usize) {
    if class < LEVEL_TABLES {
        return (0, class);
    }
    let beyond = class - LEVEL_TABLES;
    ((beyond / 4 + 1) as u32, LEVEL_TABLES - 4 + beyond % 4)
}

/// Fixed table of prefixes of `leading` (2 or 3) fraction bits under a sigma of `quarter` quarter
/// octaves over a power of two.
#[inline]
pub fn prefix_table(leading: u32, quarter: usize) -> usize {
    LEVEL_TABLES + if leading == 3 { 0 } else { HEADS.len() } + quarter
}

/// Fixed table of the magnitudes of FP4 codes, all alike.
pub const FP4_TABLE: usize = LEVEL_TABLES + 2 * HEADS.len();

/// First of the fixed tables of indices of odd levels.
pub const ODD_TABLE: usize = FP4_TABLE + 1;

/// Distributions over symbols 0..=255 with frequencies out of 2^12.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// For each table and each of 4096 slots: symbol (8 bits), frequency - 1 (12), offset of the slot in the symbol's
    /// interval (12).
    slots: Vec<u32>,
    /// For each table and symbol: start (16 bits), frequency (16).
    intervals: Vec<u32>,
}

impl Tables {
    /// Adds a table; frequencies by symbol sum to [`LANE_PROB_ONE`].
    ///
    /// # Panics
    /// When they do not; tables from files are checked before.
    pub fn push(&mut self, frequencies: &[u16; 256]) {
        let mut start = 0;
        for (symbol, &freq) in frequencies.iter().enumerate() {
            self.intervals.push(start << 16 | u32::from(freq));
            let entry = |offset| offset << 20 | (u32::from(freq) - 1) << 8 | symbol as u32;
            self.slots.extend((0..u32::from(freq)).map(entry));
            start += u32::from(freq);
        }
        assert_eq!(start, LANE_PROB_ONE, "frequencies sum to 2^12");
    }

    /// Number of tables.
    pub fn len(&self) -> usize {
        self.intervals.len() / 256
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// Start and frequency of a symbol.
    #[inline]
    pub fn interval(&self, table: usize, symbol: u8) -> (u32, u32) {
        let interval = self.intervals[table << 8 | usize::from(symbol)];
        (interval >> 16, interval & 0xffff)
    }

    /// Entry of a slot.
    #[inline]
    pub fn slot(&self, table: usize, slot: u32) -> u32 {
        self.slots[table << LANE_PROB_BITS | slot as usize]
    }

    /// All slots, 4096 a table.
    pub(crate) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Ideal code length of a symbol, bits; infinite where it cannot occur.
    pub fn cost(&self, table: usize, symbol: u8) -> f32 {
        LANE_PROB_BITS as f32 - (self.interval(table, symbol).1 as f32).log2()
    }

    /// The normative tables: levels by class, float prefixes of three and of two leading bits, FP4 magnitudes,
    /// indices of odd levels by class.
    pub fn fixed() -> &'static Self {
        static INSTANCE: OnceLock<Tables> = OnceLock::new();
        INSTANCE.get_or_init(|| {
            let mut tables = Self::default();
            for half in LEVELS {
                let mut frequencies = [0; 256];
                let most = half.len() - 2;
                for (magnitude, &freq) in half[..=most].iter().enumerate() {
                    frequencies[LEVEL_ZERO as usize + magnitude] = freq;
                    frequencies[LEVEL_ZERO as usize - magnitude] = freq;
                }
                frequencies[usize::from(ESCAPE)] = half[most + 1];
                tables.push(&frequencies);
            }
            for merged in [1, 2] {
                for prefixes in HEADS {
                    let mut frequencies = [0; 256];
                    frequencies[..2].copy_from_slice(&prefixes[..2]);
                    for (pair, frequency) in prefixes[2..].chunks(merged).zip(&mut frequencies[2..]) {
                        *frequency = pair.iter().sum();
                    }
                    tables.push(&frequencies);
                }
            }
            let mut magnitudes = [0; 256];
            magnitudes[..8].fill(LANE_PROB_ONE as u16 / 8);
            tables.push(&magnitudes);
            for half in ODD_LEVELS {
                let mut frequencies = [0; 256];
                let most = half.len() - 2;
                for (index, &freq) in half[..=most].iter().enumerate() {
                    frequencies[LEVEL_ZERO as usize + index] = freq;
                    frequencies[LEVEL_ZERO as usize - 1 - index] = freq;
                }
                frequencies[usize::from(ESCAPE)] = half[most + 1];
                tables.push(&frequencies);
            }
            tables
        })
    }
}

/// Largest magnitude that the level table `table` codes without the escape.
pub fn largest_level(table: usize) -> i32 {
    LEVELS[table].len() as i32 - 2
}

/// Largest index of an odd level that the table [`ODD_TABLE`] + `table` codes without the escape; the smallest is
/// minus one minus it.
pub fn largest_odd_index(table: usize) -> i32 {
    ODD_LEVELS[table].len() as i32 - 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_intervals_agree() {
        let tables = Tables::fixed();
        for table in 0..tables.len() {
            for slot in 0..LANE_PROB_ONE {
                let entry = tables.slot(table, slot);
                let (start, freq) = tables.interval(table, entry as u8);
                assert_eq!((start + (entry >> 20), freq), (slot, (entry >> 8 & 0xfff) + 1));
            }
        }
    }
}
