//! Products with a matrix in packed tiles.

#![allow(clippy::needless_range_loop)] // Loops over lanes by number are what the compiler makes wide.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use waterfill_checkpoint::packed::{Bucket, PackedFormat, PackedTensor};
use waterfill_checkpoint::sparse::StructuredTensor;
use waterfill_checkpoint::{Checkpoint, Control};
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::{TILE, dispatch};
use waterfill_model::Linear;

use crate::sparse::SparseLinear;

/// A linear layer that keeps its weights as stored: tiles, and 2:4 sparse refinements of them.
pub struct PackedLinear {
    base: PackedTensor,
    refinements: Vec<SparseLinear>,
}

impl PackedLinear {
    /// From packed tiles.
    pub fn new(base: PackedTensor) -> Self {
        Self { base, refinements: vec![] }
    }

    /// Opens the weight `name`, with its quality layers apart where they are 2:4 sparse.
    ///
    /// # Errors
    /// As [`Checkpoint::decode_packed`].
    pub fn open(checkpoint: &Checkpoint, name: &str) -> waterfill_checkpoint::Result<Self> {
        Ok(match checkpoint.decode_structured(name, Control::default())? {
            Some(StructuredTensor { base, refinements }) => {
                Self { base, refinements: refinements.into_iter().map(SparseLinear::new).collect() }
            }
            None => Self::new(checkpoint.decode_packed(name, Control::default())?),
        })
    }

    /// The tiles.
    pub fn tensor(&self) -> &PackedTensor {
        &self.base
    }

    /// Refinements, if they are apart.
    pub fn refinements(&self) -> &[SparseLinear] {
        &self.refinements
    }

    /// Bytes in memory.
    pub fn resident_bytes(&self) -> usize {
        let sparse = self.refinements.iter().map(|r| r.tensor().resident_bytes());
        self.base.resident_bytes() + sparse.sum::<usize>()
    }

