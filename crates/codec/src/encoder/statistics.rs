//! Statistics of a floating-point tensor, from a sample of its weights.

#![allow(clippy::needless_range_loop)] // Loops over lanes by number are what the compiler makes wide.

use crate::constants::TILE;
use crate::format::Dtype;
use crate::simd::dispatched;

/// Statistics that sigmas and tables are chosen from.
pub(super) struct Statistics {
    /// Root mean squares of rows.
    pub rows: Vec<f64>,
    /// Root mean squares of columns.
    pub cols: Vec<f64>,
    /// Counts by prefix.
    pub prefixes: Vec<u64>,
}

dispatched! {
    /// Statistics of the elements of a matrix of `cols` columns.
    pub(super) fn measure(dtype: Dtype, cols: usize, bytes: &[u8]) -> Statistics = measure_inline
}

/// [`statistics`], one copy for each type, so that its shifts are constants.
#[inline(always)]
fn measure_inline(dtype: Dtype, cols: usize, bytes: &[u8]) -> Statistics {
    match dtype {
        Dtype::Bf16 => statistics::<{ Dtype::Bf16 as u8 }>(cols, bytes),
        Dtype::F16 => statistics::<{ Dtype::F16 as u8 }>(cols, bytes),
        Dtype::F32 => statistics::<{ Dtype::F32 as u8 }>(cols, bytes),
        Dtype::E4M3 => statistics::<{ Dtype::E4M3 as u8 }>(cols, bytes),
        _ => statistics::<{ Dtype::E5M2 as u8 }>(cols, bytes),
    }
}

/// Root mean squares of rows and columns without values that are not finite, and counts of float prefixes.
#[inline(always)]
fn statistics<const DTYPE: u8>(cols: usize, bytes: &[u8]) -> Statistics {
    let dtype = const { Dtype::ALL[DTYPE as usize] };
    let rows = bytes.len() * 8 / dtype.bits() / cols;
    let mut found =
        Statistics { rows: Vec::with_capacity(rows), cols: Vec::new(), prefixes: vec![0; 1 << dtype.prefix_bits()] };
    // Two histograms, so that equal prefixes in a row do not wait for each other.
    let mut prefixes = vec![0u32; 2 << dtype.prefix_bits()];
    let mut sums = vec![0.0f32; cols];
    let (run, stride) = (TILE * dtype.bits() / 8, sample_stride(rows, cols));
    for (row, line) in bytes.chunks_exact(cols * dtype.bits() / 8).enumerate() {
        let mut parts = [0.0f32; TILE];
        let runs = line.chunks(run).zip(sums.chunks_mut(TILE));
        for (part, sums) in runs.skip(sampled_first(row, stride)).step_by(stride) {
            let mut patterns = [0; TILE];
            if part.len() == run {
                for j in 0..TILE {
                    patterns[j] = pattern(dtype, &part[..run], j);
                }
                count_run(dtype, &patterns, &mut sums[..TILE], &mut parts, &mut prefixes);
            } else {
                (0..sums.len()).for_each(|j| patterns[j] = pattern(dtype, part, j));
                count_run(dtype, &patterns, sums, &mut parts, &mut prefixes);
            }
        }
        let seen = cols as f64 / stride as f64;
        found.rows.push((f64::from(parts.iter().sum::<f32>()) / seen).sqrt());
    }
    let seen = rows as f64 / stride as f64;
    found.cols = sums.iter().map(|&s| (f64::from(s) / seen).sqrt()).collect();
    let (even, odd) = prefixes.split_at(found.prefixes.len());
    found.prefixes.iter_mut().zip(even.iter().zip(odd)).for_each(|(n, (a, b))| *n = u64::from(*a) + u64::from(*b));
    found
}

/// Distance of the runs of 16 weights that the statistics sample: a million weights determine sigmas and tables
/// within a few thousandths of a bit. One, so every run, where a row or column would have too few samples.
pub(super) fn sample_stride(rows: usize, cols: usize) -> usize {
    let stride = ((rows * cols) >> 20).next_power_of_two().clamp(1, 8);
    if rows < 64 * stride || cols < 64 * stride { 1 } else { stride }
}

/// First sampled run of a row; it moves on by one each row, so that every column is sampled.
pub(super) fn sampled_first(row: usize, stride: usize) -> usize {
    row % stride
}

/// Adds the squares and prefixes of a run of patterns.
#[inline(always)]
fn count_run(dtype: Dtype, patterns: &[u32; TILE], sums: &mut [f32], parts: &mut [f32; TILE], prefixes: &mut [u32]) {
    for (j, sum) in sums.iter_mut().enumerate() {
        let v = dtype.value_of(patterns[j]);
        // Squares of the largest numbers would not be finite either.
        let square = if v.abs() < 1e15 { v * v } else { 0.0 };
        parts[j] += square;
        *sum += square;
    }
    for j in 0..sums.len() {
        let (prefix, _) = dtype.split(patterns[j]);
        prefixes[(j & 1) << dtype.prefix_bits() | prefix as usize] += 1;
    }
}

/// Bit pattern `i` of row-major bytes.
#[inline(always)]
pub(super) fn pattern(dtype: Dtype, bytes: &[u8], i: usize) -> u32 {
    match dtype.bits() {
        4 => u32::from(bytes[i / 2] >> (i % 2 * 4) & 15),
        8 => bytes[i].into(),
        16 => u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).into(),
        _ => u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
    }
}
