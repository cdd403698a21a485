//! Lossless difference of a tensor from another of the same shape and type, such as a fine-tune from its base.
//!
//! Bit patterns are taken as integers in the order of their values. Their difference is coded in the context of the
//! base's exponent, which says how large a change of a given size is in units of the last place. Blocks unrelated to
//! the base are coded without it. A stream covers [`SLICE`] elements, so that streams decode on several threads.

use crate::entropy::adaptive_rans::{Decoder, Encoder};
use crate::entropy::models::{Coder, PROB_BITS, PROB_ONE};
use crate::error::{CodecError, Part, Result};
use crate::format::Dtype;

/// Elements of a stream; each starts with fresh models.
pub const SLICE: usize = 1 << 22;
/// Elements of a block, which is coded with the base or without it.
const BLOCK: usize = 256;
/// Classes of magnitudes: the difference of two ordered integers of 32 bits has up to 33 bits.
const CLASSES: usize = 34;
/// Bits below a magnitude's first that are modelled.
const MODELLED: u32 = 3;

/// Adaptive probability of a bit with nearly constant statistics: the mean of all bits so far, later of about the
/// last thousand.
#[derive(Clone, Copy)]
struct SteadyBit {
    /// Probability of a zero, 24 bits.
    zero: u32,
    seen: u16,
}

/// Slowest rate of a [`SteadyBit`].
const RATE: u32 = 10;

impl Default for SteadyBit {
    fn default() -> Self {
        Self { zero: 1 << 23, seen: 0 }
    }
}

impl SteadyBit {
    #[inline]
    fn code<C: Coder>(&mut self, coder: &mut C, value: bool) -> bool {
        let value = coder.at((self.zero >> (24 - PROB_BITS)).clamp(1, PROB_ONE - 1), value);
        self.seen = (self.seen + 1).min((1 << RATE) - 1);
        let rate = u16::BITS - self.seen.leading_zeros();
        match value {
            true => self.zero -= self.zero >> rate,
            false => self.zero += ((1 << 24) - self.zero) >> rate,
        }
        value
    }
}

/// Models under one exponent of the base.
#[derive(Clone)]
struct Context {
    /// Element changed or not, by whether the one before did.
    changed: [SteadyBit; 2],
    /// Change towards smaller magnitudes or not.
    smaller: SteadyBit,
    /// Magnitude longer than n bits or not.
    longer: [SteadyBit; CLASSES],
    /// Trees of the bits below the first, by the number of bits.
    below: [[SteadyBit; 1 << MODELLED]; CLASSES],
}

impl Default for Context {
    fn default() -> Self {
        Self {
            changed: Default::default(),
            smaller: SteadyBit::default(),
            longer: [SteadyBit::default(); CLASSES],
            below: [[SteadyBit::default(); 1 << MODELLED]; CLASSES],
        }
    }
}

/// Models of elements that are coded without the base: trees of sign and exponent.
struct Alone {
    tree: Vec<SteadyBit>,
}

impl Alone {
    fn new(dtype: Dtype) -> Self {
        Self { tree: vec![SteadyBit::default(); 2 << (dtype.bits() as u32 - fraction(dtype))] }
    }

    #[inline]
    fn code<C: Coder>(&mut self, coder: &mut C, dtype: Dtype, pattern: u32) -> u32 {
        let (bits, low) = (dtype.bits() as u32, fraction(dtype));
        let mut node = 1;
        for bit in (low..bits).rev() {
            node = node << 1 | usize::from(self.tree[node].code(coder, pattern >> bit & 1 == 1));
        }
        let prefix = node as u32 & ((1 << (bits - low)) - 1);
        prefix << low | coder.raw_wide(low, pattern & ((1 << low) - 1))
    }
}

/// Bits of a pattern below its exponent.
fn fraction(dtype: Dtype) -> u32 {
    dtype.layout().map_or(0, |layout| layout.fraction)
}

