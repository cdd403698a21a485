//! Reconstruction that encoder and decoder share: from samples to integer planes to weights (sections 8 and 9 of
//! `docs/BITSTREAM.md`).
//!
//! A plane holds the integers of a tile in units of its step. Prediction, inverse quantisation and inverse transform
//! are integer arithmetic and end by rounding and clamping into the plane. Row and column scales apply after it.

use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::recon::transform::{FRACTION_BITS, TilePass};
use crate::scale::{MANTISSA, MAX_INDEX, UNIT, scale};
use crate::simd::dispatch;
use crate::syntax::bit_shift;
use crate::syntax::slice::SlicePlan;
use crate::syntax::tensor_plan::TensorPlan;
use crate::syntax::tile_plan::{MAX_COARSE, Predictor, TileMode, TilePlan};

/// Planes of a slice that are reconstructed so far: what later tiles are predicted from.
pub struct Planes {
    /// Row-major values of the slice; empty where no tile is predicted.
    values: Vec<i8>,
}

impl Planes {
    /// Planes of a slice, all zero; none where its tiles are not predicted.
    pub fn new(slice: &SlicePlan) -> Self {
        match slice.tiles.iter().any(|t| t.predictor != Predictor::None) {
            true => Self::of_any(slice),
            false => Self { values: Vec::new() },
        }
    }

    /// Planes of a slice in which tiles may be predicted later.
    pub fn of_any(slice: &SlicePlan) -> Self {
        Self { values: vec![0; slice.rows.len() * slice.plan.cols] }
    }

    /// True where no tile of the slice is predicted.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Value of the plane in `row` of the tensor and `col`, in units of `step`; zero where it is not reconstructed.
    #[inline]
    pub fn value(&self, slice: &SlicePlan, row: usize, col: usize, step: i16) -> i32 {
        let value = self.values[(row - slice.rows.start) * slice.plan.cols + col];
        rescale(value.into(), i32::from(slice.tile_at(row, col).step) - i32::from(step))
    }

    /// Prediction of tile `n`, row-major with the tile's width.
    ///
    /// # Errors
    /// References to rows that do not exist.
    pub fn predict(&self, slice: &SlicePlan, n: usize, out: &mut [i32]) -> Result<()> {
        let (tile, plan) = (&slice.tiles[n], slice.plan);
        let (rows, cols) = slice.tile_range(n);
        let width = cols.len();
        let left = |row: usize| if cols.start > 0 { self.value(slice, row, cols.start - 1, tile.step) } else { 0 };
        let top = |col: usize| {
            if rows.start > slice.rows.start { self.value(slice, rows.start - 1, col, tile.step) } else { 0 }
        };
        let mut fill = |value: &dyn Fn(usize, usize) -> i32| {
            for (i, line) in out.chunks_exact_mut(width).take(rows.len()).enumerate() {
                line.iter_mut().enumerate().for_each(|(j, v)| *v = value(i, j));
            }
        };
        match tile.predictor {
            Predictor::None => fill(&|_, _| 0),
            Predictor::Constant(value) => fill(&|_, _| value.into()),
            Predictor::RankOne(u, v) => fill(&|i, j| (i32::from(u[i]) * i32::from(v[j]) + 32) >> 6),
            Predictor::Left => {
                let values: Vec<i32> = rows.clone().map(left).collect();
                fill(&|i, _| values[i]);
            }
            Predictor::Top => {
                let values: Vec<i32> = cols.clone().map(top).collect();
                fill(&|_, j| values[j]);
            }
            Predictor::RowMean => {
                let from = cols.start.saturating_sub(plan.tile)..cols.start;
                let mean = |row: usize| mean(from.clone().map(|col| self.value(slice, row, col, tile.step)));
                let values: Vec<i32> = rows.clone().map(mean).collect();
                fill(&|i, _| values[i]);
            }
            Predictor::ColMean => {
                let from = rows.start.saturating_sub(plan.tile).max(slice.rows.start)..rows.start;
                let mean = |col: usize| mean(from.clone().map(|row| self.value(slice, row, col, tile.step)));
                let values: Vec<i32> = cols.clone().map(mean).collect();
                fill(&|_, j| values[j]);
            }
            Predictor::Linear => {
                let [a, b, c] = plan.parameters.linear.map(i32::from);
                let lefts: Vec<i32> = rows.clone().map(left).collect();
                let tops: Vec<i32> = cols.clone().map(top).collect();
                fill(&|i, j| (a * lefts[i] + b * tops[j] + c + 32) >> 6);
            }
            Predictor::Row(distance) => {
                let distance = usize::from(distance);
                if distance == 0 || distance > rows.start - slice.rows.start {
                    let expected = "a row of the slice above the tile";
                    return Err(CodecError::Field { field: "row distance", found: distance as i64, expected });
                }
                let row = rows.start - distance;
                let values: Vec<i32> = cols.clone().map(|col| self.value(slice, row, col, tile.step)).collect();
                fill(&|_, j| values[j]);
            }
            Predictor::Dictionary(index) => {
                let row = plan.parameters.dictionary.get(usize::from(index)).ok_or(CodecError::Field {
                    field: "dictionary index",
                    found: index.into(),
                    expected: "a row of the dictionary",
                })?;
                let units = i32::from(plan.parameters.dictionary_step) - i32::from(tile.step);
                let values: Vec<i32> = row[cols.clone()].iter().map(|&v| rescale(v.into(), units)).collect();
                fill(&|_, j| values[j]);
            }
        }
        Ok(())
    }

