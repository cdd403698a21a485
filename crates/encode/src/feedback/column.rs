//! Levels of one column of a slice.

use std::ops::Range;

use waterfill_codec::plane::TileScales;
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::slice::{SlicePlan, neighbour_bin};
use waterfill_codec::table::class_of;
use waterfill_codec::{Format, Result, TensorPlan, on_this_machine};

use super::FeedbackInput;
use super::viterbi::{PathSearch, Sample};
use crate::search::Rounding;

/// What the rows of a tile have in common.
#[derive(Clone, Copy)]
struct RowTile {
    format: Format,
    range: (i32, i32),
    /// Scale index without the column's.
    scale: i32,
    /// Spread of levels without row's and column's.
    spread: i32,
    importance: f32,
}

/// Quantises the columns of a slice from the first to the last.
pub(super) struct ColumnCoder<'a> {
    input: &'a FeedbackInput<'a>,
    rows: Range<usize>,
    rounding: Rounding,
    path: Option<PathSearch>,
    /// Of every row of tiles, the tile of the current column.
    tiles: Vec<RowTile>,
    /// Samples of the current column, and the rows of those that the trellis takes.
    samples: Vec<Sample>,
    walked: Vec<usize>,
    levels: Vec<i32>,
    /// Magnitudes of the two columns before.
    before: [Vec<u16>; 2],
}

fn entry(vector: &[i8], i: usize) -> i32 {
    vector.get(i).map_or(0, |&v| i32::from(v))
}

impl<'a> ColumnCoder<'a> {
    /// # Errors
    /// Scales out of range.
    pub fn new(input: &'a FeedbackInput<'a>, rows: Range<usize>) -> Result<Self> {
        let plan = input.plan;
        let slice = SlicePlan::of(plan, rows.clone());
        let mut lossy = (0..slice.tiles.len()).filter(|&n| slice.tiles[n].format != Format::Lossless);
        lossy.try_for_each(|n| TileScales::new(&slice, n).map(|_| ()))?;
        let path = plan.parameters.trellis.map(|trellis| PathSearch::new(trellis, input.price));
        Ok(Self {
            rounding: Rounding::new(input.price, &[0; 3]),
            path,
            tiles: Vec::new(),
            samples: Vec::new(),
            walked: Vec::new(),
            levels: vec![0; rows.len()],
            before: [vec![0; rows.len()], vec![0; rows.len()]],
            rows,
            input,
        })
    }

    /// Quantises column `col`, whose weights with feedback are `target`; sets its errors, and its
    /// samples in the row-major `samples` of the slice, whose rows of weights are `weights`.
    pub fn column(&mut self, col: usize, target: &[f32], weights: &[f32], errors: &mut [f32], samples: &mut [i16]) {
        on_this_machine(
            #[inline(always)]
            || self.decide(col, target, weights, errors, samples),
        );
    }

    fn enter_tiles(&mut self, col: usize) {
        let (plan, importance) = (self.input.plan, self.input.importance);
        self.tiles.clear();
        for top in self.rows.clone().step_by(plan.tile) {
            let n = plan.tile_index(top, col);
            let tile = &plan.tiles[n];
            let shift = tile.format.minifloat().map_or(0, |m| m.scale_shift());
            self.tiles.push(RowTile {
                format: tile.format,
                range: tile.format.level_range().unwrap_or((0, 0)),
                scale: plan.step_base + UNIT * i32::from(tile.step) - shift,
                spread: plan.spread_base + i32::from(tile.spread) - i32::from(tile.step),
                importance: importance.tiles[n],
            });
        }
    }

    #[inline(always)]
    fn decide(&mut self, col: usize, target: &[f32], weights: &[f32], errors: &mut [f32], samples: &mut [i16]) {
        let (plan, importance) = (self.input.plan, self.input.importance);
        if col.is_multiple_of(plan.tile) {
            self.enter_tiles(col);
        }
        let (col_scale, col_spread) = (entry(&plan.col_scale, col), entry(&plan.col_spread, col));
        let col_importance = importance.cols[col];
        self.samples.clear();
        self.walked.clear();
        for (i, row) in self.rows.clone().enumerate() {
            let tile = &self.tiles[i / plan.tile];
            let row_scale = entry(&plan.row_scale, row);
            let step = scale(tile.scale + UNIT * (row_scale + col_scale));
            let mut spread = tile.spread + entry(&plan.row_spread, row) + col_spread - row_scale - col_scale;
            if let Some(adjust) = &plan.parameters.neighbours {
                spread += i32::from(adjust[neighbour_bin(self.before[0][i], self.before[1][i], spread)]);
            }
            let weight = tile.importance * importance.rows[row] * col_importance * step * step;
            let sample = Sample { value: target[i] / step, weight, spread, range: tile.range };
            self.levels[i] = match tile.format {
                Format::Lossless => 0,
                format if format.minifloat().is_some() => {
                    format.minifloat().map_or(0, |kind| kind.encode(sample.value).into())
                }
                _ if self.path.is_some() => {
                    self.samples.push(sample);
                    self.walked.push(i);
                    0
                }
                _ => self.rounding.level(sample.value, weight, class_of(spread), tile.range),
            };
        }
        if let Some(path) = &mut self.path {
            let mut found = vec![0; self.samples.len()];
            path.search(&self.samples, &mut found);
            self.walked.iter().zip(found).for_each(|(&i, level)| self.levels[i] = level);
        }
        for (i, row) in self.rows.clone().enumerate() {
            let tile = &self.tiles[i / plan.tile];
            let level = self.levels[i];
            let weight = weights[i * plan.cols + col];
            if tile.format != Format::Lossless {
                let step = scale(tile.scale + UNIT * (entry(&plan.row_scale, row) + col_scale));
                let value = match tile.format.minifloat() {
                    Some(kind) => kind.decode(level as u8),
                    None => level as f32,
                };
                errors[i] = decoded(plan, value * step) - weight;
            }
            samples[i * plan.cols + col] = level as i16;
            if plan.parameters.neighbours.is_some() {
                self.before[1][i] = self.before[0][i];
                let counts = tile.format.level_range().is_some();
                self.before[0][i] = if counts { level.unsigned_abs() as u16 } else { 0 };
            }
        }
    }
}

/// What a product is decoded as.
#[inline(always)]
fn decoded(plan: &TensorPlan, value: f32) -> f32 {
    plan.dtype.value_of(plan.dtype.pattern_of(value))
}
