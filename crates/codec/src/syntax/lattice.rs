//! Syntax of a lattice (section 9.5 of `docs/BITSTREAM.md`): elements that a quantized checkpoint was decoded to. A group of
//! elements is a scale, and where there is one an offset, and symbols of a codebook; elements for which this does not hold are exceptions.

use std::ops::Range;

use crate::entropy::models::{Coder, IntModel};
use crate::error::{CodecError, Result};
use crate::format::Dtype;
use crate::minifloat::Minifloat;

/// What the symbols of a lattice stand for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Book {
    /// Symbol k is k - 128, but the symbol 0 minus zero.
    #[default]
    Integers,
    /// Codes of OCP FP8 E4M3.
    E4M3,
    /// Codes of OCP FP8 E5M2.
    E5M2,
}

impl Book {
    const ALL: [Self; 3] = [Self::Integers, Self::E4M3, Self::E5M2];

    /// Values of all symbols.
    pub fn values(&self) -> [f32; 256] {
        match self {
            Self::Integers => std::array::from_fn(|k| if k == 0 { -0.0 } else { k as f32 - 128.0 }),
            Self::E4M3 => std::array::from_fn(|k| Minifloat::E4M3.decode(k as u8)),
            Self::E5M2 => std::array::from_fn(|k| Minifloat::E5M2.decode(k as u8)),
        }
    }

    fn code<C: Coder>(&mut self, coder: &mut C) -> Result<()> {
        let book = coder.raw(2, *self as u32);
        let wrong = CodecError::Field { field: "codebook of a lattice", found: book.into(), expected: "0..=2" };
        *self = Self::ALL.get(book as usize).copied().ok_or(wrong)?;
        Ok(())
    }
}

/// A lattice: element = scale * value + offset in binary32, each rounded, then rounded to `via` and to the tensor's type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lattice {
    /// What symbols stand for.
    pub book: Book,
    /// Rows and columns of a group, 1 to 2^24.
    pub group: [usize; 2],
    /// Bits of the fraction of a scale, at most 23.
    pub scale_bits: u32,
    /// The same of an offset; `None` without offsets.
    pub offset_bits: Option<u32>,
    /// Type of weights that products are rounded to before the tensor's.
    pub via: Via,
}

/// A type of weights, binary32 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via(pub Dtype);

impl Default for Via {
    fn default() -> Self {
        Self(Dtype::F32)
    }
}

/// What a slice has besides its symbols.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Groups {
    /// Scale and offset of each group that the slice meets, row of groups by row of groups.
    pub scales: Vec<(f32, f32)>,
    /// Elements that are none of the lattice: place in the slice, row-major, and bit pattern. In order of places.
    pub exceptions: Vec<(u32, u32)>,
}

impl Lattice {
    /// Groups side by side in a tensor of `cols` columns.
    pub fn across(&self, cols: usize) -> usize {
        cols.div_ceil(self.group[1].max(1))
    }

    /// Rows of groups that `rows` meet.
    pub fn down(&self, rows: &Range<usize>) -> Range<usize> {
        let side = self.group[0].max(1);
        rows.start / side..rows.end.div_ceil(side)
    }

    pub(crate) fn code<C: Coder>(&mut self, coder: &mut C) -> Result<()> {
        self.book.code(coder)?;
        for side in &mut self.group {
            *side = coder.raw_wide(24, (*side as u32).wrapping_sub(1) & 0xff_ffff) as usize + 1;
        }
        let bits = |coder: &mut C, bits: u32| match coder.raw(5, bits) {
            bits @ 0..=23 => Ok(bits),
            found => {
                let expected = "at most 23";
                Err(CodecError::Field { field: "bits of a lattice's scale", found: found.into(), expected })
            }
        };
        let via = coder.raw(2, self.via.0 as u32);
        let wrong = CodecError::Field { field: "type of a lattice", found: via.into(), expected: "0..=2" };
        self.via = Via([Dtype::Bf16, Dtype::F16, Dtype::F32].get(via as usize).copied().ok_or(wrong)?);
        self.scale_bits = bits(coder, self.scale_bits)?;
        self.offset_bits = match coder.raw(1, self.offset_bits.is_some().into()) {
            0 => None,
            _ => Some(bits(coder, self.offset_bits.unwrap_or(0))?),
        };
        Ok(())
    }

    /// Bit pattern of an element with this value in binary32.
    #[inline(always)]
    pub(crate) fn pattern(&self, dtype: Dtype, value: f32) -> u32 {
        let via = self.via.0;
        dtype.pattern_of(if via == Dtype::F32 { value } else { via.value_of(via.pattern_of(value)) })
    }

    /// Codes scales, offsets and exceptions of a slice of `rows` of a tensor of type `dtype`; a decoder fills `groups`.
    ///
    /// # Errors
    /// Exceptions outside of the slice.
    pub(crate) fn code_groups<C: Coder>(
        &self,
        coder: &mut C,
        groups: &mut Groups,
        (dtype, rows, cols): (Dtype, Range<usize>, usize),
    ) -> Result<()> {
        groups.scales.resize(self.down(&rows).len() * self.across(cols), (0.0, 0.0));
        let [mut scales, mut offsets] = [Floats::default(), Floats::default()];
        for (scale, offset) in &mut groups.scales {
            *scale = scales.code(coder, self.scale_bits, *scale);
            if let Some(bits) = self.offset_bits {
                let negative = coder.raw(1, offset.is_sign_negative().into()) == 1;
                let size = offsets.code(coder, bits, offset.abs());
                *offset = if negative { -size } else { size };
            }
            if coder.exhausted() {
                break;
            }
        }
        let weights = (rows.len() * cols) as u64;
        let count = coder.exp_golomb(groups.exceptions.len() as u32);
        let mut next = 0u64;
        for n in 0..count as usize {
            let (place, pattern) = groups.exceptions.get(n).copied().unwrap_or_default();
            let place = next + u64::from(coder.exp_golomb((u64::from(place).wrapping_sub(next)) as u32 & 0x7fff_ffff));
            if place >= weights || coder.exhausted() {
                let expected = "places in the slice";
                return Err(CodecError::Field { field: "exception of a lattice", found: place as i64, expected });
            }
            let pattern = coder.raw_wide(dtype.bits() as u32, pattern);
            match groups.exceptions.get_mut(n) {
                Some(known) => *known = (place as u32, pattern),
                None => groups.exceptions.push((place as u32, pattern)),
            }
            next = place + 1;
        }
        Ok(())
    }

