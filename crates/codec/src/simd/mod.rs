//! The one module with `unsafe`: kernels on plain slices for AVX-512, AVX2 and any machine, chosen at run time, and
//! [`dispatch`] and `dispatched!`, which compile the code around them for the same machine.
//!
//! Every kernel here has a scalar definition, in `generic` or at its caller; tests hold the two equal.
#![allow(unsafe_code, clippy::needless_range_loop)] // Loops over lanes by number are what the compiler makes wide.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod generic;

use crate::constants::{BAND, LANE_PROB_ONE, MAX_LANES};
pub(crate) use generic::{expand_bits, gather_bits};

/// Runs `work` compiled for this machine, as far as its functions are inlined. Results do not depend on the machine.
#[inline(always)]
pub fn dispatch<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi2,popcnt")]
        fn avx512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx2,bmi2,popcnt")]
        fn avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        match machine() {
            // SAFETY: `machine` found the features.
            Machine::Avx512 => return unsafe { avx512(work) },
            Machine::Avx2 => return unsafe { avx2(work) },
            Machine::Generic => {}
        }
    }
    work()
}

/// Defines a function that runs `$inline`, which is `#[inline(always)]`, compiled for this machine.
///
/// As [`dispatch`], but arguments stay arguments: the compiler knows that references among them do not overlap, which it
/// no longer knows of what a closure captures. Loops over whole blocks are a few percent faster for it.
macro_rules! dispatched {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $result:ty = $inline:ident) => {
        $(#[$doc])*
        #[allow(unsafe_code)]
        $vis fn $name($($arg: $type),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi2,popcnt")]
                fn avx512($($arg: $type),*) -> $result {
                    $inline($($arg),*)
                }
                #[target_feature(enable = "avx2,bmi2,popcnt")]
                fn avx2($($arg: $type),*) -> $result {
                    $inline($($arg),*)
                }
                match $crate::simd::machine() {
                    // SAFETY: `machine` found the features.
                    $crate::simd::Machine::Avx512 => return unsafe { avx512($($arg),*) },
                    $crate::simd::Machine::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Machine::Generic => {}
                }
            }
            $inline($($arg),*)
        }
    };
}
pub(crate) use dispatched;

