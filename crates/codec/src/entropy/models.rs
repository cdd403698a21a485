//! Adaptive models of syntax elements in headers and side information (section 3.1 of `docs/BITSTREAM.md`).
//!
//! Syntax is written once, against [`Coder`]. Encoder, decoder and rate counter are its backends, so that the rate a
//! search sees and the bits that are written cannot drift apart (the design of rav1e's `Writer`).

use crate::units::Rate;

/// Bits of a probability.
pub const PROB_BITS: u32 = 14;
/// A probability of one.
pub const PROB_ONE: u32 = 1 << PROB_BITS;

/// Codes one syntax element after another. Encoders code and return the value given; decoders
/// ignore it and return the value read.
pub trait Coder {
    /// A bit that is a zero with probability `zero` / 2^14, neither 0 nor 1.
    fn at(&mut self, zero: u32, value: bool) -> bool;

    /// A bit under an adaptive model.
    #[inline]
    fn bit(&mut self, model: &mut BitModel, value: bool) -> bool {
        let value = self.at(model.zero(), value);
        model.update(value);
        value
    }

    /// Up to 14 equiprobable bits.
    fn raw(&mut self, bits: u32, value: u32) -> u32;

    /// True once a decoder has read past its end. What it returns from then on is arbitrary, so long loops should
    /// stop.
    fn exhausted(&self) -> bool {
        false
    }

    /// Up to 32 equiprobable bits, low part first.
    fn raw_wide(&mut self, bits: u32, value: u32) -> u32 {
        let mut result = 0;
        let mut done = 0;
        while done < bits {
            let part = (bits - done).min(12);
            result |= self.raw(part, value >> done & ((1 << part) - 1)) << done;
            done += part;
        }
        result
    }

    /// An unsigned number below 2^31 in the order-0 Exp-Golomb code (Teuhola 1978).
    fn exp_golomb(&mut self, value: u32) -> u32 {
        let length = 31 - (value + 1).leading_zeros();
        let mut n = 0;
        while n < 30 && self.raw(1, u32::from(n < length)) == 1 {
            n += 1;
        }
        let low = (value + 1) & ((1 << n) - 1);
        (1 << n | self.raw_wide(n, low)) - 1
    }
}

/// Adaptive probability of a bit: the mean of a fast and a slow estimate. Both start as the mean of the bits so far.
#[derive(Debug, Clone, Copy)]
pub struct BitModel {
    fast: u16,
    slow: u16,
    seen: u16,
}

impl Default for BitModel {
    fn default() -> Self {
        Self { fast: 1 << 15, slow: 1 << 15, seen: 0 }
    }
}

impl BitModel {
    /// Frequency of a zero out of 2^14, never 0 and never 2^14.
    pub fn zero(&self) -> u32 {
        let mean = (u32::from(self.fast) + u32::from(self.slow)) >> 1;
        (mean >> (16 - PROB_BITS)).clamp(32, PROB_ONE - 32)
    }

    pub(crate) fn update(&mut self, bit: bool) {
        let target = |p: u16, rate: u32| if bit { p - (p >> rate) } else { p + ((u16::MAX - p) >> rate) };
        self.seen = (self.seen + 1).min(255);
        let rate = u16::BITS - self.seen.leading_zeros();
        self.fast = target(self.fast, rate.min(4));
        self.slow = target(self.slow, rate.min(7));
    }
}

/// Adaptive model of a symbol of log2(`NODES`) bits: a binary tree of `NODES` entries, the first unused.
#[derive(Debug, Clone, Copy)]
pub struct TreeModel<const NODES: usize>([BitModel; NODES]);

impl<const NODES: usize> Default for TreeModel<NODES> {
    fn default() -> Self {
        Self([BitModel::default(); NODES])
    }
}

impl<const NODES: usize> TreeModel<NODES> {
    /// Codes a symbol below `NODES`.
    pub fn code<C: Coder + ?Sized>(&mut self, coder: &mut C, value: u32) -> u32 {
        let mut node = 1;
        for bit in (0..NODES.trailing_zeros()).rev() {
            node = node << 1 | usize::from(coder.bit(&mut self.0[node], value >> bit & 1 == 1));
        }
        (node - NODES) as u32
    }
}

/// Adaptive model of small signed integers: zero flag, sign, truncated unary magnitude with an
/// Exp-Golomb tail.
#[derive(Debug, Clone, Default)]
pub struct IntModel {
    zero: BitModel,
    sign: BitModel,
    more: [BitModel; UNARY],
}

/// Magnitudes below this are coded by adaptive bits alone.
const UNARY: usize = 14;
/// Integers are clamped to this magnitude when read, so that sums cannot overflow.
pub const MAX_INT: i32 = 1 << 15;

impl IntModel {
    /// Codes `value`, |value| <= [`MAX_INT`].
    pub fn code<C: Coder + ?Sized>(&mut self, coder: &mut C, value: i32) -> i32 {
        if !coder.bit(&mut self.zero, value != 0) {
            return 0;
        }
        let negative = coder.bit(&mut self.sign, value < 0);
        let magnitude = value.unsigned_abs().max(1) as usize;
        let mut read = 1;
        while read <= UNARY && coder.bit(&mut self.more[read - 1], magnitude > read) {
            read += 1;
        }
        if read > UNARY {
            read += coder.exp_golomb((magnitude.saturating_sub(UNARY + 1)) as u32) as usize;
        }
        let magnitude = (read as i64).min(i64::from(MAX_INT)) as i32;
        if negative { -magnitude } else { magnitude }
    }
}

/// Adds up ideal code lengths.
#[derive(Debug, Default)]
pub struct RateCounter {
    bits: f64,
}

impl RateCounter {
    /// Bits so far.
    pub fn rate(&self) -> Rate {
        Rate(self.bits)
    }

    fn add(&mut self, freq: u32) {
        self.bits += f64::from(PROB_BITS) - f64::from(freq).log2();
    }
}

impl Coder for RateCounter {
    fn at(&mut self, zero: u32, value: bool) -> bool {
        self.add(if value { PROB_ONE - zero } else { zero });
        value
    }

    fn raw(&mut self, bits: u32, value: u32) -> u32 {
        self.bits += f64::from(bits);
        value
    }
}