    /// Reconstructs tile `n` from its prediction, which its plane replaces, and its samples, both row-major; keeps
    /// the plane for later tiles.
    pub fn reconstruct(&mut self, slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) {
        reconstruct_tile(slice, n, plane, samples);
        if self.values.is_empty() || slice.tiles[n].format.level_range().is_none() {
            return;
        }
        let (rows, cols) = slice.tile_range(n);
        for (row, line) in rows.zip(plane.chunks_exact(cols.len())) {
            let to = &mut self.values[(row - slice.rows.start) * slice.plan.cols + cols.start..][..cols.len()];
            to.iter_mut().zip(line).for_each(|(v, &p)| *v = p as i8);
        }
    }
}

/// Reconstructs tile `n` from its prediction, which its plane replaces, and its samples, both row-major.
pub fn reconstruct_tile(slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) {
    let tile = &slice.tiles[n];
    let (rows, cols) = slice.tile_range(n);
    let count = rows.len() * cols.len();
    let Some((low, high)) = tile.format.level_range() else { return };
    match tile.mode {
        TileMode::Skip => {}
        TileMode::BitShift(_) => {
            plane.iter_mut().zip(&samples[..count]).for_each(|(p, &state)| *p = bit_shift::level(state as u32));
            return;
        }
        TileMode::Palette(palette) => {
            plane.iter_mut().zip(&samples[..count]).for_each(|(p, &s)| *p = palette.values[s as usize & 7].into());
        }
        TileMode::Coded | TileMode::BitPlanes => add_residual(slice.plan, tile, count, plane, samples),
    }
    plane[..count].iter_mut().for_each(|p| *p = (*p).clamp(low, high));
}

fn add_residual(plan: &TensorPlan, tile: &TilePlan, count: usize, plane: &mut [i32], samples: &[i32]) {
    let centroids = &plan.parameters.centroids;
    let round = 1 << (FRACTION_BITS - 1);
    if !tile.transform.is_identity() && count == 256 {
        let pass = TilePass::new(tile.transform, plan.parameters.learned.as_deref());
        dispatch(
            #[inline(always)]
            || {
                let mut block: [i16; 256] = std::array::from_fn(|i| dequantize(samples[i], tile.coarse, centroids));
                pass.inverse(&mut block);
                let residual = block.iter().map(|&r| (i32::from(r) + round) >> FRACTION_BITS);
                plane.iter_mut().zip(residual).for_each(|(p, r)| *p += r);
            },
        );
    } else if tile.coarse == 0 {
        plane.iter_mut().zip(&samples[..count]).for_each(|(p, &s)| *p += s);
    } else {
        let residual = samples[..count]
            .iter()
            .map(|&s| (i32::from(dequantize(s, tile.coarse, centroids)) + round) >> FRACTION_BITS);
        plane.iter_mut().zip(residual).for_each(|(p, r)| *p += r);
    }
}

fn mean(values: impl ExactSizeIterator<Item = i32>) -> i32 {
    let count = values.len() as i32;
    if count == 0 { 0 } else { (2 * values.sum::<i32>() + count).div_euclid(2 * count) }
}

