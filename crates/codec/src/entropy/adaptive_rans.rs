//! Adaptive rANS (Duda 2014) for headers and side information: one 32-bit state, 16-bit words, 14-bit probabilities
//! (section 3 of `docs/BITSTREAM.md`).
//!
//! The encoder records all intervals and codes them backwards. A stream begins with the final state, followed by
//! words in the order in which the decoder reads them. A decoder that has read exactly the stream ends with the state
//! at `LOWER` and no words left, which [`Decoder::finish`] checks.

use crate::entropy::models::{Coder, PROB_BITS, PROB_ONE};

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

    /// Codes everything recorded; no bytes for nothing.
    pub fn finish(&self) -> Vec<u8> {
        if self.intervals.is_empty() {
            return Vec::new();
        }
        let mut state = LOWER;
        let mut words: Vec<u16> = Vec::with_capacity(self.intervals.len() / 4);
        for &interval in self.intervals.iter().rev() {
            let (start, freq) = (interval >> 16, interval & 0xffff);
            if u64::from(state) >= u64::from(freq) << (32 - PROB_BITS) {
                words.push(state as u16);
                state >>= 16;
            }
            state = ((state / freq) << PROB_BITS) + state % freq + start;
        }
        let mut bytes = Vec::with_capacity(4 + words.len() * 2);
        bytes.extend_from_slice(&state.to_le_bytes());
        for word in words.iter().rev() {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl Coder for Encoder {
    fn at(&mut self, zero: u32, value: bool) -> bool {
        if value {
            self.push(zero, PROB_ONE - zero)
        } else {
            self.push(0, zero)
        }
        value
    }

    fn raw(&mut self, bits: u32, value: u32) -> u32 {
        let freq = PROB_ONE >> bits;
        self.push(value * freq, freq);
        value
    }
}

/// Reads symbols back. Past the end of the data it returns arbitrary symbols, without a panic; [`Decoder::finish`]
/// then returns false.
pub struct Decoder<'a> {
    state: u32,
    words: &'a [u8],
    overrun: bool,
}

impl<'a> Decoder<'a> {
    /// Starts on the bytes of [`Encoder::finish`].
    pub fn new(bytes: &'a [u8]) -> Self {
        match bytes.split_first_chunk::<4>() {
            Some((state, words)) => Self { state: u32::from_le_bytes(*state), words, overrun: false },
            None => Self { state: LOWER, words: bytes, overrun: false },
        }
    }

    /// True when exactly the encoded elements were read.
    pub fn finish(&self) -> bool {
        !self.overrun && self.words.is_empty() && self.state == LOWER
    }

    /// Slot of the next element.
    fn slot(&self) -> u32 {
        self.state & (PROB_ONE - 1)
    }

    fn advance(&mut self, start: u32, freq: u32) {
        let slot = self.slot();
        self.state = freq.wrapping_mul(self.state >> PROB_BITS).wrapping_add(slot.wrapping_sub(start));
        if self.state < LOWER {
            if let Some((word, rest)) = self.words.split_first_chunk::<2>() {
                self.state = self.state << 16 | u32::from(u16::from_le_bytes(*word));
                self.words = rest;
            } else {
                self.overrun = true;
            }
        }
    }
}

impl Coder for Decoder<'_> {
    fn exhausted(&self) -> bool {
        self.overrun
    }

    #[inline]
    fn at(&mut self, zero: u32, _: bool) -> bool {
        let value = self.slot() >= zero;
        if value {
            self.advance(zero, PROB_ONE - zero)
        } else {
            self.advance(0, zero)
        }
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
    use crate::entropy::models::{BitModel, IntModel, RateCounter, TreeModel};
    use proptest::prelude::*;

    /// A mixed message through any coder, each kind of syntax element in turn.
    fn message<C: Coder>(coder: &mut C, values: &[i32]) -> Vec<i32> {
        let (mut int, mut bit, mut tree) = (IntModel::default(), BitModel::default(), TreeModel::<8>::default());
        let decode = |(i, &v): (usize, &i32)| match i % 4 {
            0 => int.code(coder, v),
            1 => i32::from(coder.bit(&mut bit, v & 1 == 1)),
            2 => coder.raw_wide(24, v as u32 & 0xff_ffff) as i32,
            _ => tree.code(coder, v as u32 & 7) as i32,
        };
        values.iter().enumerate().map(decode).collect()
    }

    proptest! {
        #[test]
        fn every_message_is_read_back_and_its_size_is_the_counted_rate(
            values in prop::collection::vec(-9000i32..9000, 0..600),
        ) {
            let mut encoder = Encoder::default();
            let sent = message(&mut encoder, &values);
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            prop_assert_eq!(&message(&mut decoder, &vec![0; values.len()]), &sent);
            prop_assert!(decoder.finish());

            let mut counter = RateCounter::default();
            message(&mut counter, &values);
            // The state and half a percent that integer states lose.
            let limit = 32.0 + counter.rate().0 * 0.005;
            let spare = bytes.len() as f64 * 8.0 - counter.rate().0;
            prop_assert!(spare > -1.0 && spare <= limit, "{spare} bits more than counted");
        }

        #[test]
        fn truncated_or_random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut decoder = Decoder::new(&bytes);
            message(&mut decoder, &[0; 300]);
            decoder.finish();
        }
    }
}
