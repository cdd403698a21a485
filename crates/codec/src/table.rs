//! Static tables of sample symbols: the normative Gaussian ones and those a tensor brings along.
//!
//! The fixed tables are zero-mean Gaussians in quarter-octave classes of spread. Trained weights
//! are close to Gaussian once their scale is known, so the class, which follows from scales the
//! decoder has, carries all the context and tables cost no side information.

use std::sync::OnceLock;

use crate::tables::{HEADS, LEVEL_TABLES, LEVELS, ODD_LEVELS};

/// Bits of a probability.
pub const PROB_BITS: u32 = 12;
/// Sum of all frequencies of a table.
pub const PROB_ONE: u32 = 1 << PROB_BITS;

/// Classes of level spread: 1/8 to 128 levels.
pub const CLASSES: usize = LEVEL_TABLES + 16;
/// Class of a spread of one level.
pub const UNIT_CLASS: i32 = 12;
/// Symbol of a level of zero.
pub const LEVEL_ZERO: i32 = 128;
/// Symbol before values that have none of their own.
pub const ESCAPE: u8 = 0;
/// Symbol of a head of zero.
pub const HEAD_ZERO: u8 = 1;
/// Symbols before the first head.
pub const HEAD_FIRST: i32 = 2;
/// Octaves below the spread's that heads have symbols for.
pub const HEAD_OCTAVES: i32 = 8;

/// Class for a spread of 2^(quarter octaves / 4) levels.
#[inline]
pub fn class_of(quarter_octaves: i32) -> usize {
    (quarter_octaves + UNIT_CLASS).clamp(0, CLASSES as i32 - 1) as usize
}

/// Number of low bits of a level that are stored raw, and the table of the rest.
#[inline]
pub fn level_table(class: usize) -> (u32, usize) {
    if class < LEVEL_TABLES {
        return (0, class);
    }
    let beyond = class - LEVEL_TABLES;
    ((beyond / 4 + 1) as u32, LEVEL_TABLES - 4 + beyond % 4)
}

/// Fixed table of heads of `leading` (2 or 3) fraction bits under a spread of `quarter` quarter
/// octaves over a power of two.
#[inline]
pub fn head_table(leading: u32, quarter: usize) -> usize {
    LEVEL_TABLES + if leading == 3 { 0 } else { HEADS.len() } + quarter
}

/// Fixed table of the magnitudes of FP4 codes, all alike.
pub const FP4_TABLE: usize = LEVEL_TABLES + 2 * HEADS.len();

/// First of the fixed tables of indices of odd levels.
pub const ODD_TABLE: usize = FP4_TABLE + 1;

/// Distributions over symbols 0..=255 with frequencies out of 2^12.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Of every table, for each of 4096 slots: symbol (8 bits), frequency - 1 (12), offset of the
    /// slot in the symbol's interval (12).
    slots: Vec<u32>,
    /// Of every table, for each symbol: start (16 bits), frequency (16).
    intervals: Vec<u32>,
}

impl Tables {
    /// Adds a table; frequencies by symbol sum to [`PROB_ONE`].
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
        assert_eq!(start, PROB_ONE, "frequencies sum to 2^12");
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
        self.slots[table << PROB_BITS | slot as usize]
    }

    /// All slots, 4096 a table.
    pub(crate) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Ideal code length of a symbol, bits; infinite where it cannot occur.
    pub fn cost(&self, table: usize, symbol: u8) -> f32 {
        PROB_BITS as f32 - (self.interval(table, symbol).1 as f32).log2()
    }

    /// The normative tables: levels by class, then heads of three and of two leading bits.
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
                for heads in HEADS {
                    let mut frequencies = [0; 256];
                    frequencies[..2].copy_from_slice(&heads[..2]);
                    for (pair, frequency) in heads[2..].chunks(merged).zip(&mut frequencies[2..]) {
                        *frequency = pair.iter().sum();
                    }
                    tables.push(&frequencies);
                }
            }
            let mut magnitudes = [0; 256];
            magnitudes[..8].fill(PROB_ONE as u16 / 8);
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

/// Largest index of an odd level that the table [`ODD_TABLE`] + `table` codes without the escape; the
/// least is one further from zero.
pub fn largest_odd_index(table: usize) -> i32 {
    ODD_LEVELS[table].len() as i32 - 2
}

/// Code lengths under every class, escapes and raw bits included: of levels, and of indices of odd levels.
pub struct LevelCosts([Vec<[f32; 256]>; 2]);

impl LevelCosts {
    /// The one instance.
    pub fn get() -> &'static Self {
        static INSTANCE: OnceLock<LevelCosts> = OnceLock::new();
        INSTANCE.get_or_init(|| {
            use crate::sample::{SampleCounter, code_level, code_odd_index};
            let costs = |code: &dyn Fn(&mut SampleCounter, usize, i32) -> i32| {
                let cost = |class: usize, value: i32| {
                    let mut counter = SampleCounter::default();
                    code(&mut counter, class, value);
                    counter.rate().0 as f32
                };
                (0..CLASSES).map(|class| std::array::from_fn(|i| cost(class, i as i32 - 128))).collect()
            };
            Self([
                costs(&|counter, class, level| code_level(counter, 0, class, level)),
                costs(&|counter, class, index| code_odd_index(counter, 0, class, index)),
            ])
        })
    }

    /// Bits of a level in -128..=127.
    #[inline]
    pub fn cost(&self, class: usize, level: i32) -> f32 {
        self.0[0][class][(level + 128) as usize & 255]
    }

    /// Bits of the indices from -128 on in the quantiser of a parity.
    pub fn of(&self, parity: usize, class: usize) -> &[f32; 256] {
        &self.0[parity][class]
    }

    /// Bits of an index in -128..=127 in the quantiser of a parity.
    #[inline]
    pub fn index_cost(&self, parity: usize, class: usize, index: i32) -> f32 {
        self.0[parity][class][(index + 128) as usize & 255]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole reason for static tables: matched to the spread they must cost next to nothing
    /// over the entropy of the quantised Gaussian, computed here in f64.
    #[test]
    fn code_length_of_a_gaussian_is_within_a_hundredth_of_a_bit_of_its_entropy() {
        let costs = LevelCosts::get();
        for class in 4..CLASSES - 4 {
            let sigma = (f64::from(class as i32 - UNIT_CLASS) / 4.0).exp2();
            let cdf = |x: f64| 0.5 * libm::erfc(-x / sigma / std::f64::consts::SQRT_2);
            let (mut entropy, mut length) = (0.0, 0.0);
            for level in -127..=127 {
                let p = cdf(f64::from(level) + 0.5) - cdf(f64::from(level) - 0.5);
                if p > 0.0 {
                    entropy -= p * p.log2();
                    length += p * f64::from(costs.cost(class, level));
                }
            }
            assert!(length - entropy < 0.01, "class {class}: {length} bits for an entropy of {entropy}");
        }
    }

    #[test]
    fn slots_and_intervals_agree() {
        let tables = Tables::fixed();
        for table in 0..tables.len() {
            for slot in 0..PROB_ONE {
                let entry = tables.slot(table, slot);
                let (start, freq) = tables.interval(table, entry as u8);
                assert_eq!((start + (entry >> 20), freq), (slot, (entry >> 8 & 0xfff) + 1));
            }
        }
    }
}
