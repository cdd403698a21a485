//! Interleaved rANS (Duda 2014; interleaving of Giesen 2014) for samples: up to 64 lanes of 32-bit states, 16-bit
//! words, 12-bit probabilities (section 7.1 of `docs/BITSTREAM.md`).
//!
//! The sample in row r and column c uses lane r mod 32 + 32 (c mod 2), modulo the number of lanes, so that 64 lanes
//! decode two columns of 32 rows side by side. The encoder records all intervals and codes them backwards. A stream
//! begins with the final states of all lanes, followed by words in the order in which the decoder reads them. A
//! decoder that has read exactly the stream ends with every state at [`LANE_LOWER`] and no words left.

use crate::constants::{BAND, LANE_LOWER, LANE_PROB_BITS, LANE_PROB_ONE, MAX_LANES};
use crate::entropy::tables::Tables;
use crate::simd;

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
        self.finish_with(lanes, simd::encode_columns)
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
        let mut states = [LANE_LOWER; MAX_LANES];
        // One word for each sample at most, and room for a vector store that reaches beyond the last.
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
            let full = u64::from(x) >= u64::from(freq) << (32 - LANE_PROB_BITS);
            at -= usize::from(full);
            x = if full { x >> 16 } else { x };
            *state = ((x / freq) << LANE_PROB_BITS) + x % freq + start;
        }
        let mut bytes = Vec::with_capacity(lanes * 4 + (end - at) * 2);
        for state in &states[..lanes] {
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.extend(words[at..end].iter().flat_map(|w| w.to_le_bytes()));
        bytes
    }
}

/// Reads symbols back. Past the end of the data it returns arbitrary symbols, without a panic;
/// [`LaneDecoder::finish`] then returns false.
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
        let mut states = [LANE_LOWER; MAX_LANES];
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
        let entry = tables.slot(table, *state & (LANE_PROB_ONE - 1));
        *state = ((entry >> 8 & 0xfff) + 1).wrapping_mul(*state >> LANE_PROB_BITS).wrapping_add(entry >> 20);
        if *state < LANE_LOWER {
            if let Some((word, rest)) = self.words.split_first_chunk::<2>() {
                *state = *state << 16 | u32::from(u16::from_le_bytes(*word));
                self.words = rest;
            } else {
                self.overrun = true;
            }
        }
        entry as u8
    }

    /// Reads a symbol from every lane for each column; `offsets` are the first slots of the samples' tables.
    #[inline(always)]
    pub(crate) fn next_columns(&mut self, tables: &Tables, offsets: &[[u32; BAND]], symbols: &mut [[u8; BAND]]) {
        let done = match self.lanes {
            MAX_LANES => simd::decode_columns(&mut self.states, &mut self.words, tables.slots(), offsets, symbols),
            _ => 0,
        };
        self.next_columns_scalar(tables, &offsets[done..], done, &mut symbols[done..]);
    }

    /// Reads columns in which every sample has the same table.
    #[inline(always)]
    pub(crate) fn next_columns_evenly(&mut self, tables: &Tables, table: usize, symbols: &mut [[u8; BAND]]) {
        let offset = (table as u32) << LANE_PROB_BITS;
        let done = match self.lanes {
            MAX_LANES => {
                simd::decode_columns_evenly(&mut self.states, &mut self.words, tables.slots(), offset, symbols)
            }
            _ => 0,
        };
        for (col, symbols) in symbols.iter_mut().enumerate().skip(done) {
            self.next_columns_scalar(tables, &[[offset; BAND]], col, std::slice::from_mut(symbols));
        }
    }

    /// Reads columns, `first` being the number of the first, one symbol after the other: the definition that the kernels
    /// must equal.
    fn next_columns_scalar(
        &mut self,
        tables: &Tables,
        offsets: &[[u32; BAND]],
        first: usize,
        symbols: &mut [[u8; BAND]],
    ) {
        for ((col, offsets), symbols) in (first..).zip(offsets).zip(symbols) {
            for (row, (&offset, symbol)) in offsets.iter().zip(symbols).enumerate() {
                *symbol = self.next(tables, (offset >> LANE_PROB_BITS) as usize, lane_of(row, col));
            }
        }
    }

    /// True when exactly the encoded symbols were read.
    pub fn finish(&self) -> bool {
        !self.overrun && self.words.is_empty() && self.states.iter().all(|&s| s == LANE_LOWER)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;

    /// A stream of columns under changing tables, and the tables.
    pub(crate) fn stream(columns: usize) -> (Vec<u8>, Vec<[u32; BAND]>) {
        let tables = Tables::fixed();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut draw = |n: u64| random.next_u64() % n;
        let mut encoder = LaneEncoder::default();
        let mut offsets = Vec::new();
        for col in 0..columns {
            let column: [u32; BAND] = std::array::from_fn(|_| draw(tables.len() as u64) as u32);
            for (row, &table) in column.iter().enumerate() {
                // A symbol drawn as the table says.
                let symbol = tables.slot(table as usize, draw(4096) as u32) as u8;
                encoder.push(tables, table as usize, lane_of(row, col), symbol);
            }
            offsets.push(column.map(|t| t << LANE_PROB_BITS));
        }
        (encoder.finish(MAX_LANES), offsets)
    }

    #[test]
    fn wide_decoding_equals_plain_decoding() {
        let (bytes, offsets) = stream(704);
        let tables = Tables::fixed();
        let mut expected = vec![[0; BAND]; offsets.len()];
        let mut plain = LaneDecoder::new(&bytes, MAX_LANES);
        plain.next_columns_scalar(tables, &offsets, 0, &mut expected);
        assert!(plain.finish());
        let mut got = vec![[0; BAND]; offsets.len()];
        let mut wide = LaneDecoder::new(&bytes, MAX_LANES);
        for (offsets, got) in offsets.chunks(16).zip(got.chunks_mut(16)) {
            wide.next_columns(tables, offsets, got);
        }
        assert!(wide.finish());
        assert_eq!(got, expected);
        // Damaged and cut streams too.
        for cut in [0, 5, 127, 128, 200, bytes.len() - 3] {
            let mut results = Vec::new();
            for wide in [false, true] {
                let mut lanes = LaneDecoder::new(&bytes[..cut], MAX_LANES);
                let mut got = vec![[0; BAND]; offsets.len()];
                match wide {
                    true => lanes.next_columns(tables, &offsets, &mut got),
                    false => lanes.next_columns_scalar(tables, &offsets, 0, &mut got),
                }
                results.push((got, lanes.states, lanes.finish()));
            }
            assert!(results[0] == results[1], "cut at {cut}");
        }
    }

    #[test]
    fn wide_encoding_equals_plain_encoding() {
        let tables = Tables::fixed();
        let symbol = |n: usize| tables.slot(n % tables.len(), (n * 2654435761) as u32 & 0xfff) as u8;
        // With a row less no pair of columns is whole.
        for rows in [BAND, BAND - 1] {
            let mut encoder = LaneEncoder::default();
            for n in 0..40 * rows {
                encoder.push(tables, n % tables.len(), lane_of(n % rows, n / rows), symbol(n));
            }
            let (wide, plain) = (encoder.finish(MAX_LANES), encoder.finish_plain(MAX_LANES));
            assert!(wide == plain, "{rows} rows");
            let mut decoder = LaneDecoder::new(&wide, MAX_LANES);
            for n in 0..40 * rows {
                assert_eq!(decoder.next(tables, n % tables.len(), lane_of(n % rows, n / rows)), symbol(n));
            }
            assert!(decoder.finish());
        }
    }
}
