//! The one module with `unsafe`: 64 lanes decoded side by side with AVX-512 or AVX2, chosen at run
//! time, and the code around them compiled for the same machine. Plain decoding of the same columns
//! is [`decode_columns_plain`]; tests hold them equal.
#![allow(unsafe_code, clippy::needless_range_loop)]

use std::ops::Range;

use crate::error::Result;
use crate::fast::{self, decode_columns_plain};
use crate::format::Dtype;
use crate::lanes::{BAND, LaneDecoder, MAX_LANES};
use crate::lossless::{self, Statistics};
use crate::plan::TensorPlan;
use crate::sample::{HeadModel, SampleDecoder, SampleEncoder};
use crate::side::Books;
use crate::slice::SlicePlan;
use crate::table::{PROB_BITS, PROB_ONE, Tables};

macro_rules! dispatch {
    ($(#[$doc:meta])* in $module:ident $name:ident($($arg:ident: $type:ty),*) -> $result:ty) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi2,popcnt")]
                fn wide($($arg: $type),*) -> $result {
                    $module::$name($($arg),*)
                }
                #[target_feature(enable = "avx2,bmi2,popcnt")]
                fn narrow($($arg: $type),*) -> $result {
                    $module::$name($($arg),*)
                }
                match machine() {
                    // SAFETY: `machine` found the features.
                    Machine::Avx512 => return unsafe { wide($($arg),*) },
                    Machine::Avx2 => return unsafe { narrow($($arg),*) },
                    Machine::Plain => {}
                }
            }
            $module::$name($($arg),*)
        }
    };
}

dispatch! {
    /// [`fast::decode_block`] for this machine.
    in fast decode_block(
        decoder: &mut SampleDecoder, slice: &SlicePlan, books: &Books, rows: Range<usize>, cols: Range<usize>,
        samples: &mut [i32]
    ) -> bool
}

dispatch! {
    /// [`fast::decode_bf16_block`] for this machine.
    in fast decode_bf16_block(
        decoder: &mut SampleDecoder, slice: &SlicePlan, books: &Books, rows: Range<usize>, cols: Range<usize>,
        out: &mut [u8]
    ) -> bool
}

dispatch! {
    /// [`fast::write_block`] for this machine.
    in fast write_block(
        slice: &SlicePlan, rows: Range<usize>, cols: Range<usize>, samples: &[i32], out: &mut [u8]
    ) -> Result<bool>
}

dispatch! {
    /// [`lossless::measure`] for this machine.
    in lossless measure(dtype: Dtype, cols: usize, bytes: &[u8]) -> Statistics
}

dispatch! {
    /// [`lossless::encode_rows`] for this machine.
    in lossless encode_rows(
        encoder: &mut SampleEncoder, plan: &TensorPlan, model: &HeadModel, bytes: &[u8], rows: Range<usize>
    ) -> ()
}

/// Runs `work` compiled for this machine, so far as its functions are inlined: results are the same.
#[inline(always)]
pub fn on_this_machine<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi2,popcnt")]
        fn wide<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx2,bmi2,popcnt")]
        fn narrow<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        match machine() {
            // SAFETY: `machine` found the features.
            Machine::Avx512 => return unsafe { wide(work) },
            Machine::Avx2 => return unsafe { narrow(work) },
            Machine::Plain => {}
        }
    }
    work()
}

/// What the machine can do.
#[cfg(target_arch = "x86_64")]
enum Machine {
    Avx512,
    Avx2,
    Plain,
}

#[cfg(target_arch = "x86_64")]
fn machine() -> Machine {
    let bmi = is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("popcnt");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (bmi && is_x86_feature_detected!("avx2"), avx512) {
        (true, true) => Machine::Avx512,
        (true, false) => Machine::Avx2,
        _ => Machine::Plain,
    }
}

/// Bytes that a pair of columns reads at most: 64 words, and half a vector beyond them.
const READ_AHEAD: usize = 2 * MAX_LANES + 32;

/// Decodes a symbol in every lane for each column; `offsets` are 4096 times the tables' numbers.
#[inline(always)]
pub fn decode_columns(lanes: &mut LaneDecoder, tables: &Tables, offsets: &[[u32; BAND]], symbols: &mut [[u8; BAND]]) {
    let mut most = [0; BAND];
    for column in offsets {
        for i in 0..BAND {
            most[i] = column[i].max(most[i]);
        }
    }
    let largest = most.into_iter().fold(0, u32::max) as usize;
    let exist = largest + PROB_ONE as usize <= tables.slots().len() && offsets.len() == symbols.len();
    let done = if exist { decode_wide::<false>(lanes, tables, offsets, symbols) } else { 0 };
    decode_columns_plain(lanes, tables, &offsets[done..], done, &mut symbols[done..]);
}

