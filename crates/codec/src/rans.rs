//! Interleaved range asymmetric numeral systems (Duda 2014; byte-wise variant of Giesen 2014)
//! with 32-bit states, 16-bit words and 14-bit probabilities.
//!
//! Symbol n uses state n mod lanes. The encoder keeps all intervals and codes them backwards; the
//! stream begins with the lanes' final states, followed by words in the order the decoder reads
//! them. A decoder that consumed the right bytes ends with every state at [`LOWER`] and nothing
//! left, which [`Decoder::finish`] checks.

use crate::symbol::{BitModel, Coder, SymbolTable};

/// Bits of a probability.
pub const PROB_BITS: u32 = 14;
/// Sum of all frequencies of a table.
pub const PROB_ONE: u32 = 1 << PROB_BITS;
/// Smallest normalised state.
const LOWER: u32 = 1 << 16;

/// Records the intervals of symbols; [`Encoder::finish`] turns them into bytes.
#[derive(Default)]
pub struct Encoder {
    /// Interval start in the upper half, frequency in the lower half.
    intervals: Vec<u32>,
}

impl Encoder {
    fn push(&mut self, start: u32, freq: u32) {
        debug_assert!(freq > 0 && start + freq <= PROB_ONE, "interval {start}+{freq}");
        self.intervals.push(start << 16 | freq);
    }

