//! Levels of one column of a slice.

use std::ops::Range;

use waterfill_codec::entropy::tables::class_of;
use waterfill_codec::recon::reconstruct::TileScales;
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::syntax::bit_shift;
use waterfill_codec::syntax::slice::{SlicePlan, neighbour_bin};
use waterfill_codec::{Format, Result, TensorPlan, TileMode, TilePlan, dispatch};

use super::bit_shift::{BitShiftSearch, CodeSample};
use super::input::LdlqInput;
use super::planes::{best_step, level_range};
use super::survivors::{Kind, Survivors, WINDOW};
use super::viterbi::{PathSearch, Sample};
use crate::rdo::Rounding;

/// Rows that are settled at a time in a bit-shift trellis where rows see each other's errors, and rows behind them that the
/// path is searched over: what a code leads to is decided within the bits of a state.
const SETTLED: usize = 32;
const AHEAD: usize = 16;

/// The common properties of the rows of a tile.
#[derive(Clone, Copy)]
struct RowTile {
    format: Format,
    range: (i32, i32),
    /// Scale index without the column's.
    scale: i32,
    /// Spread of levels without row's and column's.
    sigma: i32,
    loss_weights: f32,
    /// Bits of a code of the bit-shift trellis.
    code_bits: Option<u8>,
}

/// Quantizes the columns of a slice from the first to the last.
pub(super) struct ColumnCoder<'a> {
    input: &'a LdlqInput<'a>,
    rows: Range<usize>,
    /// The current column.
    col: usize,
    /// The factor that spreads errors over rows, row-major, of the whole matrix.
    upper: Option<&'a [f32]>,
    rounding: Rounding,
    path: Option<PathSearch>,
    /// Steps of the slice's tiles, in raster order.
    tile_steps: Vec<i16>,
    /// The tile of the current column in every row of tiles.
    tiles: Vec<RowTile>,
    /// The current column: samples (values are targets in steps), steps, levels.
    samples: Vec<Sample>,
    steps: Vec<f32>,
    levels: Vec<i32>,
    /// Additions of the rows above to the targets: of all of them, and of those far above.
    offsets: Vec<f32>,
    far: Vec<f32>,
    /// Rows that the trellis takes, their samples and levels.
    walked: Vec<usize>,
    run: Vec<Sample>,
    found: Vec<i32>,
    /// The same search where rows see errors of those above.
    survivors: Option<Survivors>,
    /// The search through a bit-shift trellis, its samples and states.
    codes: Option<BitShiftSearch>,
    coded: Vec<CodeSample>,
    planned: Vec<f32>,
    states: Vec<u32>,
    /// Magnitudes of the two columns before.
    before: [Vec<u16>; 2],
}

fn entry(vector: &[i8], i: usize) -> i32 {
    vector.get(i).map_or(0, |&v| i32::from(v))
}

impl<'a> ColumnCoder<'a> {
    /// # Errors
    /// Scales out of range.
    pub fn new(input: &'a LdlqInput<'a>, rows: Range<usize>, upper: Option<&'a [f32]>) -> Result<Self> {
        let plan = input.plan;
        let slice = SlicePlan::of(plan, rows.clone());
        let mut lossy = (0..slice.tiles.len()).filter(|&n| slice.tiles[n].format != Format::Lossless);
        lossy.try_for_each(|n| TileScales::new(&slice, n).map(|_| ()))?;
        let path = plan.parameters.trellis.map(|trellis| PathSearch::new(trellis, input.lambda));
        let survivors = plan.parameters.trellis.filter(|_| upper.is_some());
        let survivors = survivors.map(|trellis| Survivors::new(trellis, input.lambda));
        Ok(Self {
            rounding: Rounding::new(input.lambda, &[0; 3]),
            path,
            upper,
            tile_steps: slice.tiles.iter().map(|tile| tile.step).collect(),
            tiles: Vec::new(),
            samples: Vec::new(),
            steps: Vec::new(),
            levels: vec![0; rows.len()],
            offsets: vec![0.0; rows.len()],
            walked: Vec::new(),
            run: Vec::new(),
            found: vec![0; rows.len()],
            survivors,
            codes: plan.parameters.bit_shift.map(BitShiftSearch::new),
            coded: Vec::new(),
            planned: Vec::new(),
            states: Vec::new(),
            far: vec![0.0; rows.len()],
            before: [vec![0; rows.len()], vec![0; rows.len()]],
            rows,
            col: 0,
            input,
        })
    }