/// Decodes columns of which every lane has the same table.
#[inline(always)]
pub fn decode_columns_evenly(lanes: &mut LaneDecoder, tables: &Tables, table: usize, symbols: &mut [[u8; BAND]]) {
    let offsets = [[(table as u32) << PROB_BITS; BAND]];
    let exist = (table + 1) << PROB_BITS <= tables.slots().len();
    let done = if exist { decode_wide::<true>(lanes, tables, &offsets, symbols) } else { 0 };
    for (col, symbols) in symbols.iter_mut().enumerate().skip(done) {
        decode_columns_plain(lanes, tables, &offsets, col, std::slice::from_mut(symbols));
    }
}

/// Codes as many whole pairs of columns from the end of `intervals` as the machine can side by side,
/// writing words before `at`; returns the number of intervals coded. There are as many free words before
/// `at` as intervals, and [`MAX_LANES`] beyond it.
pub fn encode_columns(states: &mut [u32; MAX_LANES], intervals: &[u32], words: &mut [u16], at: &mut usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if matches!(machine(), Machine::Avx512) && *at >= intervals.len() && words.len() >= *at + MAX_LANES - 1 {
        // SAFETY: the features are present, and so is the room that the kernel needs.
        return unsafe { x86::encode_avx512(states, intervals, words, at) };
    }
    0
}

/// Fields of `bits` (at most 7) bits, one in each byte, side by side: undoes [`spread_bits`].
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
pub fn spread_bits(word: u64, bits: u32) -> u64 {
    let low = |n: u32| (1u64 << n) - 1;
    let word = word & low(8 * bits);
    let word = word & low(4 * bits) | (word >> (4 * bits)) << 32;
    let pair = low(2 * bits) | low(2 * bits) << 32;
    let word = word & pair | (word >> (2 * bits) & pair) << 16;
    let field = low(bits) * 0x0001_0001_0001_0001;
    word & field | (word >> bits & field) << 8
}

/// [`spread_bits`] for as many eights of fields as `fields` holds; `bytes` go eight beyond them.
#[inline(always)]
pub fn spread_fields(bytes: &[u8], bits: u32, fields: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if !matches!(machine(), Machine::Plain) {
        // SAFETY: the feature is present.
        return unsafe { x86::spread_fields(bytes, bits, fields) };
    }
    for (k, eight) in fields.chunks_exact_mut(8).enumerate() {
        let word = u64::from_le_bytes(bytes[k * bits as usize..][..8].try_into().expect("eight bytes"));
        eight.copy_from_slice(&spread_bits(word, bits).to_le_bytes());
    }
}

