//! Syntax of one sample: a symbol in the row's lane, then bits stored as they are (sections 7.2 to
//! 7.6 of `docs/BITSTREAM.md`).

use crate::bits::{BitReader, BitWriter};
use crate::format::Dtype;
use crate::lanes::{LaneDecoder, LaneEncoder};
use crate::table::{
    ESCAPE, HEAD_FIRST, HEAD_OCTAVES, HEAD_ZERO, LEVEL_ZERO, ODD_TABLE, PROB_BITS, Tables, class_of, head_table,
    largest_level, largest_odd_index, level_table,
};
use crate::trellis::parity;
use crate::units::Rate;

/// Codes samples. Encoders and counters return the value given; decoders ignore it and return the
/// value read.
pub trait SampleCoder {
    /// A symbol under a table, in a lane.
    fn symbol(&mut self, tables: &Tables, table: usize, lane: usize, symbol: u8) -> u8;
    /// Up to 32 bits as they are.
    fn raw(&mut self, bits: u32, value: u32) -> u32;
    /// Up to 32 bits of what follows an escape. They go to a stream of their own, so that those of all
    /// other samples lie where they are expected.
    fn escape(&mut self, bits: u32, value: u32) -> u32;
}

/// Writes samples.
#[derive(Debug, Default)]
pub struct SampleEncoder {
    /// Symbols.
    pub lanes: LaneEncoder,
    /// Bits.
    pub bits: BitWriter,
    /// What follows escapes.
    pub escapes: BitWriter,
}

impl SampleCoder for SampleEncoder {
    #[inline]
    fn symbol(&mut self, tables: &Tables, table: usize, lane: usize, symbol: u8) -> u8 {
        self.lanes.push(tables, table, lane, symbol);
        symbol
    }

    #[inline]
    fn raw(&mut self, bits: u32, value: u32) -> u32 {
        self.bits.write(bits, value);
        value
    }

    fn escape(&mut self, bits: u32, value: u32) -> u32 {
        self.escapes.write(bits, value);
        value
    }
}

/// Reads samples.
pub struct SampleDecoder<'a> {
    /// Symbols.
    pub lanes: LaneDecoder<'a>,
    /// Bits.
    pub bits: BitReader<'a>,
    /// What follows escapes.
    pub escapes: BitReader<'a>,
}

impl<'a> SampleDecoder<'a> {
    /// Starts on the three streams of a slice.
    pub fn new(symbols: &'a [u8], lanes: usize, bits: &'a [u8], escapes: &'a [u8]) -> Self {
        let (bits, escapes) = (BitReader::new(bits), BitReader::new(escapes));
        Self { lanes: LaneDecoder::new(symbols, lanes), bits, escapes }
    }

    /// True when exactly what was encoded was read.
    pub fn finish(&self) -> bool {
        self.lanes.finish() && self.bits.finish() && self.escapes.finish()
    }
}

impl SampleCoder for SampleDecoder<'_> {
    #[inline]
    fn symbol(&mut self, tables: &Tables, table: usize, lane: usize, _: u8) -> u8 {
        self.lanes.next(tables, table, lane)
    }

    #[inline]
    fn raw(&mut self, bits: u32, _: u32) -> u32 {
        self.bits.read(bits)
    }

    fn escape(&mut self, bits: u32, _: u32) -> u32 {
        self.escapes.read(bits)
    }
}

/// Adds up ideal code lengths.
#[derive(Debug, Default)]
pub struct SampleCounter(f64);

impl SampleCounter {
    /// Bits so far.
    pub fn rate(&self) -> Rate {
        Rate(self.0)
    }
}

impl SampleCoder for SampleCounter {
    fn symbol(&mut self, tables: &Tables, table: usize, _: usize, symbol: u8) -> u8 {
        self.0 += f64::from(PROB_BITS) - f64::from(tables.interval(table, symbol).1).log2();
        symbol
    }

    fn raw(&mut self, bits: u32, value: u32) -> u32 {
        self.0 += f64::from(bits);
        value
    }

