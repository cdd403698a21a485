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

/// Rows behind those that are decided together that a path looks ahead to.
const AHEAD: usize = 40;

/// Rows that are decided together where errors are fed back over rows: a trellis' path cannot see what
/// its own levels do to those below.
pub(super) const fn rows_together(trellis: bool) -> usize {
    if trellis { 8 } else { 1 }
}

/// Quantises the columns of a slice from the first to the last.
pub(super) struct ColumnCoder<'a> {
    input: &'a FeedbackInput<'a>,
    rows: Range<usize>,
    /// The factor that spreads errors over rows, row-major, of the whole matrix.
    upper: Option<&'a [f32]>,
    rounding: Rounding,
    path: Option<PathSearch>,
    /// Of every row of tiles, the tile of the current column.
    tiles: Vec<RowTile>,
    /// Of the current column: samples, whose values are targets in steps, steps, levels.
    samples: Vec<Sample>,
    steps: Vec<f32>,
    levels: Vec<i32>,
    /// What rows above add to the targets.
    offsets: Vec<f32>,
    /// Rows that the trellis takes, their samples and levels.
    walked: Vec<usize>,
    run: Vec<Sample>,
    found: Vec<i32>,
    /// Magnitudes of the two columns before.
    before: [Vec<u16>; 2],
}

fn entry(vector: &[i8], i: usize) -> i32 {
    vector.get(i).map_or(0, |&v| i32::from(v))
}

impl<'a> ColumnCoder<'a> {
    /// # Errors
    /// Scales out of range.
    pub fn new(input: &'a FeedbackInput<'a>, rows: Range<usize>, upper: Option<&'a [f32]>) -> Result<Self> {
        let plan = input.plan;
        let slice = SlicePlan::of(plan, rows.clone());
        let mut lossy = (0..slice.tiles.len()).filter(|&n| slice.tiles[n].format != Format::Lossless);
        lossy.try_for_each(|n| TileScales::new(&slice, n).map(|_| ()))?;
        let path = plan.parameters.trellis.map(|trellis| PathSearch::new(trellis, input.price));
        Ok(Self {
            rounding: Rounding::new(input.price, &[0; 3]),
            path,
            upper,
            tiles: Vec::new(),
            samples: Vec::new(),
            steps: Vec::new(),
            levels: vec![0; rows.len()],
            offsets: vec![0.0; rows.len()],
            walked: Vec::new(),
            run: Vec::new(),
            found: Vec::new(),
            before: [vec![0; rows.len()], vec![0; rows.len()]],
            rows,
            input,
        })
    }

