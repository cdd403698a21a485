//! Element types of tensors and number formats of tiles.

use crate::minifloat::Minifloat;

/// Element type of the original tensor; decoding returns exactly this type.
///
/// The bit pattern of a floating-point element is split into a *prefix* (exponent and leading bits of the fraction),
/// which is entropy-coded, and *raw bits* (sign and the other bits of the fraction).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dtype {
    /// bfloat16.
    Bf16 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// IEEE single precision.
    F32 = 2,
    /// OCP FP8 E4M3; lossless only.
    E4M3 = 3,
    /// OCP FP8 E5M2; lossless only.
    E5M2 = 4,
    /// Bytes of any meaning; lossless only.
    Byte = 5,
    /// Four-bit values, the lower half of a byte first; lossless only.
    Nibble = 6,
}

impl Dtype {
    /// All types, in order of their code.
    pub const ALL: [Self; 7] = [Self::Bf16, Self::F16, Self::F32, Self::E4M3, Self::E5M2, Self::Byte, Self::Nibble];

    /// Bits of one element.
    pub const fn bits(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 16,
            Self::F32 => 32,
            Self::E4M3 | Self::E5M2 | Self::Byte => 8,
            Self::Nibble => 4,
        }
    }

    /// Bytes of one element, rounded up.
    pub const fn bytes(self) -> usize {
        self.bits().div_ceil(8)
    }

    /// True for the types of weights, which lossy tiles may decode to: bf16, f16, f32.
    pub const fn is_weight(self) -> bool {
        matches!(self, Self::Bf16 | Self::F16 | Self::F32)
    }

    /// Layout of a floating-point bit pattern; `None` where elements are plain symbols.
    pub(crate) const fn layout(self) -> Option<Layout> {
        let (fraction, bias, leading) = match self {
            Self::Bf16 => (7, 127, 3),
            Self::F16 => (10, 15, 3),
            Self::F32 => (23, 127, 3),
            Self::E4M3 => (3, 7, 3),
            Self::E5M2 => (2, 15, 2),
            Self::Byte | Self::Nibble => return None,
        };
        Some(Layout { fraction, bias, leading })
    }

    /// Raw bits of an element: sign and low bits of the fraction.
    pub const fn raw_bits(self) -> u32 {
        match self.layout() {
            Some(l) => l.fraction - l.leading + 1,
            None => 0,
        }
    }

    /// Bits of a float prefix.
    pub const fn prefix_bits(self) -> u32 {
        self.bits() as u32 - self.raw_bits()
    }

    /// Splits a bit pattern into prefix and raw bits; the sign is the highest raw bit.
    #[inline]
    pub const fn split(self, pattern: u32) -> (u32, u32) {
        let raw = self.raw_bits();
        if raw == 0 {
            return (pattern, 0);
        }
        let prefix = (pattern >> (raw - 1)) & ((1 << self.prefix_bits()) - 1);
        let sign = pattern >> (self.bits() - 1);
        (prefix, sign << (raw - 1) | pattern & ((1 << (raw - 1)) - 1))
    }

    /// Inverse of [`Dtype::split`].
    #[inline]
    pub const fn join(self, prefix: u32, rest: u32) -> u32 {
        let raw = self.raw_bits();
        if raw == 0 {
            return prefix;
        }
        (rest >> (raw - 1)) << (self.bits() - 1) | prefix << (raw - 1) | rest & ((1 << (raw - 1)) - 1)
    }

    /// Bit pattern of `value`, rounded to nearest even; for types of weights.
    #[inline]
    pub fn pattern_of(self, value: f32) -> u32 {
        match self {
            Self::Bf16 => half::bf16::from_f32(value).to_bits() as u32,
            Self::F16 => half::f16::from_f32(value).to_bits() as u32,
            _ => value.to_bits(),
        }
    }

    /// Value of a bit pattern, exact. Bytes and nibbles have the value of their number.
    #[inline]
    pub fn value_of(self, pattern: u32) -> f32 {
        match self {
            Self::Bf16 => f32::from_bits(pattern << 16),
            Self::F16 => half::f16::from_bits(pattern as u16).to_f32(),
            Self::F32 => f32::from_bits(pattern),
            Self::E4M3 => Minifloat::E4M3.decode(pattern as u8),
            Self::E5M2 => Minifloat::E5M2.decode(pattern as u8),
            Self::Byte | Self::Nibble => pattern as f32,
        }
    }

    /// Type of a code 0..=6.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// Widths of the parts of a floating-point bit pattern.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub fraction: u32,
    pub bias: i32,
    /// Leading bits of the fraction that belong to the prefix, so that an octave has `1 << leading` prefixes.
    pub leading: u32,
}