    fn escape(&mut self, bits: u32, value: u32) -> u32 {
        self.raw(bits, value)
    }
}

/// Largest magnitude of a level or coefficient; what a damaged stream may ask for beyond is cut.
pub const MAX_LEVEL: i32 = 1 << 14;

/// Codes a level under a class: the rounded quotient by 2^shift, then its low bits.
#[inline]
pub fn code_level<S: SampleCoder>(coder: &mut S, lane: usize, class: usize, level: i32) -> i32 {
    let (shift, table) = level_table(class);
    let offset = (1 << shift) >> 1;
    let quotient = (level + offset) >> shift;
    let most = largest_level(table);
    let symbol = if quotient.abs() <= most { (quotient + LEVEL_ZERO) as u8 } else { ESCAPE };
    let symbol = coder.symbol(Tables::fixed(), table, lane, symbol);
    let quotient = if symbol == ESCAPE { code_escape(coder, most, quotient) } else { i32::from(symbol) - LEVEL_ZERO };
    join_level(coder, shift, quotient, level)
}

/// Codes a level under a spread in quarter octaves, by its index among the levels of its trellis
/// state's quantiser.
#[inline]
pub fn code_trellis_level<S: SampleCoder>(coder: &mut S, lane: usize, spread: i32, state: u8, level: i32) -> i32 {
    // Levels of one quantiser are an octave further apart than those of both.
    let class = class_of(spread - 4);
    let parity = parity(state);
    let index = (level - parity) >> 1;
    let index = match parity {
        0 => code_level(coder, lane, class, index),
        _ => code_odd_index(coder, lane, class, index),
    };
    (2 * index + parity).clamp(-MAX_LEVEL, MAX_LEVEL)
}

/// Codes the index i of the odd level 2i + 1: the quotient by 2^shift, rounded down, then its low bits.
#[inline]
pub(crate) fn code_odd_index<S: SampleCoder>(coder: &mut S, lane: usize, class: usize, index: i32) -> i32 {
    let (shift, table) = level_table(class);
    let quotient = index >> shift;
    let most = largest_odd_index(table);
    let symbol = if (-most - 1..=most).contains(&quotient) { (quotient + LEVEL_ZERO) as u8 } else { ESCAPE };
    let symbol = coder.symbol(Tables::fixed(), ODD_TABLE + table, lane, symbol);
    let quotient = match symbol {
        // Magnitudes count from the middle, so that both signs are alike.
        ESCAPE => {
            let escaped = code_escape(coder, most + 1, quotient + i32::from(quotient >= 0));
            escaped - i32::from(escaped > 0)
        }
        _ => i32::from(symbol) - LEVEL_ZERO,
    };
    quotient << shift | coder.raw(shift, index as u32 & ((1 << shift) - 1)) as i32
}

/// A level from its quotient and low bits.
#[inline]
pub(crate) fn join_level<S: SampleCoder>(coder: &mut S, shift: u32, quotient: i32, level: i32) -> i32 {
    if shift == 0 {
        return quotient;
    }
    let offset = (1 << shift) >> 1;
    let low = coder.raw(shift, (level + offset) as u32 & ((1 << shift) - 1));
    ((quotient << shift) + low as i32 - offset).clamp(-MAX_LEVEL, MAX_LEVEL)
}

/// A quotient beyond `most`: sign, then the magnitude in order-0 Exp-Golomb code (Teuhola 1978).
#[cold]
pub(crate) fn code_escape<S: SampleCoder>(coder: &mut S, most: i32, quotient: i32) -> i32 {
    let negative = coder.escape(1, u32::from(quotient < 0)) == 1;
    let value = (quotient.abs() - most).max(1) as u32;
    let length = 31 - value.leading_zeros();
    let mut n = 0;
    while n < 15 && coder.escape(1, u32::from(n < length)) == 1 {
        n += 1;
    }
    let value = 1 << n | coder.escape(n, value & ((1 << n) - 1));
    let magnitude = (most + value as i32).min(MAX_LEVEL);
    if negative { -magnitude } else { magnitude }
}

