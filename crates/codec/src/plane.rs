//! From weights to samples and back: the one reconstruction that encoder and decoder share.
//!
//! A sample is a level (INT4, INT8), an FP8 code or a bit pattern (lossless). Inside a slice
//! samples lie column by column, the order they are coded in.

use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::scale::{UNIT, scale};
use crate::tensor::{TensorPlan, TilePlan};
use crate::{TILE, fp8};

/// An FP8 value is multiplied by the step over 16, so that its range (28 steps) and an integer
/// tile's are alike and step indices of neighbouring tiles stay close.
const FP8_SHIFT: i32 = 32;

/// Scale index (eighths of an octave) of one weight: tile, row and column indices add.
#[inline]
pub fn scale_index(plan: &TensorPlan, tile: &TilePlan, row: usize, col: usize) -> i32 {
    let entry = |vector: &[i8], i: usize| vector.get(i).map_or(0, |&v| i32::from(v));
    let units = i32::from(tile.step) + entry(&plan.row_scale, row) + entry(&plan.col_scale, col);
    let fp8 = if tile.format == Format::Fp8 { FP8_SHIFT } else { 0 };
    plan.step_base + UNIT * units - fp8
}

/// Sample nearest to `weight`.
///
/// # Errors
/// When the scale is out of range.
#[inline]
pub fn quantize(dtype: Dtype, format: Format, index: i32, weight: f32) -> Result<i32> {
    Ok(match format.level_range() {
        Some((low, high)) => ((weight / scale(index)?).round_ties_even() as i32).clamp(low, high),
        None if format == Format::Fp8 => i32::from(fp8::encode(weight / scale(index)?)),
        None => dtype.pattern_of(weight) as i32,
    })
}

/// Bit pattern of a sample in `dtype`: exact product, then one rounding to nearest even.
///
/// # Errors
/// When the scale or the sample is out of range.
#[inline]
pub fn reconstruct(dtype: Dtype, format: Format, index: i32, sample: i32) -> Result<u32> {
    let value = match format.level_range() {
        Some((low, high)) => {
            if sample < low || sample > high {
                return Err(CodecError::Field { field: "level", found: sample.into(), expected: "the format's range" });
            }
            sample as f32
        }
        None if format == Format::Fp8 => fp8::decode(sample as u8),
        None => return Ok(sample as u32),
    };
    Ok(dtype.pattern_of(value * scale(index)?))
}

/// Rows of slice `n` of a plan.
pub fn slice_range(rows: usize, slice_rows: usize, n: usize) -> std::ops::Range<usize> {
    n * slice_rows..((n + 1) * slice_rows).min(rows)
}

/// Samples of the rows `range`, from the whole tensor's weights in row-major order.
///
/// # Errors
/// Weights that are not finite in a lossy tile, or scales out of range.
pub fn quantize_slice(plan: &TensorPlan, range: std::ops::Range<usize>, weights: &[f32]) -> Result<Vec<i32>> {
    let rows = range.len();
    let mut samples = vec![0; rows * plan.cols];
    for row in range.clone() {
        for col in 0..plan.cols {
            let (tile, weight) = (plan.tile_at(row, col), weights[row * plan.cols + col]);
            if !weight.is_finite() {
                return Err(CodecError::NotFinite { row, col, value: weight.to_string() });
            }
            let index = scale_index(plan, tile, row, col);
            samples[col * rows + row - range.start] = quantize(plan.dtype, tile.format, index, weight)?;
        }
    }
    Ok(samples)
}

/// Bit patterns of the rows `range` in row-major order, from their samples.
///
/// # Errors
/// Samples or scales out of range.
pub fn reconstruct_slice(plan: &TensorPlan, range: std::ops::Range<usize>, samples: &[i32]) -> Result<Vec<u32>> {
    let rows = range.len();
    let mut patterns = vec![0; rows * plan.cols];
    for first in (0..plan.cols).step_by(TILE) {
        for row in range.clone() {
            let tile = plan.tile_at(row, first);
            for col in first..(first + TILE).min(plan.cols) {
                let sample = samples[col * rows + row - range.start];
                let index = scale_index(plan, tile, row, col);
                patterns[(row - range.start) * plan.cols + col] = reconstruct(plan.dtype, tile.format, index, sample)?;
            }
        }
    }
    Ok(patterns)
}
