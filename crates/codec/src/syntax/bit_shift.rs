//! The bit-shift trellis: codes of a fixed number of bits whose values depend on those before them in their column
//! (section 7.8 of `docs/BITSTREAM.md`).
//!
//! A state is the last bits of a column's codes; a code of `w` bits shifts it by `w` (Mao, Carreno & Viterbi, "QTIP", 2024,
//! after Marcellin & Fischer 1990). The level of a state is the sum of the four bytes of a hash of it, near enough to a normal
//! distribution ("1MAD" there, with other constants: theirs are for 16 bits). Nothing but the bits before a code is needed
//! to decode it, so that a tile can be read alone. A cubic term widens the tails, which a sum of four bytes has too few of: tiles
//! have outliers.

/// Constants of the hash: of 4000 pairs drawn at random, twelve had the least squared error at 2 to 5 bits and 12 bits of state, and
/// of those this one at 10 and 14 bits of state.
const MULTIPLIER: u32 = 2_239_133_029;
const ADDEND: u32 = 3_118_044_064;

/// Largest magnitude of a level.
pub const LARGEST_LEVEL: i32 = 413;

/// Root mean square of levels over all states, about.
pub const LEVEL_RMS: f32 = 84.5;

/// Largest number of bits of a code.
pub const MAX_CODE_BITS: u8 = 8;

/// A trellis whose states have a number of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitShiftTrellis {
    state_bits: u8,
}

impl BitShiftTrellis {
    /// A trellis with states of 8 to 16 bits.
    pub const fn new(state_bits: u32) -> Option<Self> {
        if state_bits < 8 || state_bits > 16 {
            return None;
        }
        Some(Self { state_bits: state_bits as u8 })
    }

    /// Bits of a state.
    pub const fn state_bits(self) -> u32 {
        self.state_bits as u32
    }

    /// Number of states.
    pub const fn states(self) -> usize {
        1 << self.state_bits
    }

    /// State after a code of `bits` bits; higher bits of `code` do not count.
    #[inline(always)]
    pub const fn next(self, state: u32, bits: u32, code: u32) -> u32 {
        (state << bits | code & ((1 << bits) - 1)) & ((1 << self.state_bits) - 1)
    }
}

/// Level of a state, -413 to 413.
#[inline(always)]
pub const fn level(state: u32) -> i32 {
    let hash = state.wrapping_mul(MULTIPLIER).wrapping_add(ADDEND);
    let pairs = (hash & 0x00ff_00ff) + (hash >> 8 & 0x00ff_00ff);
    let sum = (((pairs & 0xffff) + (pairs >> 16)) as i32 - 510) >> 1;
    sum + ((5 * sum * sum * sum) >> 19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_spread_like_a_normal_distribution() {
        for bits in 8..=16 {
            let trellis = BitShiftTrellis::new(bits).unwrap();
            let levels = || (0..trellis.states() as u32).map(level);
            assert!(levels().all(|l| l.abs() <= LARGEST_LEVEL));
            let count = trellis.states() as f64;
            let mean = levels().map(f64::from).sum::<f64>() / count;
            let square = levels().map(|l| f64::from(l).powi(2)).sum::<f64>() / count;
            let fourth = levels().map(|l| f64::from(l).powi(4)).sum::<f64>() / count;
            assert!(mean.abs() < 4.0, "{bits}: mean {mean}");
            assert!((square.sqrt() / f64::from(LEVEL_RMS) - 1.0).abs() < 0.05, "{bits}: {}", square.sqrt());
            // 3 for a normal distribution, 2.7 for a sum of four uniform ones.
            let kurtosis = fourth / square.powi(2);
            assert!((3.2..4.0).contains(&kurtosis), "{bits}: kurtosis {kurtosis}");
        }
        assert!(BitShiftTrellis::new(7).is_none() && BitShiftTrellis::new(17).is_none());
    }

    #[test]
    fn a_state_is_the_last_bits_of_its_codes() {
        let trellis = BitShiftTrellis::new(12).unwrap();
        let codes = [(3, 5), (4, 0x1b), (2, 2), (8, 0x7e), (1, 1)];
        let state = codes.iter().fold(0, |state, &(bits, code)| trellis.next(state, bits, code));
        let all = codes.iter().fold(0, |all, &(bits, code)| all << bits | code & ((1 << bits) - 1));
        assert_eq!(state, all & 0xfff);
    }
}
