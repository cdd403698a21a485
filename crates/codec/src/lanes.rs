//! Interleaved range asymmetric numeral systems (Duda 2014; interleaving of Giesen 2014) for
//! samples, with 32-bit states, 16-bit words and 12-bit probabilities (section 7.1 of
//! `docs/BITSTREAM.md`).
//!
//! The sample in row r and column c uses lane r mod 32 + 32 (c mod 2), modulo the number of lanes, so
//! that with 64 lanes two columns of 32 rows are decoded side by side. The encoder keeps all intervals and codes them backwards; the stream
//! begins with the lanes' final states, followed by words in the order the decoder reads them. A
//! decoder that consumed the right bytes ends with every state at [`LOWER`] and nothing left.

use crate::simd::encode_columns;
use crate::table::{PROB_BITS, PROB_ONE, Tables};

/// Smallest normalised state.
pub const LOWER: u32 = 1 << 16;
/// Rows of a band: how many samples of a column have lanes of their own.
pub const BAND: usize = 32;
/// Most lanes a stream may have.
pub const MAX_LANES: usize = 2 * BAND;

/// Lane of a sample, to be taken modulo the number of lanes.
#[inline]
pub fn lane_of(row: usize, col: usize) -> usize {
    row % BAND + BAND * (col % 2)
}

/// Records the intervals of samples; [`LaneEncoder::finish`] turns them into bytes.
#[derive(Debug, Default)]
pub struct LaneEncoder {
    /// Start (12 bits), frequency - 1 (12), lane (8).
    intervals: Vec<u32>,
}

impl LaneEncoder {
    /// Room for `samples`.
    pub fn with_capacity(samples: usize) -> Self {
        Self { intervals: Vec::with_capacity(samples) }
    }

    /// Codes a symbol in a lane.
    #[inline]
    pub fn push(&mut self, tables: &Tables, table: usize, lane: usize, symbol: u8) {
        let (start, freq) = tables.interval(table, symbol);
        debug_assert!(freq > 0, "table {table} has no symbol {symbol}");
        self.intervals.push(((lane % MAX_LANES) as u32) << 24 | (freq.wrapping_sub(1) & 0xfff) << 12 | start);
    }

    /// Records intervals as [`LaneEncoder::push`] does: start, frequency - 1, lane.
    #[inline]
    pub(crate) fn extend(&mut self, intervals: &[u32]) {
        self.intervals.extend_from_slice(intervals);
    }

    /// Codes everything recorded into `lanes` states; no bytes for nothing.
    pub fn finish(&self, lanes: usize) -> Vec<u8> {
        self.finish_with(lanes, encode_columns)
    }

    /// [`LaneEncoder::finish`] one symbol after the other: the definition.
    #[cfg(test)]
    pub(crate) fn finish_plain(&self, lanes: usize) -> Vec<u8> {
        self.finish_with(lanes, |_, _, _, _| 0)
    }

    fn finish_with(
        &self,
        lanes: usize,
        encode_columns: impl Fn(&mut [u32; MAX_LANES], &[u32], &mut [u16], &mut usize) -> usize,
    ) -> Vec<u8> {
        if self.intervals.is_empty() {
            return Vec::new();
        }
        let mut states = [LOWER; MAX_LANES];
        // Room for a word a sample, and for what a vector writes beyond them.
        let mut words: Vec<u16> = vec![0; self.intervals.len() + MAX_LANES];
        let end = self.intervals.len() + 1;
        let mut at = end;
        let mask = lanes as u32 - 1;
        let mut left = self.intervals.len();
        while left > 0 {
            if lanes == MAX_LANES && self.intervals[left - 1] >> 24 == MAX_LANES as u32 - 1 {
                left -= encode_columns(&mut states, &self.intervals[..left], &mut words, &mut at);
                if left == 0 {
                    break;
                }
            }
            left -= 1;
            let interval = self.intervals[left];
            let (start, freq) = (interval & 0xfff, (interval >> 12 & 0xfff) + 1);
            let state = &mut states[(interval >> 24 & mask) as usize % MAX_LANES];
            let mut x = *state;
            // Written always, kept only where the state is too large: no branch to mispredict.
            words[at - 1] = x as u16;
            let full = u64::from(x) >= u64::from(freq) << (32 - PROB_BITS);
            at -= usize::from(full);
            x = if full { x >> 16 } else { x };
            *state = ((x / freq) << PROB_BITS) + x % freq + start;
        }
        let mut bytes = Vec::with_capacity(lanes * 4 + (end - at) * 2);
        for state in &states[..lanes] {
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.extend(words[at..end].iter().flat_map(|w| w.to_le_bytes()));
        bytes
    }
}

/// Reads symbols back. Past the end of the data it returns arbitrary symbols without panicking;
/// [`LaneDecoder::finish`] tells.
pub struct LaneDecoder<'a> {
    pub(crate) states: [u32; MAX_LANES],
    pub(crate) lanes: usize,
    pub(crate) words: &'a [u8],
    pub(crate) overrun: bool,
}

impl<'a> LaneDecoder<'a> {
    /// Starts on the bytes of [`LaneEncoder::finish`] with the same number of lanes, a power of two
    /// up to [`MAX_LANES`].
    pub fn new(bytes: &'a [u8], lanes: usize) -> Self {
        let mut states = [LOWER; MAX_LANES];
        let overrun = !bytes.is_empty() && bytes.len() < lanes * 4;
        let (head, words) = bytes.split_at(if overrun { 0 } else { bytes.len().min(lanes * 4) });
        for (state, bytes) in states.iter_mut().zip(head.chunks_exact(4)) {
            *state = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { states, lanes, words, overrun }
    }

    /// Reads a symbol from a lane.
    #[inline]
    pub fn next(&mut self, tables: &Tables, table: usize, lane: usize) -> u8 {
        let state = &mut self.states[lane & (self.lanes - 1) & (MAX_LANES - 1)];
        let entry = tables.slot(table, *state & (PROB_ONE - 1));
        *state = ((entry >> 8 & 0xfff) + 1).wrapping_mul(*state >> PROB_BITS).wrapping_add(entry >> 20);
        if *state < LOWER {
            if let Some((word, rest)) = self.words.split_first_chunk::<2>() {
                *state = *state << 16 | u32::from(u16::from_le_bytes(*word));
                self.words = rest;
            } else {
                self.overrun = true;
            }
        }
        entry as u8
    }

    /// True when exactly the encoded symbols were read.
    pub fn finish(&self) -> bool {
        !self.overrun && self.words.is_empty() && self.states.iter().all(|&s| s == LOWER)
    }
}
