//! FP8 E4M3 as in the OCP 8-bit floating point specification (2023): bias 7, no infinities,
//! largest value 448; `0x7f` and `0xff` are not numbers and never written.

/// Largest finite magnitude.
pub const MAX: f32 = 448.0;

/// Value of a code; the two not-a-number codes give zero, which the encoder never writes.
pub fn decode(code: u8) -> f32 {
    let exponent = i32::from(code >> 3 & 15);
    let mantissa = f32::from(code & 7);
    if code & 0x7f == 0x7f {
        return 0.0;
    }
    let magnitude = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Nearest code (ties to even), saturating at [`MAX`].
pub fn encode(value: f32) -> u8 {
    let sign = if value < 0.0 { 0x80 } else { 0 };
    let magnitude = value.abs().min(MAX);
    // Exponent of the quantum: 2^-9 for subnormals, three below the leading bit otherwise.
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    let quantum = exponent.max(-6) - 3;
    let steps = (magnitude * 2f32.powi(-quantum)).round_ties_even() as u32;
    // Rounding up to 16 steps carries into the exponent, which the addition does by itself.
    let code = (((quantum + 9) as u32) << 3) + steps;
    sign | (code.min(0x7e) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_and_every_value_rounds_to_the_nearest() {
        let values: Vec<(u8, f32)> = (0..=0x7e).map(|c| (c, decode(c))).collect();
        for &(code, value) in &values {
            assert_eq!(encode(value), code);
            if code > 0 {
                assert_eq!(encode(-value), code | 0x80);
            }
        }
        for i in 0..100_000 {
            let x = i as f32 * 0.0051;
            let best = values.iter().map(|(_, v)| (v - x).abs()).fold(f32::MAX, f32::min);
            assert_eq!((decode(encode(x)) - x).abs(), best, "{x}");
        }
    }
}