/// Value of a plane in units of a step `units` quarter octaves finer, rounded.
pub fn rescale(value: i32, units: i32) -> i32 {
    if units == 0 || value == 0 {
        return value;
    }
    let (mantissa, octaves) = (i64::from(MANTISSA[(units.rem_euclid(4) * 2) as usize]), units.div_euclid(4));
    let shift = 15 - octaves;
    match shift {
        ..1 => value.signum() * 32767,
        1..=40 => (((i64::from(value) * mantissa) + (1 << (shift - 1))) >> shift).clamp(-32767, 32767) as i32,
        _ => 0,
    }
}

/// Residual or coefficient of a level, in plane units with [`FRACTION_BITS`]. Reconstruction points
/// are moved by centroids where the quantiser is coarser than the plane.
#[inline]
pub fn dequantize(level: i32, coarse: u8, centroids: &[i8; 3]) -> i16 {
    let magnitude = level.unsigned_abs().min(1 << 14);
    let offset = match (magnitude, coarse) {
        (0, _) | (_, 0) => 0,
        _ => i64::from(centroids[magnitude.min(3) as usize - 1]),
    };
    // Four fraction bits of the level, fifteen of the step.
    let points = (i64::from(magnitude) * 16 + offset).max(0);
    let step = i64::from(MANTISSA[usize::from(coarse % 4) * 2]) << (coarse.min(MAX_COARSE) / 4);
    let shift = 4 + 15 - FRACTION_BITS;
    let value = ((points * step + (1 << (shift - 1))) >> shift).min(i64::from(i16::MAX)) as i16;
    if level < 0 { -value } else { value }
}

/// Scale of every weight of a tile: exact values of 2^(k/8) by row and column.
pub struct TileScales {
    /// Scale index of tile and row, by row.
    rows: [i32; 64],
    /// Scale index of columns.
    cols: [i32; 64],
}

impl TileScales {
    /// Scales of the tile `n` of a slice.
    ///
    /// # Errors
    /// When one is out of range.
    #[inline(always)]
    pub fn new(slice: &SlicePlan, n: usize) -> Result<Self> {
        let (plan, tile) = (slice.plan, &slice.tiles[n]);
        let (rows, cols) = slice.tile_range(n);
        let mut this = Self { rows: [0; 64], cols: [0; 64] };
        let (height, width) = (rows.len(), cols.len());
        this.rows[..height].fill(plan.tile_scale_index(tile));
        if !plan.row_scale.is_empty() {
            this.rows.iter_mut().zip(&plan.row_scale[rows]).for_each(|(r, &v)| *r += UNIT * i32::from(v));
        }
        if !plan.col_scale.is_empty() {
            this.cols.iter_mut().zip(&plan.col_scale[cols]).for_each(|(c, &v)| *c = UNIT * i32::from(v));
        }
        let extreme = |v: &[i32], sign: i32| v.iter().map(|x| sign * x).max().unwrap_or(0) * sign;
        for sign in [1, -1] {
            let index = extreme(&this.rows[..height], sign) + extreme(&this.cols[..width], sign);
            if index.abs() > MAX_INDEX {
                return Err(CodecError::Field { field: "scale index", found: index.into(), expected: "-640..=640" });
            }
        }
        Ok(this)
    }

    /// Scale of all weights of the tile, in a tensor without row and column scales.
    pub fn constant(&self, plan: &TensorPlan) -> Option<f32> {
        (plan.row_scale.is_empty() && plan.col_scale.is_empty()).then(|| self.at(0, 0))
    }

    /// Scale of the weight in row `i` and column `j` of the tile.
    #[inline]
    pub fn at(&self, i: usize, j: usize) -> f32 {
        scale(self.rows[i & 63] + self.cols[j & 63])
    }
}

/// Filters a plane after decoding: adds to every value a share of its neighbours in the tile. Experimental.
pub fn filter_plane(plane: &mut [i32], width: usize, weights: [i8; 2], format: Format) {
    let source = plane.to_vec();
    let height = source.len() / width.max(1);
    let Some((low, high)) = format.level_range() else { return };
    for i in 0..height {
        for j in 0..width {
            let at = |inside: bool, n: usize| if inside { source[n] } else { 0 };
            let n = i * width + j;
            let across = at(j > 0, n.wrapping_sub(1)) + at(j + 1 < width, n + 1);
            let down = at(i > 0, n.wrapping_sub(width)) + at(i + 1 < height, n + width);
            let change = (i32::from(weights[0]) * across + i32::from(weights[1]) * down + 128) >> 8;
            plane[n] = (source[n] + change).clamp(low, high);
        }
    }
}