    /// Quantizes column `col` towards `target`, its weights with feedback. Sets `errors` and, in the row-major `samples`
    /// of the slice, the column of samples. `seen` holds the additions of rows above and becomes the errors that rows below
    /// make up for. `weights` are the slice's, row-major.
    pub fn column(
        &mut self,
        col: usize,
        target: &[f32],
        weights: &[f32],
        (errors, seen): (&mut [f32], &mut [f32]),
        samples: &mut [i16],
    ) {
        dispatch(
            #[inline(always)]
            || {
                self.prepare(col, target);
                match (self.upper, self.path.is_some()) {
                    _ if self.codes.is_some() => self.walk_codes(col, target, seen),
                    (None, _) => self.decide(),
                    (Some(upper), true) => self.walk_downwards(col, upper, target, seen),
                    (Some(upper), false) => self.decide_downwards(col, upper, target, seen),
                }
                self.keep(col, weights, errors, samples);
            },
        );
    }

    /// Steps of the slice's tiles, in raster order.
    pub fn tile_steps(&self) -> &[i16] {
        &self.tile_steps
    }

    /// Where levels have a fixed number of bits, fits the steps of the tiles that begin in column `col` to the targets of it
    /// and the columns behind it, column by column.
    pub fn fit_steps(&mut self, col: usize, targets: &[f32]) {
        let plan = self.input.plan;
        if !self.input.fitted || !col.is_multiple_of(plan.tile) {
            return;
        }
        for (down, top) in self.rows.clone().step_by(plan.tile).enumerate() {
            let step = &mut self.tile_steps[down * plan.tiles_across() + col / plan.tile];
            *step = best_step(self.input, plan.tile_index(top, col), *step, self.rows.clone(), targets);
        }
    }

    fn enter_tiles(&mut self, col: usize) {
        let (plan, loss_weights) = (self.input.plan, self.input.loss_weights);
        self.tiles.clear();
        for (down, top) in self.rows.clone().step_by(plan.tile).enumerate() {
            let n = plan.tile_index(top, col);
            let step = self.tile_steps[down * plan.tiles_across() + col / plan.tile];
            let tile = TilePlan { step, ..plan.tiles[n] };
            let shift = tile.format.minifloat().map_or(0, |m| m.scale_shift());
            self.tiles.push(RowTile {
                // A skipped tile is exact as it is.
                format: if tile.mode == TileMode::Skip { Format::Lossless } else { tile.format },
                range: level_range(self.input, n, tile.format).unwrap_or((0, 0)),
                scale: plan.step_base + UNIT * i32::from(tile.step) - shift,
                sigma: plan.sigma_base + i32::from(tile.sigma) - i32::from(tile.step),
                loss_weights: loss_weights.tiles[n],
                code_bits: if let TileMode::BitShift(bits) = tile.mode { Some(bits) } else { None },
            });
        }
    }

    /// Samples of the column without what rows add.
    #[inline(always)]
    fn prepare(&mut self, col: usize, target: &[f32]) {
        let (plan, loss_weights) = (self.input.plan, self.input.loss_weights);
        self.col = col;
        if col.is_multiple_of(plan.tile) {
            self.enter_tiles(col);
        }
        let (col_scale, col_sigma) = (entry(&plan.col_scale, col), entry(&plan.col_sigma, col));
        self.samples.clear();
        self.steps.clear();
        for (i, row) in self.rows.clone().enumerate() {
            let tile = &self.tiles[i / plan.tile];
            let row_scale = entry(&plan.row_scale, row);
            let step = scale(tile.scale + UNIT * (row_scale + col_scale));
            let mut sigma = tile.sigma + entry(&plan.row_sigma, row) + col_sigma - row_scale - col_scale;
            if let Some(adjust) = &plan.parameters.neighbours {
                sigma += i32::from(adjust[neighbour_bin(self.before[0][i], self.before[1][i], sigma)]);
            }
            let weight = tile.loss_weights * loss_weights.rows[row] * loss_weights.cols[col] * step * step;
            self.samples.push(Sample { value: target[i] / step, weight, sigma, range: tile.range });
            self.steps.push(step);
        }
    }