/// How heads of patterns are coded: under which tables, and what a symbol stands for.
#[derive(Clone, Copy)]
pub struct HeadModel<'a> {
    tables: &'a Tables,
    /// First table.
    base: usize,
    /// Tables: one, one for each quarter octave, or for plain symbols one for each column modulo
    /// their number.
    count: usize,
    dtype: Dtype,
    bias: i32,
    leading: u32,
}

impl<'a> HeadModel<'a> {
    /// The fixed tables; types with an exponent.
    pub fn fixed(dtype: Dtype) -> Self {
        let leading = dtype.layout().map_or(3, |l| l.leading);
        Self::new(Tables::fixed(), head_table(leading, 0), 4, dtype)
    }

    /// `count` tables of a tensor, from the table `base` on.
    pub fn new(tables: &'a Tables, base: usize, count: usize, dtype: Dtype) -> Self {
        let (bias, leading) = dtype.layout().map_or((0, 0), |l| (l.bias, l.leading));
        Self { tables, base, count, dtype, bias, leading }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(crate) fn tables(&self) -> &'a Tables {
        self.tables
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// Of every table and symbol: bit 24 set where it can occur, frequency - 1, start.
    pub(crate) fn packed_intervals(&self) -> Vec<u32> {
        let pack = |i: usize| match self.tables.interval(self.base + (i >> 8), i as u8) {
            (_, 0) => 0,
            (start, freq) => 1 << 24 | (freq - 1) << 12 | start,
        };
        (0..self.count << 8).map(pack).collect()
    }

    /// Table, and head of the symbol [`HEAD_FIRST`] (0 for plain symbols), for a spread of
    /// 2^(class / 4) in column `col`.
    #[inline]
    pub(crate) fn context(&self, class: i32, col: usize) -> (usize, i32) {
        if self.leading == 0 {
            return (self.base + col % self.count, 0);
        }
        let table = self.base + (class & (self.count as i32 - 1)) as usize;
        (table, ((class >> 2) + self.bias - HEAD_OCTAVES) << self.leading)
    }

    /// Symbol of a head, [`ESCAPE`] where it has none.
    #[inline]
    pub fn symbol(&self, table: usize, origin: i32, head: u32) -> u8 {
        let symbol = self.symbol_of_any(origin, head);
        if self.tables.interval(table, symbol).1 > 0 { symbol } else { ESCAPE }
    }

    /// Symbol that a head would have if all symbols occurred.
    #[inline]
    pub(crate) fn symbol_of_any(&self, origin: i32, head: u32) -> u8 {
        if self.leading == 0 {
            return head as u8;
        }
        let symbol = head as i32 - origin + HEAD_FIRST;
        let symbol = if (HEAD_FIRST..256).contains(&symbol) { symbol } else { i32::from(ESCAPE) };
        (if head == 0 { i32::from(HEAD_ZERO) } else { symbol }) as u8
    }

    /// Codes a head of a sample in column `col` whose spread is 2^(class / 4).
    #[inline]
    pub fn code_head<S: SampleCoder>(&self, coder: &mut S, lane: usize, col: usize, class: i32, head: u32) -> u32 {
        let (table, origin) = self.context(class, col);
        let symbol = coder.symbol(self.tables, table, lane, self.symbol(table, origin, head));
        self.head_of(coder, origin, symbol, head)
    }

    /// Head of a symbol; `head` is what an encoder escapes.
    #[inline]
    pub(crate) fn head_of<S: SampleCoder>(&self, coder: &mut S, origin: i32, symbol: u8, head: u32) -> u32 {
        match symbol {
            _ if self.leading == 0 => u32::from(symbol),
            ESCAPE => self.code_escape(coder, origin, head),
            HEAD_ZERO => 0,
            _ => (i32::from(symbol) - HEAD_FIRST + origin) as u32 & ((1 << self.dtype.head_bits()) - 1),
        }
    }

    /// Octaves below the tables' range in unary (each is half as likely as the one above) and the
    /// leading bits; after [`MOST_OCTAVES`] ones the head itself.
    #[cold]
    pub(crate) fn code_escape<S: SampleCoder>(&self, coder: &mut S, origin: i32, head: u32) -> u32 {
        let (k, mask) = (self.leading, (1 << self.dtype.head_bits()) - 1);
        let below = (origin >> k) - 1 - (head >> k) as i32;
        let below = if (0..MOST_OCTAVES).contains(&below) { below } else { MOST_OCTAVES };
        let mut octaves = 0;
        while octaves < MOST_OCTAVES && coder.escape(1, u32::from(octaves < below)) == 1 {
            octaves += 1;
        }
        if octaves == MOST_OCTAVES {
            return coder.escape(self.dtype.head_bits(), head);
        }
        let octave = ((origin >> k) - 1 - octaves) as u32;
        (octave << k | coder.escape(k, head & ((1 << k) - 1))) & mask
    }

    /// Codes a pattern.
    #[inline]
    pub fn code_pattern<S: SampleCoder>(
        &self,
        coder: &mut S,
        lane: usize,
        col: usize,
        class: i32,
        pattern: u32,
    ) -> u32 {
        let (head, rest) = self.dtype.split(pattern);
        let head = self.code_head(coder, lane, col, class, head);
        self.dtype.join(head, coder.raw(self.dtype.raw_bits(), rest))
    }
}

/// Code lengths of heads, for estimates.
pub struct HeadCosts<'a> {
    model: HeadModel<'a>,
    /// By table and symbol.
    bits: Vec<f32>,
}