    /// `x` `[tokens, cols]` times the transposed matrix: `[tokens, rows]`. Rows of tiles are tasks, so the result
    /// does not depend on the number of threads.
    pub fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let PackedTensor { rows, cols, .. } = self.base;
        let tokens = x.len() / cols.max(1);
        // Whole tiles of inputs, once as they are and once with the columns' scales; padding meets zeros.
        let across = self.base.tiles_across();
        let padded = |scales: &[f32]| -> Vec<f32> {
            let mut all = vec![0.0; tokens * across * TILE];
            for (to, from) in all.chunks_exact_mut(across * TILE).zip(x.chunks_exact(cols)) {
                to[..cols].copy_from_slice(from);
                to.iter_mut().zip(scales).for_each(|(v, s)| *v *= s);
            }
            all
        };
        let (plain, scaled) = (padded(&[]), padded(&self.base.col_factors()));
        let task = |n: usize| self.tile_row(n, tokens, &plain, &scaled);
        let parts: Vec<Vec<f32>> = (0..rows.div_ceil(TILE)).into_par_iter().map(task).collect();
        let mut out = vec![0.0; tokens * rows];
        for (n, part) in parts.iter().enumerate() {
            for (t, values) in part.chunks_exact(TILE).enumerate() {
                let top = n * TILE;
                let count = TILE.min(rows - top);
                out[t * rows + top..][..count].copy_from_slice(&values[..count]);
            }
        }
        self.refinements.iter().for_each(|sparse| sparse.add_to(x, &mut out));
        out
    }

    /// Levels of a tile of integers or of codes of a trellis, which follow the `states` before its row.
    fn levels(&self, bucket: &Bucket, tile: usize, column: usize, states: &[u32]) -> Option<[i16; TILE * TILE]> {
        let trellis = self.base.trellis.filter(|_| bucket.format.code_bits().is_some());
        if trellis.is_none() && bucket.format.level_bits().is_none() {
            return None;
        }
        Some(dispatch(
            #[inline(always)]
            || match trellis {
                Some(trellis) => {
                    let states = std::array::from_fn(|j| states[column * TILE + j]);
                    bucket.trellis_levels(tile, trellis.states, states)
                }
                None => bucket.format.unpack(bucket.tile(tile)).map(i16::from),
            },
        ))
    }

    /// Outputs of a row of tiles, `[tokens, 16]`.
    fn tile_row(&self, n: usize, tokens: usize, plain: &[f32], scaled: &[f32]) -> Vec<f32> {
        let across = self.base.tiles_across();
        let empty = || vec![Lanes::default(); tokens];
        let (mut codes, mut elements) = (empty(), empty());
        let states = self.base.states_before(n);
        for bucket in &self.base.buckets {
            let is_plain = matches!(bucket.format, PackedFormat::Plain(_));
            let (x, sums) = if is_plain { (plain, &mut elements) } else { (scaled, &mut codes) };
            for (tile, column) in bucket.tiles_of_row(n).zip(bucket.columns_of_row(n)) {
                let left = column * TILE;
                let factor = bucket.scale_index(tile).map_or(1.0, scale);
                let levels = self.levels(bucket, tile, column, &states);
                let values = levels.is_none().then(|| self.base.tile_values(bucket, tile, column, &states));
                for (sums, x) in sums.iter_mut().zip(x.chunks_exact(across * TILE)) {
                    let x: [f32; TILE] = std::array::from_fn(|l| x[left + l] * factor);
                    match (&levels, &values) {
                        (Some(levels), _) => dispatch(
                            #[inline(always)]
                            || add_levels(levels, &x, sums),
                        ),
                        (None, Some(values)) => add_values(values, &x, sums),
                        (None, None) => {}
                    }
                }
            }
        }
        // Scales of rows are of codes only.
        let row = |(i, (codes, elements)): (usize, (&[f32; TILE], &[f32; TILE]))| {
            let factor = self.base.row_scales.get(n * TILE + i).map_or(1.0, |&k| scale(UNIT * i32::from(k)));
            codes.iter().sum::<f32>() * factor + elements.iter().sum::<f32>()
        };
        let token = |(codes, elements): (&Lanes, &Lanes)| -> Vec<f32> {
            codes.iter().zip(elements).enumerate().map(row).collect()
        };
        codes.iter().zip(&elements).flat_map(token).collect()
    }
}

/// Products of a tile with its inputs, kept apart by row and lane: the rows' sums are added up at the end.
type Lanes = [[f32; TILE]; TILE];

/// Adds the products of levels and 16 inputs.
#[inline(always)]
fn add_levels(levels: &[i16; TILE * TILE], x: &[f32; TILE], sums: &mut Lanes) {
    for i in 0..TILE {
        for j in 0..TILE {
            sums[i][j] += f32::from(levels[TILE * i + j]) * x[j];
        }
    }
}

/// Adds the products of small floating-point codes or elements, and 16 inputs.
fn add_values(values: &[f32; TILE * TILE], x: &[f32; TILE], sums: &mut Lanes) {
    for (sums, values) in sums.iter_mut().zip(values.chunks_exact(TILE)) {
        sums.iter_mut().zip(values).zip(x).for_each(|((sum, value), x)| *sum += value * x);
    }
}

impl Linear for PackedLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let tokens = x.dim(0)?;
        let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
        Tensor::from_vec(self.multiply(&values), (tokens, self.base.rows), &Device::Cpu)
    }

    fn rows(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let mut out = Vec::with_capacity(ids.len() * self.base.cols);
        for &id in ids {
            let row = self.base.row(id as usize).filter(|_| self.refinements.is_empty());
            let Some(row) = row else {
                return Err(candle_core::Error::Msg(format!("row {id} of {} rows in tiles", self.base.rows)));
            };
            out.extend(row);
        }
        Tensor::from_vec(out, (ids.len(), self.base.cols), &Device::Cpu)
    }
}