/// Writes the weights of tile `n` into `out`, little-endian elements of the slice's rows. The weights of a refinement
/// are added to those in `out`. `samples` hold codes and bit patterns, `plane` the values of integer tiles, both
/// row-major.
///
/// # Errors
/// Scales out of range.
pub fn write_tile(slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32], out: &mut [u8]) -> Result<()> {
    let (tile, plan) = (&slice.tiles[n], slice.plan);
    let (rows, cols) = slice.tile_range(n);
    let (width, count) = (cols.len(), rows.len() * cols.len());
    let bits = plan.dtype.bits();
    let stride = plan.cols * bits / 8;
    let out = &mut out[(rows.start - slice.rows.start) * stride + cols.start * bits / 8..];
    if tile.format == Format::Lossless {
        for (line, to) in samples[..count].chunks_exact(width).zip(out.chunks_mut(stride)) {
            write_row(plan.dtype, line, to);
        }
        return Ok(());
    }
    let scales = TileScales::new(slice, n)?;
    if let (None, Some(weights)) = (tile.format.minifloat(), plan.parameters.filter) {
        filter_plane(&mut plane[..count], width, weights, tile.format);
    }
    let from = if tile.format.minifloat().is_some() { &samples[..count] } else { &plane[..count] };
    dispatch(
        #[inline(always)]
        || {
            for (i, (line, to)) in from.chunks_exact(width).zip(out.chunks_mut(stride)).enumerate() {
                let mut values = [0.0f32; 64];
                match tile.format.minifloat() {
                    Some(float) => values.iter_mut().zip(line).for_each(|(v, &s)| *v = float.decode(s as u8)),
                    None => values.iter_mut().zip(line).for_each(|(v, &p)| *v = p as f32),
                }
                values[..width].iter_mut().enumerate().for_each(|(j, v)| *v *= scales.at(i, j));
                let mut patterns = [0i32; 64];
                if plan.parameters.refinement.is_some() {
                    let before = to.chunks_exact(bits / 8).map(pattern_at);
                    for ((pattern, before), value) in patterns[..width].iter_mut().zip(before).zip(values) {
                        let known = plan.dtype.value_of(before);
                        // What is not finite stays as it is: not-a-numbers have more than one pattern.
                        let finer = if known.is_finite() { plan.dtype.pattern_of(known + value) } else { before };
                        *pattern = finer as i32;
                    }
                } else {
                    let pairs = patterns[..width].iter_mut().zip(values);
                    match plan.dtype {
                        Dtype::Bf16 => pairs.for_each(|(p, v)| *p = bf16(v).into()),
                        dtype => pairs.for_each(|(p, v)| *p = dtype.pattern_of(v) as i32),
                    }
                }
                write_row(plan.dtype, &patterns[..width], to);
            }
        },
    );
    Ok(())
}

/// Pattern of a little-endian element.
#[inline(always)]
pub(crate) fn pattern_at(bytes: &[u8]) -> u32 {
    match bytes {
        [a, b] => u16::from_le_bytes([*a, *b]).into(),
        _ => bytes.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b)),
    }
}

/// bf16 pattern of a finite value, rounded to nearest even.
#[inline(always)]
pub(crate) fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Patterns as little-endian elements.
#[inline(always)]
fn write_row(dtype: Dtype, line: &[i32], to: &mut [u8]) {
    match dtype.bits() {
        4 => line.chunks(2).zip(to).for_each(|(p, b)| *b = (p[0] & 15 | p.get(1).unwrap_or(&0) << 4) as u8),
        8 => line.iter().zip(to).for_each(|(&p, b)| *b = p as u8),
        16 => line.iter().zip(to.chunks_exact_mut(2)).for_each(|(&p, b)| b.copy_from_slice(&(p as u16).to_le_bytes())),
        _ => line.iter().zip(to.chunks_exact_mut(4)).for_each(|(&p, b)| b.copy_from_slice(&p.to_le_bytes())),
    }
}

/// Prediction, reconstruction and output of one tile.
pub(crate) fn finish_tile(
    slice: &SlicePlan,
    planes: &mut Planes,
    n: usize,
    plane: &mut [i32],
    samples: &[i32],
    out: &mut [u8],
) -> Result<()> {
    if slice.tiles[n].format.level_range().is_some() {
        planes.predict(slice, n, plane)?;
        planes.reconstruct(slice, n, plane, samples);
    }
    write_tile(slice, n, plane, samples, out)
}
