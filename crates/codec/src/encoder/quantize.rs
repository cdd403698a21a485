//! Quantisation by plain rounding, without a search.

use crate::constants::MAX_TILE;
use crate::error::{CodecError, Result};
use crate::format::Format;
use crate::recon::reconstruct::{Planes, TileScales};
use crate::recon::transform::TilePass;
use crate::syntax::bit_shift::{self, BitShiftTrellis};
use crate::syntax::sample::MAX_LEVEL;
use crate::syntax::slice::SlicePlan;
use crate::syntax::tile_plan::{TileMode, TilePlan};
use crate::syntax::trellis::{Trellis, parity};

/// Quantises a slice: levels, palette indices, codes or bit patterns, row-major. `weights` are the rows of the slice,
/// `[rows, cols]`. Predictions use what the decoder will have.
///
/// # Errors
/// Weights that are not finite; scales and references out of range.
pub fn quantize_slice(slice: &SlicePlan, weights: &[f32]) -> Result<Vec<i32>> {
    let plan = slice.plan;
    let mut samples = vec![0; weights.len()];
    let mut planes = Planes::new(slice);
    let mut prediction = [0; MAX_TILE];
    let mut tile_samples = [0; MAX_TILE];
    let mut values = [0.0; MAX_TILE];
    let mut shifted = vec![0u32; if plan.parameters.bit_shift.is_some() { plan.cols } else { 0 }];
    let mut states = vec![0u8; if plan.parameters.trellis.is_some() { plan.cols } else { 0 }];
    for n in 0..slice.tiles.len() {
        let tile = &slice.tiles[n];
        let (rows, cols) = slice.tile_range(n);
        let (width, count) = (cols.len(), rows.len() * cols.len());
        let at = |i: usize| (rows.start - slice.rows.start + i) * plan.cols + cols.start;
        for i in 0..rows.len() {
            let line = &weights[at(i)..at(i) + width];
            if let Some(j) = line.iter().position(|w| !w.is_finite()) {
                let value = line[j].to_string();
                return Err(CodecError::NotFinite { row: rows.start + i, col: cols.start + j, value });
            }
            values[i * width..(i + 1) * width].copy_from_slice(line);
        }
        if tile.format == Format::Lossless {
            tile_samples.iter_mut().zip(&values[..count]).for_each(|(s, &w)| *s = plan.dtype.pattern_of(w) as i32);
        } else {
            let scales = TileScales::new(slice, n)?;
            for (k, value) in values[..count].iter_mut().enumerate() {
                *value /= scales.at(k / width, k % width);
            }
            if let Some(float) = tile.format.minifloat() {
                tile_samples.iter_mut().zip(&values[..count]).for_each(|(s, &v)| *s = float.encode(v).into());
            } else {
                planes.predict(slice, n, &mut prediction)?;
                let (values, predicted) = (&values[..count], &prediction[..count]);
                match (plan.trellis_of(tile, rows.start, cols.start), plan.parameters.bit_shift, tile.mode) {
                    (_, Some(trellis), TileMode::BitShift(bits)) => {
                        let states = &mut shifted[cols.clone()];
                        quantize_bit_shift_tile(trellis, bits.into(), states, values, &mut tile_samples[..count]);
                    }
                    (Some(trellis), ..) => {
                        let states = &mut states[cols.clone()];
                        quantize_trellis_tile(trellis, states, tile, values, predicted, &mut tile_samples[..count]);
                    }
                    _ => quantize_tile(slice, tile, values, predicted, &mut tile_samples[..count]),
                }
                planes.reconstruct(slice, n, &mut prediction[..count], &tile_samples[..count]);
            }
        }
        let codes = tile.format.level_range().is_some() && matches!(tile.mode, TileMode::BitShift(_));
        if !codes {
            shifted.get_mut(cols.clone()).unwrap_or_default().fill(0);
        }
        for i in 0..rows.len() {
            samples[at(i)..at(i) + width].copy_from_slice(&tile_samples[i * width..(i + 1) * width]);
        }
    }
    Ok(samples)
}

/// Levels or indices of an integer tile, all row-major; `values` are in units of the step.
fn quantize_tile(slice: &SlicePlan, tile: &TilePlan, values: &[f32], prediction: &[i32], samples: &mut [i32]) {
    match tile.mode {
        TileMode::Skip | TileMode::BitShift(_) => samples.fill(0),
        TileMode::Palette(palette) => {
            let known = &palette.values[..usize::from(palette.len)];
            for (s, v) in samples.iter_mut().zip(values) {
                let distance = |&i: &usize| (f32::from(known[i]) - v).abs();
                let nearest = (0..known.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)));
                *s = nearest.unwrap_or(0) as i32;
            }
        }
        TileMode::Coded | TileMode::BitPlanes => {
            let inverse = (-f32::from(tile.coarse) / 4.0).exp2();
            let residual = values.iter().zip(prediction).map(|(v, &p)| v - p as f32);
            if tile.transform.is_identity() || values.len() != 256 {
                let (low, high) = residual_range(tile);
                for (s, r) in samples.iter_mut().zip(residual) {
                    *s = ((r * inverse).round_ties_even() as i32).clamp(low, high);
                }
            } else {
                let mut block = [0.0; 256];
                block.iter_mut().zip(residual).for_each(|(b, r)| *b = r);
                TilePass::new(tile.transform, slice.plan.parameters.learned.as_deref()).forward(&mut block);
                for (s, c) in samples.iter_mut().zip(block) {
                    *s = ((c * inverse).round_ties_even() as i32).clamp(-MAX_LEVEL, MAX_LEVEL);
                }
            }
        }
    }
}

/// The level nearest to each value among those of the column's trellis state. A search that looks ahead is in the
/// crate `quantize`.
fn quantize_trellis_tile(
    trellis: Trellis,
    states: &mut [u8],
    tile: &TilePlan,
    values: &[f32],
    prediction: &[i32],
    samples: &mut [i32],
) {
    let inverse = (-f32::from(tile.coarse) / 4.0).exp2();
    let (low, high) = residual_range(tile);
    let width = states.len();
    for (k, sample) in samples.iter_mut().enumerate() {
        let state = &mut states[k % width];
        let parity = parity(*state);
        let scaled = (values[k] - prediction[k] as f32) * inverse;
        let nearest = 2 * ((scaled - parity as f32) / 2.0).round_ties_even() as i32 + parity;
        // The ends of the range that have the parity.
        let (low, high) = (low + (low - parity).rem_euclid(2), high - (high - parity).rem_euclid(2));
        *sample = nearest.clamp(low, high);
        *state = trellis.next(*state, *sample);
    }
}

/// The state with the level nearest to each value among those that the column's state leads to. A search that looks ahead
/// is in the crate `quantize`.
fn quantize_bit_shift_tile(
    trellis: BitShiftTrellis,
    bits: u32,
    states: &mut [u32],
    values: &[f32],
    samples: &mut [i32],
) {
    let width = states.len();
    for (k, (sample, value)) in samples.iter_mut().zip(values).enumerate() {
        let state = &mut states[k % width];
        let distance = |state: &u32| (bit_shift::level(*state) as f32 - value).abs();
        let next = (0..1 << bits).map(|code| trellis.next(*state, bits, code));
        *state = next.min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
        *sample = *state as i32;
    }
}

/// Levels that an untransformed residual may have: an unpredicted one stays in the format.
fn residual_range(tile: &TilePlan) -> (i32, i32) {
    match tile.format.level_range() {
        Some(range) if tile.coarse == 0 && tile.predictor == Default::default() => range,
        _ => (-MAX_LEVEL, MAX_LEVEL),
    }
}