/// Instruction sets that kernels are written for.
#[cfg(target_arch = "x86_64")]
pub(crate) enum Machine {
    Avx512,
    Avx2,
    Generic,
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn machine() -> Machine {
    let bmi = is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("popcnt");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (bmi && is_x86_feature_detected!("avx2"), avx512) {
        (true, true) => Machine::Avx512,
        (true, false) => Machine::Avx2,
        _ => Machine::Generic,
    }
}

/// Decodes a symbol in each of 64 lanes for every pair of columns of `symbols` that the machine can do side by side, and
/// returns the number of columns. `slots` has 4096 entries a table; `offsets` has the first slot of each sample's table.
#[inline(always)]
pub(crate) fn decode_columns(
    states: &mut [u32; MAX_LANES],
    words: &mut &[u8],
    slots: &[u32],
    offsets: &[[u32; BAND]],
    symbols: &mut [[u8; BAND]],
) -> usize {
    let mut most = [0; BAND];
    for column in offsets {
        for i in 0..BAND {
            most[i] = column[i].max(most[i]);
        }
    }
    let largest = most.into_iter().fold(0, u32::max) as usize;
    if largest + LANE_PROB_ONE as usize > slots.len() || offsets.len() != symbols.len() {
        return 0;
    }
    // SAFETY: every offset plus a slot below 4096 lies in `slots`, and there are as many columns of offsets as of symbols.
    unsafe { decode_columns_unchecked::<false>(states, words, slots, offsets, symbols) }
}

/// [`decode_columns`] where all samples have the table that begins at `offset`.
#[inline(always)]
pub(crate) fn decode_columns_evenly(
    states: &mut [u32; MAX_LANES],
    words: &mut &[u8],
    slots: &[u32],
    offset: u32,
    symbols: &mut [[u8; BAND]],
) -> usize {
    if offset as usize + LANE_PROB_ONE as usize > slots.len() {
        return 0;
    }
    // SAFETY: the offset plus a slot below 4096 lies in `slots`; all columns share it.
    unsafe { decode_columns_unchecked::<true>(states, words, slots, &[[offset; BAND]], symbols) }
}

/// # Safety
/// All `offsets` are at most `slots.len() - 4096`; there are as many columns of them as of symbols, or one for all where
/// `EVEN`.
#[inline(always)]
#[allow(unused_variables)]
unsafe fn decode_columns_unchecked<const EVEN: bool>(
    states: &mut [u32; MAX_LANES],
    words: &mut &[u8],
    slots: &[u32],
    offsets: &[[u32; BAND]],
    symbols: &mut [[u8; BAND]],
) -> usize {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the features are present; the rest is as the caller promises. The kernels check what is left of `words`.
    return match machine() {
        Machine::Avx512 => unsafe { avx512::decode_columns::<EVEN>(states, words, slots, offsets, symbols) },
        Machine::Avx2 => unsafe { avx2::decode_columns::<EVEN>(states, words, slots, offsets, symbols) },
        Machine::Generic => 0,
    };
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Codes as many whole pairs of columns from the end of `intervals` as the machine can side by side,
/// writing words before `at`; returns the number of intervals coded. There are as many free words before
/// `at` as intervals, and [`MAX_LANES`] beyond it.
pub(crate) fn encode_columns(
    states: &mut [u32; MAX_LANES],
    intervals: &[u32],
    words: &mut [u16],
    at: &mut usize,
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if matches!(machine(), Machine::Avx512) && *at >= intervals.len() && words.len() >= *at + MAX_LANES - 1 {
        // SAFETY: the features are present, and so is the room that the kernel needs.
        return unsafe { avx512::encode_columns(states, intervals, words, at) };
    }
    0
}

/// Expands fields of `bits` (at most 7) bits to bytes, as many eights as `fields` holds; `bytes` go eight beyond them.
#[inline(always)]
pub(crate) fn expand_fields(bytes: &[u8], bits: u32, fields: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if !matches!(machine(), Machine::Generic) {
        // SAFETY: the feature is present.
        return unsafe { avx2::expand_fields(bytes, bits, fields) };
    }
    generic::expand_fields(bytes, bits, fields);
}

/// Columns of rows, or rows of columns; both sides are multiples of eight.
#[inline(always)]
pub(crate) fn transpose<const FROM: usize, const TO: usize>(from: &[[u16; TO]; FROM]) -> [[u16; FROM]; TO] {
    const { assert!(FROM.is_multiple_of(8) && TO.is_multiple_of(8)) };
    #[cfg(target_arch = "x86_64")]
    {
        let mut to = [[0; FROM]; TO];
        for i in (0..FROM).step_by(8) {
            for j in (0..TO).step_by(8) {
                // SAFETY: SSE2 is part of x86-64; the eight loads and stores lie in the arrays.
                unsafe { avx2::transpose8(|n| from[i + n][j..].as_ptr(), |n| to[j + n][i..].as_mut_ptr()) };
            }
        }
        to
    }
    #[cfg(not(target_arch = "x86_64"))]
    generic::transpose(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_blocks_are_what_plain_code_makes_of_them() {
        for bits in 1..=7 {
            let word = 0x9e37_79b9_7f4a_7c15u64 >> (64 - 8 * bits);
            let bytes = expand_bits(word, bits).to_le_bytes();
            for (k, byte) in bytes.into_iter().enumerate() {
                assert_eq!(u64::from(byte), word >> (k as u32 * bits) & ((1 << bits) - 1));
            }
            assert_eq!(gather_bits(u64::from_le_bytes(bytes), bits), word & (u64::MAX >> (64 - 8 * bits)));
        }
        let bytes: Vec<u8> = (0..80).map(|i| (i * 37) as u8).collect();
        for bits in 1..=7 {
            let (mut fields, mut expected) = ([0; 64], [0; 64]);
            expand_fields(&bytes, bits, &mut fields);
            generic::expand_fields(&bytes, bits, &mut expected);
            assert_eq!(fields, expected);
        }
        let columns: [[u16; BAND]; 16] = std::array::from_fn(|j| std::array::from_fn(|i| (j * 100 + i) as u16));
        assert_eq!(transpose(&columns), generic::transpose(&columns));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_instruction_sets_give_the_same() {
        use crate::entropy::interleaved_rans::LaneDecoder;
        use crate::entropy::interleaved_rans::tests::stream;
        use crate::entropy::tables::Tables;
        let (bytes, offsets) = stream(301);
        let slots = Tables::fixed().slots();
        let mut results = Vec::new();
        for set in 0..2 {
            let mut lanes = LaneDecoder::new(&bytes, MAX_LANES);
            let mut got = vec![[0; BAND]; offsets.len()];
            // SAFETY: features are checked; `stream` gives numbers of tables that exist.
            let done = match set {
                0 if is_x86_feature_detected!("avx2") => unsafe {
                    avx2::decode_columns::<false>(&mut lanes.states, &mut lanes.words, slots, &offsets, &mut got)
                },
                1 if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") => unsafe {
                    avx512::decode_columns::<false>(&mut lanes.states, &mut lanes.words, slots, &offsets, &mut got)
                },
                _ => continue,
            };
            assert!(done > 250);
            results.push((done, got, lanes.states));
        }
        assert!(results.windows(2).all(|w| w[0] == w[1]));
    }
}
