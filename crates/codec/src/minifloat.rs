//! Small floating-point types: FP8 E4M3 and E5M2 (OCP 8-bit floating point, 2023) and FP4 E2M1
//! (OCP microscaling formats, 2023). Codes that are not finite are never written in lossy tiles.

/// A type of a sign, `exponent` bits and `fraction` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minifloat {
    exponent: u32,
    fraction: u32,
    /// Code of the largest finite magnitude.
    largest: u8,
}

impl Minifloat {
    /// Bias 7, no infinities, largest value 448.
    pub const E4M3: Self = Self { exponent: 4, fraction: 3, largest: 0x7e };
    /// Bias 15, infinities, largest value 57344.
    pub const E5M2: Self = Self { exponent: 5, fraction: 2, largest: 0x7b };
    /// Bias 1, values 0, 0.5, 1, 1.5, 2, 3, 4, 6.
    pub const E2M1: Self = Self { exponent: 2, fraction: 1, largest: 7 };

    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// Bits of a code without its sign.
    pub const fn magnitude_bits(self) -> u32 {
        self.exponent + self.fraction
    }

    /// Bits of the fraction.
    pub const fn fraction_bits(self) -> u32 {
        self.fraction
    }

    /// Largest finite magnitude.
    pub fn max(self) -> f32 {
        self.decode(self.largest)
    }

    /// By how many eighths of an octave a step is lowered before codes are multiplied with it, so
    /// that the type's range in steps and an integer tile's are alike (28 steps for FP8, 6 for FP4)
    /// and the step indices of neighbouring tiles stay close.
    pub const fn scale_shift(self) -> i32 {
        match self.exponent {
            4 => 32,
            5 => 88,
            _ => 0,
        }
    }

    /// Value of a code; codes that are not finite give zero.
    pub fn decode(self, code: u8) -> f32 {
        let mask = (1u8 << self.magnitude_bits()) - 1;
        let magnitude = code & mask;
        if magnitude > self.largest {
            return 0.0;
        }
        let exponent = i32::from(magnitude >> self.fraction);
        let fraction = f32::from(magnitude & ((1 << self.fraction) - 1));
        let (whole, exponent) = if exponent == 0 { (0.0, 1) } else { ((1 << self.fraction) as f32, exponent) };
        let value = (whole + fraction) * exp2(exponent - self.bias() - self.fraction as i32);
        if code & (mask + 1) == 0 { value } else { -value }
    }

    /// Nearest code (ties to even), saturating at the largest finite value; a zero has no sign.
    pub fn encode(self, value: f32) -> u8 {
        let magnitude = value.abs().min(self.max());
        // Exponent of the quantum: that of subnormals, or `fraction` below the leading bit.
        let least = 1 - self.bias();
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(least);
        let quantum = exponent - self.fraction as i32;
        let steps = (magnitude * exp2(-quantum)).round_ties_even() as u32;
        // Rounding up to a power of two carries into the exponent, which the addition does by itself.
        let code = (((exponent - least) as u32) << self.fraction) + steps;
        let code = code.min(u32::from(self.largest)) as u8;
        if value < 0.0 && code > 0 { code | 1 << self.magnitude_bits() } else { code }
    }
}

/// 2^e for e in -126..=127.
fn exp2(e: i32) -> f32 {
    f32::from_bits(((e + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_and_every_value_rounds_to_the_nearest() {
        for (float, step) in [(Minifloat::E4M3, 0.0051), (Minifloat::E5M2, 0.63), (Minifloat::E2M1, 7e-5)] {
            let values: Vec<(u8, f32)> = (0..=float.largest).map(|c| (c, float.decode(c))).collect();
            for &(code, value) in &values {
                assert_eq!(float.encode(value), code);
                if code > 0 {
                    assert_eq!(float.encode(-value), code | 1 << float.magnitude_bits());
                }
            }
            for i in 0..100_000 {
                let x = i as f32 * step;
                let best = values.iter().map(|(_, v)| (v - x).abs()).fold(f32::MAX, f32::min);
                assert_eq!((float.decode(float.encode(x)) - x).abs(), best, "{float:?} {x}");
            }
        }
    }
}