    /// Bit patterns of a slice of `rows` from its symbols, row-major, as little-endian elements.
    pub(crate) fn write(&self, symbols: &[u8], groups: &Groups, plan: (Dtype, Range<usize>, usize), out: &mut [u8]) {
        let (dtype, rows, cols) = plan;
        match dtype {
            Dtype::Bf16 => self.write_as::<2>(symbols, groups, (rows, cols), out, |v| self.pattern(Dtype::Bf16, v)),
            Dtype::F16 => self.write_as::<2>(symbols, groups, (rows, cols), out, |v| self.pattern(Dtype::F16, v)),
            _ => self.write_as::<4>(symbols, groups, (rows, cols), out, |v| self.pattern(Dtype::F32, v)),
        }
    }

    #[inline(always)]
    fn write_as<const BYTES: usize>(
        &self,
        symbols: &[u8],
        groups: &Groups,
        (rows, cols): (Range<usize>, usize),
        out: &mut [u8],
        pattern: impl Fn(f32) -> u32,
    ) {
        let values = self.book.values();
        let (across, first) = (self.across(cols), self.down(&rows).start);
        let lines = symbols.chunks_exact(cols).zip(out.chunks_exact_mut(cols * BYTES));
        for (row, (line, out)) in rows.zip(lines) {
            let scales = &groups.scales[(row / self.group[0] - first) * across..][..across];
            let parts = line.chunks(self.group[1]).zip(out.chunks_mut(self.group[1] * BYTES));
            for ((symbols, out), &(scale, offset)) in parts.zip(scales) {
                for (&symbol, to) in symbols.iter().zip(out.as_chunks_mut::<BYTES>().0) {
                    let v = element(scale, values[usize::from(symbol)], self.offset_bits.map(|_| offset));
                    to.copy_from_slice(&pattern(v).to_le_bytes()[..BYTES]);
                }
            }
        }
        for &(place, pattern) in &groups.exceptions {
            out[place as usize * BYTES..][..BYTES].copy_from_slice(&pattern.to_le_bytes()[..BYTES]);
        }
    }
}

/// The value in binary32 of an element, before it is rounded to its type. Without offsets zeros keep their signs.
#[inline(always)]
pub(crate) fn element(scale: f32, value: f32, offset: Option<f32>) -> f32 {
    match offset {
        Some(offset) => scale * value + offset,
        None => scale * value,
    }
}

/// Floats that are not negative, with fractions of a known length: exponents as differences from the one before.
#[derive(Default)]
struct Floats {
    exponent: i32,
    model: IntModel,
}

impl Floats {
    fn code<C: Coder>(&mut self, coder: &mut C, bits: u32, value: f32) -> f32 {
        let pattern = value.to_bits();
        // Finite, whatever is read.
        let exponent = self.exponent + self.model.code(coder, (pattern >> 23 & 255) as i32 - self.exponent);
        self.exponent = exponent.clamp(0, 254);
        let fraction = coder.raw_wide(bits, (pattern & 0x7f_ffff) >> (23 - bits));
        f32::from_bits((self.exponent as u32) << 23 | fraction << (23 - bits))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::adaptive_rans::{Decoder, Encoder};

    proptest! {
        #[test]
        fn groups_are_read_back(
            scales in prop::collection::vec((0u32..0x7f80_0000, any::<u32>()), 12),
            gaps in prop::collection::vec((0u32..40, any::<u16>()), 0..12),
            bits in 0u32..=23,
            offset_bits in prop::option::of(0u32..=23),
        ) {
            let cut = |bits: u32, pattern: u32| f32::from_bits(pattern & !((1u32 << (23 - bits)) - 1));
            let mut lattice = Lattice {
                book: Book::E5M2, group: [16, 20], scale_bits: bits, offset_bits,
                via: Via(Dtype::F16),
            };
            let finite = |pattern: u32| if pattern >> 23 & 255 == 255 { pattern & !(1 << 23) } else { pattern };
            let scale = |&(scale, offset): &(u32, u32)| {
                (cut(bits, scale), offset_bits.map_or(0.0, |bits| cut(bits, finite(offset))))
            };
            let mut places = 0;
            let exceptions = gaps.iter().map(|&(gap, pattern)| {
                places += gap + 1;
                (places - 1, u32::from(pattern))
            });
            // Rows 8 to 40 meet three rows of groups, of four each.
            let mut groups = Groups { exceptions: exceptions.collect(), scales: scales.iter().map(scale).collect() };
            let shape = (Dtype::F16, 8..40, 70);
            let mut encoder = Encoder::default();
            lattice.code(&mut encoder).unwrap();
            lattice.code_groups(&mut encoder, &mut groups, shape.clone()).unwrap();
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let (mut read, mut found) = (Lattice::default(), Groups::default());
            read.code(&mut decoder).unwrap();
            read.code_groups(&mut decoder, &mut found, shape).unwrap();
            prop_assert!(decoder.finish());
            prop_assert_eq!((read, found), (lattice, groups));
        }
    }
}