/// True if elements are likely to take fewer bits without the base: replaced rows, not changed ones. An exponent
/// takes about three bits.
fn is_replaced(dtype: Dtype, base: &[u8], target: &[u8]) -> bool {
    let width = dtype.bytes();
    let count = base.len() / width;
    let difference = |n: usize| ordered(dtype, read(dtype, target, n)) - ordered(dtype, read(dtype, base, n));
    let bits = |difference: i64| match difference {
        0 => 1,
        d => 3 + u64::from(64 - d.unsigned_abs().leading_zeros()),
    };
    (0..count).map(|n| bits(difference(n))).sum::<u64>() > count as u64 * u64::from(fraction(dtype) + 4)
}

/// Exponent field of a pattern.
fn exponent(dtype: Dtype, pattern: u32) -> usize {
    match dtype {
        Dtype::Bf16 => (pattern >> 7 & 0xff) as usize,
        Dtype::F16 => (pattern >> 10 & 0x1f) as usize,
        _ => (pattern >> 23 & 0xff) as usize,
    }
}

/// A pattern as an integer in the order of values; both zeros are neighbours.
fn ordered(dtype: Dtype, pattern: u32) -> i64 {
    let sign = 1u32 << (dtype.bits() - 1);
    match pattern & sign {
        0 => i64::from(pattern),
        _ => -1 - i64::from(pattern & !sign),
    }
}

/// The pattern of an ordered integer; integers out of range wrap.
fn pattern(dtype: Dtype, ordered: i64) -> u32 {
    let sign = 1u32 << (dtype.bits() - 1);
    match ordered {
        0.. => ordered as u32 & (sign - 1),
        _ => (-1 - ordered) as u32 & (sign - 1) | sign,
    }
}

fn read(dtype: Dtype, bytes: &[u8], n: usize) -> u32 {
    let width = dtype.bytes();
    bytes[n * width..(n + 1) * width].iter().rev().fold(0, |v, &b| v << 8 | u32::from(b))
}

/// Codes little-endian elements. Encoders read them from `target`, decoders write them there. `replaced` selects, in
/// an encoder, the blocks that are coded without the base.
fn code<C: Coder>(
    coder: &mut C,
    dtype: Dtype,
    base: &[u8],
    target: &mut [u8],
    replaced: impl Fn(&[u8], &[u8]) -> bool,
) {
    let mut contexts = vec![Context::default(); 256];
    let mut alone = Alone::new(dtype);
    let mut is_alone = [SteadyBit::default(); 2];
    let (width, mut last) = (dtype.bytes(), 0);
    let mut before = 0;
    for (base, target) in base.chunks(BLOCK * width).zip(target.chunks_mut(BLOCK * width)) {
        let without = is_alone[last].code(coder, replaced(base, target));
        last = usize::from(without);
        for n in 0..base.len() / width {
            let element = read(dtype, target, n);
            let found = match without {
                true => alone.code(coder, dtype, element),
                false => {
                    let from = read(dtype, base, n);
                    code_change(coder, &mut contexts[exponent(dtype, from)], dtype, (from, element), &mut before)
                }
            };
            target[n * width..(n + 1) * width].copy_from_slice(&found.to_le_bytes()[..width]);
            if coder.exhausted() {
                return;
            }
        }
    }
}

/// Codes an element given the base's. `before` says whether the previous element coded this way had changed.
#[inline(always)]
fn code_change<C: Coder>(
    coder: &mut C,
    context: &mut Context,
    dtype: Dtype,
    (from, element): (u32, u32),
    before: &mut usize,
) -> u32 {
    let (start, negative) = (ordered(dtype, from), from >> (dtype.bits() - 1) & 1 == 1);
    let difference = ordered(dtype, element) - start;
    let changed = context.changed[*before].code(coder, difference != 0);
    *before = usize::from(changed);
    if !changed {
        return pattern(dtype, start);
    }
    let down = context.smaller.code(coder, (difference < 0) != negative) != negative;
    let magnitude = difference.unsigned_abs().max(1);
    let wanted = (63 - magnitude.leading_zeros()) as usize;
    let mut class = 0;
    while class + 1 < CLASSES && context.longer[class].code(coder, wanted > class) {
        class += 1;
    }
    let rest = class as u32;
    let modelled = rest.min(MODELLED);
    let tree = &mut context.below[class];
    let mut node = 1;
    for bit in (rest - modelled..rest).rev() {
        node = node << 1 | usize::from(tree[node].code(coder, magnitude >> bit & 1 == 1));
    }
    let low = coder.raw_wide(rest - modelled, (magnitude & ((1 << (rest - modelled)) - 1)) as u32);
    let size = ((node as i64) << (rest - modelled)) | i64::from(low);
    pattern(dtype, start + if down { -size } else { size })
}