/// Columns of rows, or rows of columns; both sides are multiples of eight.
#[inline(always)]
pub fn transpose<const FROM: usize, const TO: usize>(from: &[[u16; TO]; FROM]) -> [[u16; FROM]; TO] {
    const { assert!(FROM.is_multiple_of(8) && TO.is_multiple_of(8)) };
    let mut to = [[0; FROM]; TO];
    #[cfg(target_arch = "x86_64")]
    for i in (0..FROM).step_by(8) {
        for j in (0..TO).step_by(8) {
            // SAFETY: SSE2 is part of x86-64; the eight loads and stores lie in the arrays.
            unsafe { x86::transpose8(|n| from[i + n][j..].as_ptr(), |n| to[j + n][i..].as_mut_ptr()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for j in 0..TO {
        for i in 0..FROM {
            to[j][i] = from[i][j];
        }
    }
    to
}

/// Decodes as many columns as the machine can side by side and returns their number. The tables at
/// all offsets exist; there are as many columns of them as of symbols, or one for all where `EVEN`.
#[inline(always)]
#[allow(unused_variables)]
fn decode_wide<const EVEN: bool>(
    lanes: &mut LaneDecoder,
    tables: &Tables,
    offsets: &[[u32; BAND]],
    symbols: &mut [[u8; BAND]],
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if lanes.lanes == MAX_LANES {
        let (states, words, slots) = (&mut lanes.states, &mut lanes.words, tables.slots());
        // SAFETY: the features are present; every offset plus a slot below 4096 lies in `slots`, as the
        // callers above check; the kernels check what is left of `words` before every column.
        return match machine() {
            Machine::Avx512 => unsafe { x86::decode_avx512::<EVEN>(states, words, slots, offsets, symbols) },
            Machine::Avx2 => unsafe { x86::decode_avx2::<EVEN>(states, words, slots, offsets, symbols) },
            Machine::Plain => 0,
        };
    }
    0
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::READ_AHEAD;
    use crate::lanes::{BAND, LOWER, MAX_LANES};
    use crate::table::{PROB_BITS, PROB_ONE};

    /// Deposits fields of `bits` in bytes.
    #[target_feature(enable = "bmi2")]
    pub fn spread_fields(bytes: &[u8], bits: u32, fields: &mut [u8]) {
        let mask = 0x0101_0101_0101_0101 * ((1 << bits) - 1);
        for (k, eight) in fields.chunks_exact_mut(8).enumerate() {
            let word = u64::from_le_bytes(bytes[k * bits as usize..][..8].try_into().expect("eight bytes"));
            eight.copy_from_slice(&_pdep_u64(word, mask).to_le_bytes());
        }
    }

    /// # Safety
    /// Needs AVX-512 F and BW. All `offsets` are at most `slots.len() - 4096`; `offsets` and `symbols`
    /// are of one length, or `EVEN` and `offsets` is one.
    #[target_feature(enable = "avx512f,avx512bw,popcnt")]
    pub unsafe fn decode_avx512<const EVEN: bool>(
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
            let (slot_mask, freq_mask) = (_mm512_set1_epi32(PROB_ONE as i32 - 1), _mm512_set1_epi32(0xfff));
            let (one, lower) = (_mm512_set1_epi32(1), _mm512_set1_epi32(LOWER as i32));
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
                        _mm512_mullo_epi32(freq, _mm512_srli_epi32::<PROB_BITS>(*x)),
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

    /// The inverse of [`decode_avx512`], backwards, with single-precision division: a quotient below
    /// 2^20 is off by one at most, which the remainder shows.
    ///
    /// # Safety
    /// Needs AVX-512 F, BW and VL. There are as many free words before `at` as intervals, and 63 beyond it.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
    pub unsafe fn encode_avx512(
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
                        _mm512_add_epi32(_mm512_slli_epi32::<{ PROB_BITS }>(quotient), _mm512_add_epi32(rest, start));
                }
                left -= MAX_LANES;
            }
            for (n, x) in x.into_iter().enumerate() {
                _mm512_storeu_si512(states.as_mut_ptr().add(16 * n).cast(), x);
            }
            intervals.len() - left
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
    /// As [`decode_avx512`], but needs AVX2.
    #[target_feature(enable = "avx2,popcnt")]
    pub unsafe fn decode_avx2<const EVEN: bool>(
        states: &mut [u32; MAX_LANES],
        words: &mut &[u8],
        slots: &[u32],
        offsets: &[[u32; BAND]],
        symbols: &mut [[u8; BAND]],
    ) -> usize {
        // SAFETY: as above.
        unsafe {
            let load = |n: usize| _mm256_loadu_si256(states.as_ptr().add(8 * n).cast());
            let mut x: [__m256i; 8] = std::array::from_fn(load);
            let (slot_mask, freq_mask) = (_mm256_set1_epi32(PROB_ONE as i32 - 1), _mm256_set1_epi32(0xfff));
            let (one, top) = (_mm256_set1_epi32(1), _mm256_set1_epi32(LOWER as i32 - 1));
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
                            _mm256_mullo_epi32(freq, _mm256_srli_epi32::<{ PROB_BITS as i32 }>(*x)),
                            _mm256_srli_epi32::<20>(entry),
                        );
                        // Unsigned: next <= LOWER - 1.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TILE;
    use crate::fast::Columns;
    use crate::lanes::LaneEncoder;

    /// A stream of columns under changing tables, and the tables.
    fn stream(columns: usize) -> (Vec<u8>, Vec<[u32; BAND]>) {
        let tables = Tables::fixed();
        let mut state = 7u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let mut encoder = LaneEncoder::default();
        let mut offsets = Vec::new();
        for col in 0..columns {
            let column: [u32; BAND] = std::array::from_fn(|_| draw(tables.len() as u64) as u32);
            for (row, &table) in column.iter().enumerate() {
                // A symbol drawn as the table says.
                let symbol = tables.slot(table as usize, draw(4096) as u32) as u8;
                encoder.push(tables, table as usize, crate::lanes::lane_of(row, col), symbol);
            }
            offsets.push(column.map(|t| t << crate::table::PROB_BITS));
        }
        (encoder.finish(MAX_LANES), offsets)
    }

    #[test]
    fn wide_decoding_equals_plain_decoding() {
        let (bytes, offsets) = stream(704);
        let tables = Tables::fixed();
        let mut expected = vec![[0; BAND]; offsets.len()];
        let mut plain = LaneDecoder::new(&bytes, MAX_LANES);
        decode_columns_plain(&mut plain, tables, &offsets, 0, &mut expected);
        assert!(plain.finish());
        let mut got = vec![[0; BAND]; offsets.len()];
        let mut wide = LaneDecoder::new(&bytes, MAX_LANES);
        for (offsets, got) in offsets.chunks(16).zip(got.chunks_mut(16)) {
            decode_columns(&mut wide, tables, offsets, got);
        }
        assert!(wide.finish());
        assert_eq!(got, expected);
        // Damaged and cut streams too.
        for cut in [0, 5, 127, 128, 200, bytes.len() - 3] {
            let mut results = Vec::new();
            for wide in [false, true] {
                let mut lanes = LaneDecoder::new(&bytes[..cut], MAX_LANES);
                let mut got = vec![[0; BAND]; offsets.len()];
                match wide {
                    true => decode_columns(&mut lanes, tables, &offsets, &mut got),
                    false => decode_columns_plain(&mut lanes, tables, &offsets, 0, &mut got),
                }
                results.push((got, lanes.states, lanes.finish()));
            }
            assert!(results[0] == results[1], "cut at {cut}");
        }
    }

    #[test]
    fn wide_encoding_equals_plain_encoding() {
        let tables = Tables::fixed();
        let symbol = |n: usize| tables.slot(n % tables.len(), (n * 2654435761) as u32 & 0xfff) as u8;
        // With a row less no pair of columns is whole.
        for rows in [BAND, BAND - 1] {
            let mut encoder = LaneEncoder::default();
            for n in 0..40 * rows {
                encoder.push(tables, n % tables.len(), crate::lanes::lane_of(n % rows, n / rows), symbol(n));
            }
            let (wide, plain) = (encoder.finish(MAX_LANES), encoder.finish_plain(MAX_LANES));
            assert!(wide == plain, "{rows} rows");
            let mut decoder = LaneDecoder::new(&wide, MAX_LANES);
            for n in 0..40 * rows {
                let lane = crate::lanes::lane_of(n % rows, n / rows);
                assert_eq!(decoder.next(tables, n % tables.len(), lane), symbol(n));
            }
            assert!(decoder.finish());
        }
    }

    #[test]
    fn fields_and_blocks_are_what_plain_code_makes_of_them() {
        for bits in 1..=7 {
            let word = 0x9e37_79b9_7f4a_7c15u64 >> (64 - 8 * bits);
            let bytes = spread_bits(word, bits).to_le_bytes();
            for (k, byte) in bytes.into_iter().enumerate() {
                assert_eq!(u64::from(byte), word >> (k as u32 * bits) & ((1 << bits) - 1));
            }
            assert_eq!(gather_bits(u64::from_le_bytes(bytes), bits), word & (u64::MAX >> (64 - 8 * bits)));
        }
        let bytes: Vec<u8> = (0..80).map(|i| (i * 37) as u8).collect();
        for bits in 1..=7 {
            let mut fields = [0; 64];
            spread_fields(&bytes, bits, &mut fields);
            for (k, eight) in fields.chunks(8).enumerate() {
                let word = u64::from_le_bytes(bytes[k * bits as usize..][..8].try_into().unwrap());
                assert_eq!(eight, spread_bits(word, bits).to_le_bytes());
            }
        }
        let columns: Columns<u16> = std::array::from_fn(|j| std::array::from_fn(|i| (j * 100 + i) as u16));
        let rows = transpose(&columns);
        assert!((0..BAND).all(|i| (0..TILE).all(|j| rows[i][j] == columns[j][i])));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_instruction_sets_give_the_same() {
        let (bytes, offsets) = stream(301);
        let slots = Tables::fixed().slots();
        let mut results = Vec::new();
        for set in 0..2 {
            let mut lanes = LaneDecoder::new(&bytes, MAX_LANES);
            let mut got = vec![[0; BAND]; offsets.len()];
            // SAFETY: features are checked; `stream` gives numbers of tables that exist.
            let done = match set {
                0 if is_x86_feature_detected!("avx2") => unsafe {
                    x86::decode_avx2::<false>(&mut lanes.states, &mut lanes.words, slots, &offsets, &mut got)
                },
                1 if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") => unsafe {
                    x86::decode_avx512::<false>(&mut lanes.states, &mut lanes.words, slots, &offsets, &mut got)
                },
                _ => continue,
            };
            assert!(done > 250);
            results.push((done, got, lanes.states));
        }
        assert!(results.windows(2).all(|w| w[0] == w[1]));
    }
}