    /// Quantises column `col`, whose weights with feedback are `target`; sets its errors, what of them
    /// rows below are to see (before: what rows above add), and its samples in the row-major `samples`
    /// of the slice, whose rows of weights are `weights`.
    pub fn column(
        &mut self,
        col: usize,
        target: &[f32],
        weights: &[f32],
        (errors, seen): (&mut [f32], &mut [f32]),
        samples: &mut [i16],
    ) {
        on_this_machine(
            #[inline(always)]
            || {
                self.prepare(col, target);
                match self.upper {
                    None => self.decide(0..target.len(), target.len(), &mut 0),
                    Some(upper) => self.decide_downwards(col, upper, target, seen),
                }
                self.keep(col, weights, errors, samples);
            },
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

    /// Samples of the column without what rows add.
    #[inline(always)]
    fn prepare(&mut self, col: usize, target: &[f32]) {
        let (plan, importance) = (self.input.plan, self.input.importance);
        if col.is_multiple_of(plan.tile) {
            self.enter_tiles(col);
        }
        let (col_scale, col_spread) = (entry(&plan.col_scale, col), entry(&plan.col_spread, col));
        self.samples.clear();
        self.steps.clear();
        for (i, row) in self.rows.clone().enumerate() {
            let tile = &self.tiles[i / plan.tile];
            let row_scale = entry(&plan.row_scale, row);
            let step = scale(tile.scale + UNIT * (row_scale + col_scale));
            let mut spread = tile.spread + entry(&plan.row_spread, row) + col_spread - row_scale - col_scale;
            if let Some(adjust) = &plan.parameters.neighbours {
                spread += i32::from(adjust[neighbour_bin(self.before[0][i], self.before[1][i], spread)]);
            }
            let weight = tile.importance * importance.rows[row] * importance.cols[col] * step * step;
            self.samples.push(Sample { value: target[i] / step, weight, spread, range: tile.range });
            self.steps.push(step);
        }
    }

    /// Levels of `rows`, looking ahead to row `end`; the trellis is in `state` before and after.
    #[inline(always)]
    fn decide(&mut self, rows: Range<usize>, end: usize, state: &mut u8) {
        self.run.clear();
        self.walked.clear();
        for i in rows.start..end {
            let format = self.tiles[i / self.input.plan.tile].format;
            let mut sample = self.samples[i];
            if self.upper.is_some() {
                sample.value -= self.offsets[i] / self.steps[i];
            }
            match format.level_range() {
                Some(_) if self.path.is_some() => {
                    self.run.push(sample);
                    self.walked.push(i);
                }
                _ if i >= rows.end => {}
                Some(range) => {
                    let class = class_of(sample.spread);
                    self.levels[i] = self.rounding.level(sample.value, sample.weight, class, range);
                }
                None => self.levels[i] = format.minifloat().map_or(0, |kind| kind.encode(sample.value).into()),
            }
        }
        if let Some(path) = &mut self.path {
            self.found.resize(self.run.len(), 0);
            path.search(*state, &self.run, &mut self.found);
            let trellis = path.trellis();
            for (&i, &level) in self.walked.iter().zip(&self.found).filter(|(i, _)| **i < rows.end) {
                self.levels[i] = level;
                *state = trellis.next(*state, level);
            }
        }
    }

    /// Levels of the column a few rows at a time, each with what those above make of it.
    #[inline(always)]
    fn decide_downwards(&mut self, col: usize, upper: &[f32], target: &[f32], seen: &mut [f32]) {
        let (count, side) = (self.rows.len(), self.input.plan.rows);
        self.offsets.copy_from_slice(seen);
        let together = rows_together(self.path.is_some());
        let ahead = if self.path.is_some() { AHEAD } else { 0 };
        let mut state = 0;
        for start in (0..count).step_by(together) {
            let end = count.min(start + together);
            self.decide(start..end, count.min(end + ahead), &mut state);
            for i in start..end {
                seen[i] = match self.tiles[i / self.input.plan.tile].format {
                    // The weight itself, which the target is not.
                    Format::Lossless => self.original(i, col) - target[i],
                    format => self.value(format, i) - target[i],
                };
                let factors = &upper[(self.rows.start + i) * side + self.rows.start..][..count];
                let error = seen[i];
                self.offsets[end..].iter_mut().zip(&factors[end..]).for_each(|(o, f)| *o += error * f);
            }
        }
    }

    /// The weight as it is.
    fn original(&self, i: usize, col: usize) -> f32 {
        self.input.weights[(self.rows.start + i) * self.input.plan.cols + col]
    }

    /// What the level of row `i` is decoded as.
    #[inline(always)]
    fn value(&self, format: Format, i: usize) -> f32 {
        let value = match format.minifloat() {
            Some(kind) => kind.decode(self.levels[i] as u8),
            None => self.levels[i] as f32,
        };
        decoded(self.input.plan, value * self.steps[i])
    }

    #[inline(always)]
    fn keep(&mut self, col: usize, weights: &[f32], errors: &mut [f32], samples: &mut [i16]) {
        let plan = self.input.plan;
        for i in 0..self.rows.len() {
            let format = self.tiles[i / plan.tile].format;
            if format != Format::Lossless {
                errors[i] = self.value(format, i) - weights[i * plan.cols + col];
            }
            samples[i * plan.cols + col] = self.levels[i] as i16;
            if plan.parameters.neighbours.is_some() {
                self.before[1][i] = self.before[0][i];
                let counts = format.level_range().is_some();
                self.before[0][i] = if counts { self.levels[i].unsigned_abs() as u16 } else { 0 };
            }
        }
    }
}

/// What a product is decoded as.
#[inline(always)]
fn decoded(plan: &TensorPlan, value: f32) -> f32 {
    plan.dtype.value_of(plan.dtype.pattern_of(value))
}