impl<'a> HeadCosts<'a> {
    /// Code lengths under a model.
    pub fn new(model: HeadModel<'a>) -> Self {
        let symbols = 0..model.count << 8;
        let bits = symbols.map(|i| model.tables.cost(model.base + (i >> 8), i as u8)).collect();
        Self { model, bits }
    }

    /// Bits of a head under a spread of 2^(class / 4), and of the rest of its pattern.
    #[inline]
    pub fn bits(&self, class: i32, head: u32) -> f32 {
        let (table, origin) = self.model.context(class, 0);
        let symbol = self.model.symbol(table, origin, head);
        let escape = if symbol == ESCAPE { ESCAPE_BITS } else { 0.0 };
        self.bits[(table - self.model.base) << 8 | usize::from(symbol)] + escape + self.model.dtype.raw_bits() as f32
    }
}

/// Bits after an escape, about.
const ESCAPE_BITS: f32 = 5.0;

/// Octaves that an escaped head may lie below the tables' range in unary code.
const MOST_OCTAVES: i32 = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::CLASSES;

    #[test]
    fn every_level_survives_under_every_class() {
        for class in 0..CLASSES {
            let levels = || (-200..=200).chain([-5000, 5000, MAX_LEVEL - 200]);
            let mut encoder = SampleEncoder::default();
            levels().for_each(|level| assert_eq!(code_level(&mut encoder, 3, class, level), level));
            let (lanes, bits, escapes) = (encoder.lanes.finish(8), encoder.bits.finish(), encoder.escapes.finish());
            let mut decoder = SampleDecoder::new(&lanes, 8, &bits, &escapes);
            levels().for_each(|level| assert_eq!(code_level(&mut decoder, 3, class, 0), level, "class {class}"));
            assert!(decoder.finish());
        }
    }

    #[test]
    fn every_head_survives_under_every_class() {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::E4M3, Dtype::E5M2] {
            let model = HeadModel::fixed(dtype);
            for class in (-200..200).step_by(7) {
                let heads = || 0..1u32 << dtype.head_bits();
                let mut encoder = SampleEncoder::default();
                heads().for_each(|h| assert_eq!(model.code_head(&mut encoder, 0, 0, class, h), h));
                let (lanes, bits, escapes) = (encoder.lanes.finish(1), encoder.bits.finish(), encoder.escapes.finish());
                let mut decoder = SampleDecoder::new(&lanes, 1, &bits, &escapes);
                heads().for_each(|h| assert_eq!(model.code_head(&mut decoder, 0, 0, class, 0), h, "{dtype:?} {class}"));
                assert!(decoder.finish());
            }
        }
    }
}