    /// Level of row `i` rounded alone, where it has `more` steps than its sample says.
    #[inline(always)]
    fn alone(&self, i: usize, more: f32) -> i32 {
        let place = (self.rows.start + i) * self.input.plan.cols + self.col;
        if self.input.dropped.is_some_and(|dropped| dropped[place]) {
            return 0;
        }
        let format = self.tiles[i / self.input.plan.tile].format;
        let sample = &self.samples[i];
        match format.level_range() {
            Some(_) => self.rounding.level(sample.value + more, sample.weight, class_of(sample.sigma), sample.range),
            None => format.minifloat().map_or(0, |kind| kind.encode(sample.value + more).into()),
        }
    }

    /// Levels of all rows, which do not see each other's errors.
    #[inline(always)]
    fn decide(&mut self) {
        self.run.clear();
        self.walked.clear();
        for i in 0..self.samples.len() {
            match self.tiles[i / self.input.plan.tile].format.level_range() {
                Some(_) if self.path.is_some() => {
                    self.run.push(self.samples[i]);
                    self.walked.push(i);
                }
                _ => self.levels[i] = self.alone(i, 0.0),
            }
        }
        if let Some(path) = &mut self.path {
            self.found.resize(self.run.len(), 0);
            path.search(&self.run, &mut self.found);
            self.walked.iter().zip(&self.found).for_each(|(&i, &level)| self.levels[i] = level);
        }
    }

    /// Error of row `i` that later columns make up for.
    #[inline(always)]
    fn seen(&self, i: usize, col: usize, target: f32) -> f32 {
        match self.tiles[i / self.input.plan.tile].format {
            // The weight itself, which the target is not.
            Format::Lossless => self.original(i, col) - target,
            format => self.value(format, i, col) - target,
        }
    }

