//! Kernels for any machine: the definitions that the others equal.

use crate::constants::MAX_LANES;

/// Bytes that the wide decoders read at most for a pair of columns: 64 words, and half a vector beyond them.
pub const READ_AHEAD: usize = 2 * MAX_LANES + 32;

/// Fields of `bits` (at most 7) bits, one in each byte, side by side: undoes [`expand_bits`].
#[inline(always)]
pub fn gather_bits(word: u64, bits: u32) -> u64 {
    let low = |n: u32| (1u64 << n) - 1;
    let field = low(bits) * 0x0001_0001_0001_0001;
    let word = word & field | (word >> 8 & field) << bits;
    let pair = low(2 * bits) | low(2 * bits) << 32;
    let word = word & pair | (word >> 16 & pair) << (2 * bits);
    word & low(4 * bits) | (word >> 32 & low(4 * bits)) << (4 * bits)
}

/// Bytes of eight fields of `bits` (at most 7) bits: three halvings of what shares a lane.
#[inline(always)]
pub fn expand_bits(word: u64, bits: u32) -> u64 {
    let low = |n: u32| (1u64 << n) - 1;
    let word = word & low(8 * bits);
    let word = word & low(4 * bits) | (word >> (4 * bits)) << 32;
    let pair = low(2 * bits) | low(2 * bits) << 32;
    let word = word & pair | (word >> (2 * bits) & pair) << 16;
    let field = low(bits) * 0x0001_0001_0001_0001;
    word & field | (word >> bits & field) << 8
}

/// Expands fields of `bits` bits to bytes, as many eights as `fields` holds; `bytes` go eight beyond them.
#[inline(always)]
pub fn expand_fields(bytes: &[u8], bits: u32, fields: &mut [u8]) {
    for (k, eight) in fields.chunks_exact_mut(8).enumerate() {
        let word = u64::from_le_bytes(bytes[k * bits as usize..][..8].try_into().expect("eight bytes"));
        eight.copy_from_slice(&expand_bits(word, bits).to_le_bytes());
    }
}

/// Transposes rows of columns.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub fn transpose<const FROM: usize, const TO: usize>(from: &[[u16; TO]; FROM]) -> [[u16; FROM]; TO] {
    std::array::from_fn(|j| std::array::from_fn(|i| from[i][j]))
}
