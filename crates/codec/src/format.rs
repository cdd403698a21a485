//! Number formats of tiles and of whole tensors.

use crate::error::{CodecError, Result};

/// Stored element type of the original tensor; decoding gives exactly this type back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Bits of the fraction, and therefore position of the exponent field.
    const fn fraction_bits(self) -> u32 {
        match self {
            Self::Bf16 => 7,
            Self::F16 => 10,
            Self::F32 => 23,
        }
    }

    const fn exponent_bits(self) -> u32 {
        match self {
            Self::Bf16 | Self::F32 => 8,
            Self::F16 => 5,
        }
    }

    /// Bits of sign and fraction: what a lossless tile stores without modelling.
    pub const fn raw_bits(self) -> u32 {
        self.fraction_bits() + 1
    }

    /// Splits a bit pattern into exponent and (sign, fraction).
    pub const fn split(self, pattern: u32) -> (u8, u32) {
        let fraction = self.fraction_bits();
        let exponent = (pattern >> fraction) & ((1 << self.exponent_bits()) - 1);
        let sign = pattern >> (fraction + self.exponent_bits());
        (exponent as u8, (sign << fraction) | (pattern & ((1 << fraction) - 1)))
    }

    /// Inverse of [`Dtype::split`].
    pub const fn join(self, exponent: u8, rest: u32) -> u32 {
        let fraction = self.fraction_bits();
        let sign = rest >> fraction;
        let exponent = exponent as u32 & ((1 << self.exponent_bits()) - 1);
        (sign << (fraction + self.exponent_bits())) | (exponent << fraction) | (rest & ((1 << fraction) - 1))
    }

    /// Bit pattern of `value` rounded to nearest even.
    pub fn pattern_of(self, value: f32) -> u32 {
        match self {
            Self::Bf16 => half::bf16::from_f32(value).to_bits() as u32,
            Self::F16 => half::f16::from_f32(value).to_bits() as u32,
            Self::F32 => value.to_bits(),
        }
    }

    /// Value of a bit pattern; exact.
    pub fn value_of(self, pattern: u32) -> f32 {
        match self {
            Self::Bf16 => half::bf16::from_bits(pattern as u16).to_f32(),
            Self::F16 => half::f16::from_bits(pattern as u16).to_f32(),
            Self::F32 => f32::from_bits(pattern),
        }
    }

    pub(crate) fn from_code(code: u8) -> Result<Self> {
        match code {
            0 => Ok(Self::Bf16),
            1 => Ok(Self::F16),
            2 => Ok(Self::F32),
            _ => Err(CodecError::Field { field: "dtype", found: code.into(), expected: "0, 1 or 2" }),
        }
    }
}

/// What the samples of a tile are. A format is a range, not a rate: at equal step INT4 and INT8
/// levels cost the same coded bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Format {
    /// Levels -8..=7 times the step.
    Int4 = 0,
    /// Levels -127..=127 times the step.
    Int8 = 1,
    /// FP8 E4M3 codes (OCP 8-bit floating point, 2023) times the step.
    Fp8 = 2,
    /// The original bit patterns, exponents through a codebook shared by the tensor.
    Lossless = 3,
}

impl Format {
    /// All formats, in order of their code.
    pub const ALL: [Self; 4] = [Self::Int4, Self::Int8, Self::Fp8, Self::Lossless];

    /// Name in configurations, tables and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Lossless => "lossless",
        }
    }

    /// Format of a code 0..=3.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Int4),
            1 => Some(Self::Int8),
            2 => Some(Self::Fp8),
            3 => Some(Self::Lossless),
            _ => None,
        }
    }

    /// Smallest and largest level; `None` where samples are codes or patterns.
    pub const fn level_range(self) -> Option<(i32, i32)> {
        match self {
            Self::Int4 => Some((-8, 7)),
            Self::Int8 => Some((-127, 127)),
            Self::Fp8 | Self::Lossless => None,
        }
    }

    /// Bits of one sample once decoded into a runtime's memory.
    pub const fn resident_bits(self, dtype: Dtype) -> f64 {
        match self {
            Self::Int4 => 4.0,
            Self::Int8 | Self::Fp8 => 8.0,
            Self::Lossless => (dtype.bytes() * 8) as f64,
        }
    }
}