/// Streams of the elements of `target` given `base`, one for each [`SLICE`], as little-endian elements of a type that
/// weights have.
///
/// # Errors
/// Lengths that differ or are no whole elements.
pub fn encode_difference(dtype: Dtype, base: &[u8], target: &[u8]) -> Result<Vec<Vec<u8>>> {
    check(dtype, base, target.len())?;
    let part = SLICE * dtype.bytes();
    let slice = |(base, target): (&[u8], &[u8])| {
        let mut encoder = Encoder::default();
        code(&mut encoder, dtype, base, &mut target.to_vec(), |base, target| is_replaced(dtype, base, target));
        encoder.finish()
    };
    Ok(base.chunks(part).zip(target.chunks(part)).map(slice).collect())
}

/// Elements of one stream.
///
/// # Errors
/// A damaged stream, lengths that differ or are no whole elements.
pub fn decode_difference(dtype: Dtype, base: &[u8], stream: &[u8], target: &mut [u8]) -> Result<()> {
    check(dtype, base, target.len())?;
    let mut decoder = Decoder::new(stream);
    code(&mut decoder, dtype, base, target, |_, _| false);
    match decoder.finish() {
        true => Ok(()),
        false => Err(CodecError::Entropy { part: Part::Difference }),
    }
}

fn check(dtype: Dtype, base: &[u8], target: usize) -> Result<()> {
    let whole = dtype.is_weight() && base.len().is_multiple_of(dtype.bytes());
    if base.len() != target || !whole {
        return Err(CodecError::Shape { what: "base", found: base.len(), expected: target });
    }
    Ok(())
}

