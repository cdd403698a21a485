//! Kernels for AVX-512.

use std::arch::x86_64::*;

use super::generic::READ_AHEAD;
use crate::constants::{BAND, LANE_LOWER, LANE_PROB_BITS, LANE_PROB_ONE, MAX_LANES};

/// # Safety
/// Needs AVX-512 F and BW. All `offsets` are at most `slots.len() - 4096`; `offsets` and `symbols`
/// are of one length, or `EVEN` and `offsets` is one.
#[target_feature(enable = "avx512f,avx512bw,popcnt")]
pub unsafe fn decode_columns<const EVEN: bool>(
    states: &mut [u32; MAX_LANES],
    words: &mut &[u8],
    slots: &[u32],
    offsets: &[[u32; BAND]],
    symbols: &mut [[u8; BAND]],
) -> usize {
    // SAFETY: loads and stores are inside the arrays they name; gathers as the caller promises;
    // a column reads at most READ_AHEAD bytes of `words`, which is checked before.
    unsafe {
        let load = |n: usize| _mm512_loadu_si512(states.as_ptr().add(16 * n).cast());
        let mut x = [load(0), load(1), load(2), load(3)];
        let (slot_mask, freq_mask) = (_mm512_set1_epi32(LANE_PROB_ONE as i32 - 1), _mm512_set1_epi32(0xfff));
        let (one, lower) = (_mm512_set1_epi32(1), _mm512_set1_epi32(LANE_LOWER as i32));
        let mut at = 0;
        let mut done = 0;
        while done + 2 <= symbols.len() && words.len() - at >= READ_AHEAD {
            for (n, x) in x.iter_mut().enumerate() {
                let (col, half) = (done + n / 2, 16 * (n % 2));
                let offset = _mm512_loadu_si512(offsets[if EVEN { 0 } else { col }].as_ptr().add(half).cast());
                let index = _mm512_add_epi32(offset, _mm512_and_si512(*x, slot_mask));
                let entry = _mm512_i32gather_epi32::<4>(index, slots.as_ptr().cast());
                let freq = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32::<8>(entry), freq_mask), one);
                let next = _mm512_add_epi32(
                    _mm512_mullo_epi32(freq, _mm512_srli_epi32::<LANE_PROB_BITS>(*x)),
                    _mm512_srli_epi32::<20>(entry),
                );
                let short = _mm512_cmplt_epu32_mask(next, lower);
                let fresh = _mm512_cvtepu16_epi32(_mm256_loadu_si256(words.as_ptr().add(at).cast()));
                let fresh = _mm512_maskz_expand_epi32(short, fresh);
                *x = _mm512_mask_or_epi32(next, short, _mm512_slli_epi32::<16>(next), fresh);
                at += 2 * short.count_ones() as usize;
                _mm_storeu_si128(symbols[col].as_mut_ptr().add(half).cast(), _mm512_cvtepi32_epi8(entry));
            }
            done += 2;
        }
        for (n, x) in x.into_iter().enumerate() {
            _mm512_storeu_si512(states.as_mut_ptr().add(16 * n).cast(), x);
        }
        *words = &words[at..];
        done
    }
}

/// The inverse of [`decode_columns`], backwards, with single-precision division: a quotient below
/// 2^20 is off by one at most, which the remainder shows.
///
/// # Safety
/// Needs AVX-512 F, BW and VL. There are as many free words before `at` as intervals, and 63 beyond it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
pub unsafe fn encode_columns(
    states: &mut [u32; MAX_LANES],
    intervals: &[u32],
    words: &mut [u16],
    at: &mut usize,
) -> usize {
    // SAFETY: every step reads 64 intervals that are there, and writes 16 words from `at` less the
    // number it keeps, which is at least the number of intervals left.
    unsafe {
        let load = |n: usize| _mm512_loadu_si512(states.as_ptr().add(16 * n).cast());
        let mut x = [load(0), load(1), load(2), load(3)];
        let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let (field, one) = (_mm512_set1_epi32(0xfff), _mm512_set1_epi32(1));
        let mut left = intervals.len();
        while left >= MAX_LANES {
            let group = intervals.as_ptr().add(left - MAX_LANES);
            let entries: [__m512i; 4] = std::array::from_fn(|n| _mm512_loadu_si512(group.add(16 * n).cast()));
            let ordered = (0..4).all(|n| {
                let expected = _mm512_add_epi32(lane, _mm512_set1_epi32(16 * n as i32));
                _mm512_cmpeq_epi32_mask(_mm512_srli_epi32::<24>(entries[n]), expected) == 0xffff
            });
            if !ordered {
                break;
            }
            for n in (0..4).rev() {
                let start = _mm512_and_si512(entries[n], field);
                let freq = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32::<12>(entries[n]), field), one);
                let full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32::<20>(x[n]), freq);
                *at -= full.count_ones() as usize;
                let out = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x[n]));
                let kept = ((1u32 << full.count_ones()) - 1) as u16;
                _mm256_mask_storeu_epi16(words.as_mut_ptr().add(*at).cast(), kept, out);
                let state = _mm512_mask_srli_epi32::<16>(x[n], full, x[n]);
                let ratio = _mm512_div_ps(_mm512_cvtepu32_ps(state), _mm512_cvtepu32_ps(freq));
                let mut quotient = _mm512_cvttps_epu32(ratio);
                let mut rest = _mm512_sub_epi32(state, _mm512_mullo_epi32(quotient, freq));
                let low = _mm512_cmplt_epi32_mask(rest, _mm512_setzero_si512());
                quotient = _mm512_mask_sub_epi32(quotient, low, quotient, one);
                rest = _mm512_mask_add_epi32(rest, low, rest, freq);
                let high = _mm512_cmpge_epu32_mask(rest, freq);
                quotient = _mm512_mask_add_epi32(quotient, high, quotient, one);
                rest = _mm512_mask_sub_epi32(rest, high, rest, freq);
                x[n] =
                    _mm512_add_epi32(_mm512_slli_epi32::<{ LANE_PROB_BITS }>(quotient), _mm512_add_epi32(rest, start));
            }
            left -= MAX_LANES;
        }
        for (n, x) in x.into_iter().enumerate() {
            _mm512_storeu_si512(states.as_mut_ptr().add(16 * n).cast(), x);
        }
        intervals.len() - left
    }
}