    /// Factors by which an error of row `i` spreads over the rows of this slice.
    #[inline(always)]
    fn factors<'u>(&self, upper: &'u [f32], i: usize) -> &'u [f32] {
        let row = &upper[(self.rows.start + i) * self.input.plan.rows..][..self.input.plan.rows];
        &row[self.rows.start..self.rows.end]
    }

    /// Levels of the column one row after the other, each towards its target less the errors of those above.
    #[inline(always)]
    fn decide_downwards(&mut self, col: usize, upper: &[f32], target: &[f32], seen: &mut [f32]) {
        self.offsets.copy_from_slice(seen);
        for i in 0..self.rows.len() {
            self.levels[i] = self.alone(i, -self.offsets[i] / self.steps[i]);
            let error = self.seen(i, col, target[i]);
            seen[i] = error;
            let factors = self.factors(upper, i);
            self.offsets[i + 1..].iter_mut().zip(&factors[i + 1..]).for_each(|(o, f)| *o += error * f);
        }
    }

    /// Levels of the column by a path through the trellis, where every survivor carries the effect of its own errors on
    /// the rows below.
    #[inline(always)]
    fn walk_downwards(&mut self, col: usize, upper: &[f32], target: &[f32], seen: &mut [f32]) {
        let Some(mut survivors) = self.survivors.take() else { return };
        let count = self.rows.len();
        // Additions of settled rows to all rows below, and to those beyond the survivors' own account.
        self.offsets.copy_from_slice(seen);
        self.far.copy_from_slice(seen);
        survivors.begin();
        for i in 0..count {
            let format = self.tiles[i / self.input.plan.tile].format;
            let kind = match format {
                Format::Lossless => Kind::Exact(self.original(i, col) - target[i]),
                _ if format.level_range().is_some() => Kind::Level,
                _ => Kind::Fine,
            };
            let factors = &self.factors(upper, i)[i + 1..];
            survivors.advance(kind, &self.samples[i], self.steps[i], self.far[i], factors);
            for i in survivors.settle(i + 1 == count, &mut self.found) {
                self.levels[i] = match self.tiles[i / self.input.plan.tile].format.level_range() {
                    Some(_) => self.found[i],
                    None => self.alone(i, -self.offsets[i] / self.steps[i]),
                };
                let error = self.seen(i, col, target[i]);
                seen[i] = error;
                let factors = self.factors(upper, i);
                let beyond = count.min(i + 1 + WINDOW);
                self.offsets[i + 1..].iter_mut().zip(&factors[i + 1..]).for_each(|(o, f)| *o += error * f);
                self.far[beyond..].iter_mut().zip(&factors[beyond..]).for_each(|(o, f)| *o += error * f);
            }
        }
        self.survivors = Some(survivors);
    }

    /// States of a bit-shift trellis down the column. Where rows make up for the errors of those above, some rows are settled
    /// at a time, together with the path of those behind them. Within this window they make up for what is known of the rows
    /// above it, not for each other's errors.
    #[inline(always)]
    fn walk_codes(&mut self, col: usize, target: &[f32], seen: &mut [f32]) {
        let Some(mut search) = self.codes.take() else { return };
        let (count, side) = (self.rows.len(), self.input.plan.tile);
        let (window, settled) = if self.upper.is_some() { (SETTLED + AHEAD, SETTLED) } else { (count, count) };
        if self.upper.is_some() {
            self.offsets.copy_from_slice(seen);
        }
        let (mut at, mut state) = (0, 0);
        while at < count {
            self.coded.clear();
            self.planned.clear();
            for i in at..count.min(at + window) {
                let Some(bits) = self.tiles[i / side].code_bits else { break };
                let Sample { value, weight, .. } = self.samples[i];
                let planned = match self.upper {
                    // What would make up for the rows above, if those of the window did so exactly.
                    Some(upper) => {
                        let within = self.planned.iter().zip(at..).map(|(p, k)| p * self.factors(upper, k)[i]);
                        -self.offsets[i] - within.sum::<f32>()
                    }
                    None => 0.0,
                };
                self.planned.push(planned);
                self.coded.push(CodeSample { value: value + planned / self.steps[i], weight, bits });
            }
            let found = self.coded.len();
            let end = if found == 0 {
                // A tile without codes, after which states begin anew.
                state = 0;
                count.min(at + side)
            } else {
                self.states.resize(found, 0);
                search.search(state, &self.coded, &mut self.states);
                if found == window && at + found < count { at + settled } else { at + found }
            };
            for i in at..end {
                if found > 0 {
                    state = self.states[i - at];
                    self.levels[i] = state as i32;
                } else {
                    self.levels[i] = self.alone(i, -self.offsets[i] / self.steps[i]);
                }
                let Some(upper) = self.upper else { continue };
                let error = self.seen(i, col, target[i]);
                seen[i] = error;
                let factors = self.factors(upper, i);
                self.offsets[i + 1..].iter_mut().zip(&factors[i + 1..]).for_each(|(o, f)| *o += error * f);
            }
            at = end;
        }
        self.codes = Some(search);
    }

    /// The weight as it is.
    fn original(&self, i: usize, col: usize) -> f32 {
        self.input.weights[(self.rows.start + i) * self.input.plan.cols + col]
    }

    /// Decoded value of the level of row `i`.
    #[inline(always)]
    fn value(&self, format: Format, i: usize, col: usize) -> f32 {
        let value = match (format.minifloat(), self.tiles[i / self.input.plan.tile].code_bits) {
            (Some(kind), _) => kind.decode(self.levels[i] as u8),
            (_, Some(_)) => bit_shift::level(self.levels[i] as u32) as f32,
            _ => self.levels[i] as f32,
        };
        let (plan, value) = (self.input.plan, value * self.steps[i]);
        match self.input.before {
            Some(before) => {
                let before = before[(self.rows.start + i) * plan.cols + col];
                decoded(plan, before + value) - before
            }
            None => decoded(plan, value),
        }
    }

    #[inline(always)]
    fn keep(&mut self, col: usize, weights: &[f32], errors: &mut [f32], samples: &mut [i16]) {
        let plan = self.input.plan;
        for i in 0..self.rows.len() {
            let format = self.tiles[i / plan.tile].format;
            if format != Format::Lossless {
                errors[i] = self.value(format, i, col) - weights[i * plan.cols + col];
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

/// A product as the decoder rounds it.
#[inline(always)]
fn decoded(plan: &TensorPlan, value: f32) -> f32 {
    plan.dtype.value_of(plan.dtype.pattern_of(value))
}