/// Entropy of the ordered difference given the base's exponent, in bits over all elements: the reference for the
/// coder.
///
/// # Errors
/// Lengths that differ or are no whole elements.
pub fn difference_entropy(dtype: Dtype, base: &[u8], target: &[u8]) -> Result<f64> {
    check(dtype, base, target.len())?;
    let mut counts: Vec<std::collections::HashMap<i64, u64>> = vec![Default::default(); 256];
    for n in 0..base.len() / dtype.bytes() {
        let (from, to) = (read(dtype, base, n), read(dtype, target, n));
        *counts[exponent(dtype, from)].entry(ordered(dtype, to) - ordered(dtype, from)).or_default() += 1;
    }
    let bits = |counts: &std::collections::HashMap<i64, u64>| {
        let all: u64 = counts.values().sum();
        counts.values().map(|&n| n as f64 * (all as f64 / n as f64).log2()).sum::<f64>()
    };
    Ok(counts.iter().map(bits).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;

    const TYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

    #[test]
    fn patterns_are_ordered_as_their_values() {
        for dtype in TYPES {
            let mut last = None;
            for v in [-2.0f32, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0] {
                let p = dtype.pattern_of(v);
                let o = ordered(dtype, p);
                assert_eq!(pattern(dtype, o), p);
                assert!(last < Some(o), "{dtype:?} {v}");
                last = Some(o);
            }
        }
        for p in 0..=u16::MAX {
            assert_eq!(pattern(Dtype::Bf16, ordered(Dtype::Bf16, p.into())), u32::from(p));
        }
    }

    proptest! {
        #[test]
        fn any_elements_come_back(kind in 0usize..3, pairs in prop::collection::vec((any::<u32>(), any::<u32>(), 0u8..4), 0..300)) {
            let dtype = TYPES[kind];
            let width = dtype.bytes();
            let bytes = |values: Vec<u32>| values.iter().flat_map(|v| v.to_le_bytes()[..width].to_vec()).collect::<Vec<u8>>();
            let base = bytes(pairs.iter().map(|p| p.0).collect());
            // Unchanged, changed a little, changed at will.
            let target = bytes(pairs.iter().map(|&(a, b, how)| match how { 0 => a, 1 => a ^ (b & 3), _ => b }).collect());
            let streams = encode_difference(dtype, &base, &target).unwrap();
            prop_assert_eq!(streams.len(), usize::from(!base.is_empty()));
            for stream in streams {
                let mut found = vec![0; base.len()];
                decode_difference(dtype, &base, &stream, &mut found).unwrap();
                prop_assert_eq!(&found, &target);
                if stream.len() > 4 {
                    prop_assert!(decode_difference(dtype, &base, &stream[..stream.len() - 2], &mut found).is_err());
                }
            }
        }

        #[test]
        fn damaged_streams_end(stream in prop::collection::vec(any::<u8>(), 0..200), base in prop::collection::vec(any::<u8>(), 0..200)) {
            let base = &base[..base.len() / 4 * 4];
            for dtype in TYPES {
                let _ = decode_difference(dtype, base, &stream, &mut vec![0; base.len()]);
            }
        }
    }

    /// Replaced rows cost what they cost without the base, changed ones the entropy of the change.
    #[test]
    fn replaced_rows_are_coded_without_the_base() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut gaussian = || {
            let mut random = || (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
            ((0..12).map(|_| random()).sum::<f32>() - 6.0) * 0.02
        };
        let base: Vec<f32> = (0..1 << 18).map(|_| gaussian()).collect();
        let replaced = |n: usize| n / 4096 % 2 == 1;
        let target: Vec<f32> =
            base.iter().enumerate().map(|(n, &b)| if replaced(n) { gaussian() } else { b }).collect();
        for dtype in TYPES {
            let bytes = |values: &[f32]| -> Vec<u8> {
                values.iter().flat_map(|&v| dtype.pattern_of(v).to_le_bytes()[..dtype.bytes()].to_vec()).collect()
            };
            let coded: usize =
                encode_difference(dtype, &bytes(&base), &bytes(&target)).unwrap().iter().map(Vec::len).sum();
            let bits = coded as f64 * 8.0 / (1 << 17) as f64;
            // Sign, fraction, and the entropy of a normal variable's exponent, 2.6 bits.
            let alone = f64::from(fraction(dtype)) + 3.6;
            assert!(bits < alone + 0.1, "{dtype:?}: {bits} bits for each replaced element, alone {alone}");
        }
    }

    #[test]
    fn a_sparse_change_costs_its_entropy() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut random = || (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
        let mut gaussian = || (0..12).map(|_| random()).sum::<f32>() - 6.0;
        let base: Vec<f32> = (0..400_000).map(|_| gaussian() * 0.02).collect();
        let target: Vec<f32> = base
            .iter()
            .enumerate()
            .map(|(n, &b)| if n % 37 == 0 { b + gaussian() * 1e-3 * b.abs() * 9.0 } else { b })
            .collect();
        let bytes = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|&v| (Dtype::Bf16.pattern_of(v) as u16).to_le_bytes()).collect()
        };
        let (base, target) = (bytes(&base), bytes(&target));
        let coded: usize = encode_difference(Dtype::Bf16, &base, &target).unwrap().iter().map(Vec::len).sum();
        let entropy = difference_entropy(Dtype::Bf16, &base, &target).unwrap();
        let (coded, entropy) = (coded as f64 * 8.0 / 400_000.0, entropy / 400_000.0);
        assert!(entropy > 0.1 && coded < entropy + 0.02, "{coded} bits a weight, entropy {entropy}");
    }
}
