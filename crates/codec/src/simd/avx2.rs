//! Kernels for AVX2, BMI2 and SSE2.

use std::arch::x86_64::*;

use super::generic::READ_AHEAD;
use crate::constants::{BAND, LANE_LOWER, LANE_PROB_BITS, LANE_PROB_ONE, MAX_LANES};

/// Deposits fields of `bits` in bytes.
#[target_feature(enable = "bmi2")]
pub fn expand_fields(bytes: &[u8], bits: u32, fields: &mut [u8]) {
    let mask = 0x0101_0101_0101_0101 * ((1 << bits) - 1);
    for (k, eight) in fields.chunks_exact_mut(8).enumerate() {
        let word = u64::from_le_bytes(bytes[k * bits as usize..][..8].try_into().expect("eight bytes"));
        eight.copy_from_slice(&_pdep_u64(word, mask).to_le_bytes());
    }
}

/// Transposes 8x8 elements.
///
/// # Safety
/// Eight elements can be read from `from` and written to `to` for 0..8.
#[inline(always)]
pub unsafe fn transpose8(from: impl Fn(usize) -> *const u16, mut to: impl FnMut(usize) -> *mut u16) {
    // SAFETY: as the caller promises.
    unsafe {
        let load = |n: usize| _mm_loadu_si128(from(n).cast());
        let a: [__m128i; 8] = std::array::from_fn(load);
        let mut b = [_mm_setzero_si128(); 8];
        for n in 0..4 {
            b[2 * n] = _mm_unpacklo_epi16(a[2 * n], a[2 * n + 1]);
            b[2 * n + 1] = _mm_unpackhi_epi16(a[2 * n], a[2 * n + 1]);
        }
        let c = [
            _mm_unpacklo_epi32(b[0], b[2]),
            _mm_unpackhi_epi32(b[0], b[2]),
            _mm_unpacklo_epi32(b[1], b[3]),
            _mm_unpackhi_epi32(b[1], b[3]),
            _mm_unpacklo_epi32(b[4], b[6]),
            _mm_unpackhi_epi32(b[4], b[6]),
            _mm_unpacklo_epi32(b[5], b[7]),
            _mm_unpackhi_epi32(b[5], b[7]),
        ];
        for n in 0..4 {
            let (low, high) = (_mm_unpacklo_epi64(c[n], c[n + 4]), _mm_unpackhi_epi64(c[n], c[n + 4]));
            _mm_storeu_si128(to(2 * n).cast(), low);
            _mm_storeu_si128(to(2 * n + 1).cast(), high);
        }
    }
}

/// For each mask of eight lanes, which of the next words every lane takes.
static EXPAND: [[i32; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut word) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][lane] = word;
                word += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// # Safety
/// Needs AVX2. All `offsets` are at most `slots.len() - 4096`; `offsets` and `symbols` are of one length, or `EVEN` and
/// `offsets` is one.
#[target_feature(enable = "avx2,popcnt")]
pub unsafe fn decode_columns<const EVEN: bool>(
    states: &mut [u32; MAX_LANES],
    words: &mut &[u8],
    slots: &[u32],
    offsets: &[[u32; BAND]],
    symbols: &mut [[u8; BAND]],
) -> usize {
    // SAFETY: loads and stores are inside the arrays they name; gathers as the caller promises; a column reads at most
    // READ_AHEAD bytes of `words`, which is checked before.
    unsafe {
        let load = |n: usize| _mm256_loadu_si256(states.as_ptr().add(8 * n).cast());
        let mut x: [__m256i; 8] = std::array::from_fn(load);
        let (slot_mask, freq_mask) = (_mm256_set1_epi32(LANE_PROB_ONE as i32 - 1), _mm256_set1_epi32(0xfff));
        let (one, top) = (_mm256_set1_epi32(1), _mm256_set1_epi32(LANE_LOWER as i32 - 1));
        let mut at = 0;
        let mut done = 0;
        while done + 2 <= symbols.len() && words.len() - at >= READ_AHEAD {
            for pair in 0..2 {
                let col = done + pair;
                let mut entries = [_mm256_setzero_si256(); 4];
                for (n, x) in x[4 * pair..4 * pair + 4].iter_mut().enumerate() {
                    let offset = _mm256_loadu_si256(offsets[if EVEN { 0 } else { col }].as_ptr().add(8 * n).cast());
                    let index = _mm256_add_epi32(offset, _mm256_and_si256(*x, slot_mask));
                    let entry = _mm256_i32gather_epi32::<4>(slots.as_ptr().cast(), index);
                    let freq = _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32::<8>(entry), freq_mask), one);
                    let next = _mm256_add_epi32(
                        _mm256_mullo_epi32(freq, _mm256_srli_epi32::<{ LANE_PROB_BITS as i32 }>(*x)),
                        _mm256_srli_epi32::<20>(entry),
                    );
                    // Unsigned: next <= LANE_LOWER - 1.
                    let short = _mm256_cmpeq_epi32(_mm256_min_epu32(next, top), next);
                    let mask = _mm256_movemask_ps(_mm256_castsi256_ps(short)) as usize;
                    let fresh = _mm256_cvtepu16_epi32(_mm_loadu_si128(words.as_ptr().add(at).cast()));
                    let order = _mm256_loadu_si256(EXPAND[mask & 255].as_ptr().cast());
                    let fresh = _mm256_permutevar8x32_epi32(fresh, order);
                    let longer = _mm256_or_si256(_mm256_slli_epi32::<16>(next), fresh);
                    *x = _mm256_blendv_epi8(next, longer, short);
                    at += 2 * mask.count_ones() as usize;
                    entries[n] = _mm256_and_si256(entry, _mm256_set1_epi32(0xff));
                }
                let low = _mm256_packus_epi32(entries[0], entries[1]);
                let high = _mm256_packus_epi32(entries[2], entries[3]);
                // Packing works in halves of a vector; the permutation restores the lanes' order.
                let bytes = _mm256_packus_epi16(low, high);
                let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                _mm256_storeu_si256(symbols[col].as_mut_ptr().cast(), bytes);
            }
            done += 2;
        }
        for (n, x) in x.into_iter().enumerate() {
            _mm256_storeu_si256(states.as_mut_ptr().add(8 * n).cast(), x);
        }
        *words = &words[at..];
        done
    }
}