    /// Codes everything recorded into `lanes` interleaved states.
    pub fn finish(&self, lanes: usize) -> Vec<u8> {
        let mut states = vec![LOWER; lanes];
        let mut words: Vec<u16> = Vec::with_capacity(self.intervals.len() / 4);
        for (n, &interval) in self.intervals.iter().enumerate().rev() {
            let (start, freq) = (interval >> 16, interval & 0xffff);
            let state = &mut states[n % lanes];
            if u64::from(*state) >= u64::from(freq) << (32 - PROB_BITS) {
                words.push(*state as u16);
                *state >>= 16;
            }
            *state = ((*state / freq) << PROB_BITS) + *state % freq + start;
        }
        let mut bytes = Vec::with_capacity(lanes * 4 + words.len() * 2);
        for state in states {
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        for word in words.iter().rev() {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl Coder for Encoder {
    fn symbol(&mut self, table: &SymbolTable, value: u8) -> u8 {
        let (start, freq) = table.interval(value);
        self.push(start, freq);
        value
    }

    fn bit(&mut self, model: &mut BitModel, value: bool) -> bool {
        let zero = model.zero();
        if value {
            self.push(zero, PROB_ONE - zero)
        } else {
            self.push(0, zero)
        }
        model.update(value);
        value
    }

    fn raw(&mut self, bits: u32, value: u32) -> u32 {
        let freq = PROB_ONE >> bits;
        self.push(value * freq, freq);
        value
    }
}

/// Reads symbols back. Past the end of the data it returns arbitrary symbols without panicking;
/// [`Decoder::finish`] tells.
pub struct Decoder<'a> {
    states: [u32; MAX_LANES],
    lanes: usize,
    lane: usize,
    words: &'a [u8],
    overrun: bool,
}

/// Most lanes a stream may have.
pub const MAX_LANES: usize = 8;

impl<'a> Decoder<'a> {
    /// Starts on the bytes of [`Encoder::finish`] with the same number of lanes (1..=[`MAX_LANES`]).
    pub fn new(bytes: &'a [u8], lanes: usize) -> Self {
        let mut states = [LOWER; MAX_LANES];
        let overrun = bytes.len() < lanes * 4;
        let (head, words) = bytes.split_at(if overrun { 0 } else { lanes * 4 });
        for (state, bytes) in states.iter_mut().zip(head.chunks_exact(4)) {
            *state = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { states, lanes, lane: 0, words, overrun }
    }

    /// True when exactly the encoded symbols were read.
    pub fn finish(self) -> bool {
        !self.overrun && self.words.is_empty() && self.states.iter().all(|&s| s == LOWER)
    }

    /// Slot of the next symbol in its table.
    #[inline]
    fn slot(&self) -> u32 {
        self.states[self.lane] & (PROB_ONE - 1)
    }

    #[inline]
    fn advance(&mut self, start: u32, freq: u32) {
        let state = &mut self.states[self.lane];
        let slot = *state & (PROB_ONE - 1);
        *state = freq.wrapping_mul(*state >> PROB_BITS).wrapping_add(slot.wrapping_sub(start));
        if *state < LOWER {
            if let Some((word, rest)) = self.words.split_first_chunk::<2>() {
                *state = *state << 16 | u32::from(u16::from_le_bytes(*word));
                self.words = rest;
            } else {
                self.overrun = true;
            }
        }
        self.lane += 1;
        if self.lane == self.lanes {
            self.lane = 0;
        }
    }
}

impl Coder for Decoder<'_> {
    #[inline]
    fn symbol(&mut self, table: &SymbolTable, _: u8) -> u8 {
        let value = table.lookup(self.slot());
        let (start, freq) = table.interval(value);
        self.advance(start, freq);
        value
    }

    #[inline]
    fn bit(&mut self, model: &mut BitModel, _: bool) -> bool {
        let zero = model.zero();
        let value = self.slot() >= zero;
        if value {
            self.advance(zero, PROB_ONE - zero)
        } else {
            self.advance(0, zero)
        }
        model.update(value);
        value
    }

    #[inline]
    fn raw(&mut self, bits: u32, _: u32) -> u32 {
        let freq = PROB_ONE >> bits;
        let value = self.slot() >> (PROB_BITS - bits);
        self.advance(value * freq, freq);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbol::{IntModel, RateCounter};
    use proptest::prelude::*;

    /// A mixed message through any coder, each kind of syntax element in turn.
    fn message<C: Coder>(coder: &mut C, values: &[i32], table: &SymbolTable) -> Vec<i32> {
        let (mut int, mut bit) = (IntModel::default(), BitModel::default());
        let decode = |(i, &v): (usize, &i32)| match i % 4 {
            0 => int.code(coder, v),
            1 => i32::from(coder.bit(&mut bit, v & 1 == 1)),
            2 => coder.raw_wide(24, v as u32 & 0xff_ffff) as i32,
            _ => i32::from(coder.symbol(table, (v & 3) as u8)),
        };
        values.iter().enumerate().map(decode).collect()
    }

    proptest! {
        #[test]
        fn every_message_is_read_back_and_its_size_is_the_counted_rate(
            values in prop::collection::vec(-9000i32..9000, 0..600), log_lanes in 0usize..4,
        ) {
            let table = SymbolTable::new(&[9000, 5000, 2383, 1]);
            let mut encoder = Encoder::default();
            let sent = message(&mut encoder, &values, &table);
            let bytes = encoder.finish(1 << log_lanes);
            let mut decoder = Decoder::new(&bytes, 1 << log_lanes);
            let zeros = vec![0; values.len()];
            prop_assert_eq!(&message(&mut decoder, &zeros, &table), &sent);
            prop_assert!(decoder.finish());

            let mut counter = RateCounter::default();
            message(&mut counter, &values, &table);
            // The lanes' states and half a percent that integer states lose.
            let limit = (32 << log_lanes) as f64 + counter.rate().0 * 0.005;
            let spare = bytes.len() as f64 * 8.0 - counter.rate().0;
            prop_assert!(spare > -1.0 && spare <= limit, "{spare} bits more than counted");
        }

        #[test]
        fn truncated_or_random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let table = SymbolTable::new(&[9000, 5000, 2383, 1]);
            let mut decoder = Decoder::new(&bytes, 4);
            message(&mut decoder, &[0; 300], &table);
            decoder.finish();
        }
    }
}
