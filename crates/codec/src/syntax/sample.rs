//! Syntax of one sample: a symbol in the row's lane, then raw bits (sections 7.2 to 7.6 of `docs/BITSTREAM.md`).

use crate::constants::LANE_PROB_BITS;
use crate::entropy::bits::{BitReader, BitWriter};
use crate::entropy::interleaved_rans::{LaneDecoder, LaneEncoder};
use crate::entropy::tables::{
    ESCAPE, LEVEL_ZERO, ODD_TABLE, Tables, class_of, largest_level, largest_odd_index, level_table,
};
use crate::scale::SigmaIndex;
use crate::syntax::trellis::parity;
use crate::units::Rate;

/// Codes samples. Encoders and counters return the value given; decoders ignore it and return the
/// value read.
pub trait SampleCoder {
    /// A symbol under a table, in a lane.
    fn symbol(&mut self, tables: &Tables, table: usize, lane: usize, symbol: u8) -> u8;
    /// Up to 32 raw bits.
    fn raw(&mut self, bits: u32, value: u32) -> u32;
    /// Up to 32 bits after an escape. They have a stream of their own, so that the raw bits of all other samples are
    /// at known places.
    fn escape(&mut self, bits: u32, value: u32) -> u32;
}

/// Writes samples.
#[derive(Debug, Default)]
pub struct SampleEncoder {
    /// Symbols.
    pub lanes: LaneEncoder,
    /// Bits.
    pub bits: BitWriter,
    /// Bits after escapes.
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
    /// Bits after escapes.
    pub escapes: BitReader<'a>,
}

impl<'a> SampleDecoder<'a> {
    /// Starts on the three streams of a slice.
    pub fn new(symbols: &'a [u8], lanes: usize, bits: &'a [u8], escapes: &'a [u8]) -> Self {
        let (bits, escapes) = (BitReader::new(bits), BitReader::new(escapes));
        Self { lanes: LaneDecoder::new(symbols, lanes), bits, escapes }
    }

    /// True if exactly the encoded samples were read.
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
        self.0 += f64::from(LANE_PROB_BITS) - f64::from(tables.interval(table, symbol).1).log2();
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

/// Largest magnitude of a level or coefficient; a decoder clamps to it.
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

/// Codes a level with a sigma index, by its index among the levels of its trellis state's quantiser.
#[inline]
pub fn code_trellis_level<S: SampleCoder>(coder: &mut S, lane: usize, sigma: SigmaIndex, state: u8, level: i32) -> i32 {
    // Levels of one quantiser are an octave further apart than those of both.
    let class = class_of(sigma - 4);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tables::CLASSES;

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
}
