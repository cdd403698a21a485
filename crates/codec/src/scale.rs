//! The logarithmic scale grid: every scale is 2^(k/8) (section 9.1 of `docs/BITSTREAM.md`).
//!
//! `MANTISSA[k mod 8]` holds 2^((k mod 8)/8) as a 16-bit integer with 15 fraction bits. Products
//! of a level (8 bits) and a mantissa (16 bits) are exact in an f32's 24-bit significand, and the
//! power of two is exact within the limits below, so that plain f32 arithmetic gives the same
//! value on every machine and no math library is involved.

/// round(2^15 * 2^(i/8)).
pub const MANTISSA: [u16; 8] = [32768, 35734, 38968, 42495, 46341, 50535, 55109, 60097];

/// Largest |k| of a complete scale, in eighths of an octave.
pub const MAX_INDEX: i32 = 640;

/// Eighths of an octave in one unit of the tile, row and column indices (a quarter octave).
pub const UNIT: i32 = 2;

/// Logarithm of a standard deviation in quarter octaves: sigma = 2^(index / 4) in the unit that its user names.
pub type SigmaIndex = i32;

/// Exact value of the scale 2^(k/8) as the decoder uses it, |k| at most [`MAX_INDEX`]; indices
/// beyond are cut.
#[inline]
pub fn scale(k: i32) -> f32 {
    let k = k.clamp(-MAX_INDEX, MAX_INDEX);
    f32::from(MANTISSA[(k & 7) as usize]) * power_of_two((k >> 3) - 15)
}

/// Index of the scale nearest to `value` on the grid, clamped to the limits; encoder only.
pub fn nearest_index(value: f64) -> i32 {
    let k = (value.max(f64::MIN_POSITIVE).log2() * 8.0).round();
    (k as i32).clamp(-MAX_INDEX, MAX_INDEX)
}

/// 2^e for e in -126..=127.
fn power_of_two(e: i32) -> f32 {
    f32::from_bits(((e + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_within_16_bits_of_the_exact_power() {
        for k in -MAX_INDEX..=MAX_INDEX {
            let exact = (f64::from(k) / 8.0).exp2();
            let error = (f64::from(scale(k)) / exact - 1.0).abs();
            assert!(error < 1.0 / 65536.0, "k {k}: relative error {error}");
            assert_eq!(nearest_index(exact), k);
        }
    }
}