/// Number format of a tile's samples. A format is a range, not a rate: at equal step, INT4 and INT8 levels cost the
/// same coded bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Format {
    /// Levels -8..=7 times the step.
    Int4 = 0,
    /// Levels -127..=127 times the step.
    #[default]
    Int8 = 1,
    /// FP8 E4M3 codes (OCP 8-bit floating point, 2023) times the step.
    Fp8 = 2,
    /// The original bit patterns.
    Lossless = 3,
    /// FP8 E5M2 codes times the step.
    Fp8E5M2 = 4,
    /// Levels -2..=1; experimental.
    Int2 = 5,
    /// Levels -4..=3; experimental.
    Int3 = 6,
    /// FP4 E2M1 codes (OCP microscaling formats, 2023) times the step; experimental.
    Fp4 = 7,
}

impl Format {
    /// All formats, in order of their code.
    pub const ALL: [Self; 8] =
        [Self::Int4, Self::Int8, Self::Fp8, Self::Lossless, Self::Fp8E5M2, Self::Int2, Self::Int3, Self::Fp4];

    /// Name in configurations, tables and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Lossless => "lossless",
            Self::Fp8E5M2 => "fp8-e5m2",
            Self::Int2 => "int2",
            Self::Int3 => "int3",
            Self::Fp4 => "fp4",
        }
    }

    /// True for formats that exist to be measured, not to be shipped.
    pub const fn is_experimental(self) -> bool {
        matches!(self, Self::Int2 | Self::Int3 | Self::Fp4)
    }

    /// Format of a code 0..=7.
    pub const fn from_code(code: u8) -> Option<Self> {
        if (code as usize) < Self::ALL.len() { Some(Self::ALL[code as usize]) } else { None }
    }

    /// Smallest and largest level; `None` where samples are codes or patterns.
    pub const fn level_range(self) -> Option<(i32, i32)> {
        match self {
            Self::Int4 => Some((-8, 7)),
            Self::Int8 => Some((-127, 127)),
            Self::Int2 => Some((-2, 1)),
            Self::Int3 => Some((-4, 3)),
            Self::Fp8 | Self::Fp8E5M2 | Self::Fp4 | Self::Lossless => None,
        }
    }

    /// Small floating-point type of the samples; `None` for integers and bit patterns.
    pub const fn minifloat(self) -> Option<Minifloat> {
        match self {
            Self::Fp8 => Some(Minifloat::E4M3),
            Self::Fp8E5M2 => Some(Minifloat::E5M2),
            Self::Fp4 => Some(Minifloat::E2M1),
            _ => None,
        }
    }

    /// Bits of one sample in the memory of a runtime that keeps tiles packed.
    pub const fn resident_bits(self, dtype: Dtype) -> f64 {
        match self {
            Self::Int2 => 2.0,
            Self::Int3 => 3.0,
            Self::Int4 | Self::Fp4 => 4.0,
            Self::Int8 | Self::Fp8 | Self::Fp8E5M2 => 8.0,
            Self::Lossless => dtype.bits() as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_survive_being_split() {
        for dtype in Dtype::ALL {
            for n in 0..100_000u32 {
                let pattern = n.wrapping_mul(0x9e37_79b1) >> (32 - dtype.bits());
                let (prefix, rest) = dtype.split(pattern);
                assert!(prefix < 1 << dtype.prefix_bits() && u64::from(rest) < 1 << dtype.raw_bits());
                assert_eq!(dtype.join(prefix, rest), pattern, "{dtype:?}");
            }
        }
    }
}
