//! The decision for one tile after the other, each against what the decoder will have of those
//! before.

use std::ops::Range;

use waterfill_codec::constants::MAX_TILE;
use waterfill_codec::entropy::models::RateCounter;
use waterfill_codec::entropy::tables::class_of;
use waterfill_codec::recon::reconstruct::{Planes, TileScales, reconstruct_tile};
use waterfill_codec::syntax::sample::MAX_LEVEL;
use waterfill_codec::syntax::slice::SlicePlan;
use waterfill_codec::syntax::tile_header::{HeaderContext, HeaderModels, code_tile};
use waterfill_codec::syntax::tile_plan::{BANDS, band};
use waterfill_codec::{Format, Palette, Predictor, Result, TILE, TensorPlan, TileMode, TilePlan, dispatch};

use super::input::RdoInput;
use super::rounding::Rounding;
use super::tools::Tool;
use super::transforms::{CostModel, Transformed, Transforms, sigma_change};

/// Quarter octaves by which the plane of a transformed tile is finer than its quantizer, the first
/// that INT8 has room for: rounding to the plane adds a sixteenth, a quarter, or as much to the error.
const FINER: [i16; 3] = [8, 4, 0];
/// A prediction must take this share of the energy to be tried further.
const LEAST_GAIN: f32 = 0.06;

/// A way to code the tile, with its samples.
struct Candidate {
    tile: TilePlan,
    cost: f32,
    samples: [i32; MAX_TILE],
}

/// The tile in units of its allocated step.
pub(super) struct Target {
    pub values: [f32; MAX_TILE],
    /// Nats for a squared step.
    weights: [f32; MAX_TILE],
    pub count: usize,
    energy: f32,
}

/// Search over the tiles of a slice.
pub struct TileSearch<'a> {
    pub(super) slice: SlicePlan<'a>,
    pub(super) input: &'a RdoInput<'a>,
    pub(super) planes: Planes,
    models: HeaderModels,
    rounding: Rounding,
    lambda: f32,
    samples: Vec<i16>,
    transforms: Transforms,
}

impl<'a> TileSearch<'a> {
    /// A search over the rows `rows` of a plan as allocated.
    pub fn new(plan: &'a TensorPlan, rows: Range<usize>, input: &'a RdoInput<'a>) -> Self {
        let mut slice = SlicePlan::of(plan, rows.clone());
        // The syntax of everything that may be chosen: rates count what tools cost.
        let uses = |tools: &[Tool]| tools.iter().any(|t| input.tools.contains(t));
        use waterfill_codec::syntax::tools::Tools;
        slice.tools.0 &= !Tools::UNIFORM.0;
        slice.tools.add(Tools::STEPS, true);
        slice.tools.add(Tools::SIGMAS, uses(&[Tool::Spread]));
        slice.tools.add(Tools::MODES, uses(&[Tool::Skip, Tool::Palette, Tool::BitPlanes]));
        slice.tools.add(Tools::PREDICTORS, uses(&Tool::PREDICTING));
        let transforms = uses(&[Tool::Dct, Tool::Dst, Tool::Hadamard, Tool::Learned]);
        slice.tools.add(Tools::TRANSFORMS, transforms);
        slice.tools.add(Tools::COARSE, transforms || uses(&[Tool::Centroids]));
        let lambda = if input.tools.contains(&Tool::Rdoq) { input.lambda.0 as f32 } else { 0.0 };
        Self {
            planes: Planes::of_any(&slice),
            rounding: Rounding::new(lambda, &plan.parameters.centroids),
            lambda: input.lambda.0 as f32,
            samples: vec![0; rows.len() * plan.cols],
            transforms: Transforms::new(plan, input),
            models: HeaderModels::default(),
            slice,
            input,
        }
    }

    /// Decides every tile.
    ///
    /// # Errors
    /// Scales out of range.
    pub fn run(&mut self) -> Result<()> {
        dispatch(
            #[inline(always)]
            || self.decide(),
        )
    }

    #[inline(always)]
    fn decide(&mut self) -> Result<()> {
        let mut plane = [0; MAX_TILE];
        for n in 0..self.slice.tiles.len() {
            let best = self.search(n)?;
            self.slice.tiles[n] = best.tile;
            let context = self.context(n);
            code_tile(&mut RateCounter::default(), &mut self.models, &context, &mut self.slice.tiles[n])?;
            let (rows, cols) = self.slice.tile_range(n);
            let (width, count) = (cols.len(), rows.len() * cols.len());
            if best.tile.format.level_range().is_some() {
                self.planes.predict(&self.slice, n, &mut plane[..count])?;
                self.planes.reconstruct(&self.slice, n, &mut plane[..count], &best.samples[..count]);
            }
            for (row, line) in rows.zip(best.samples.chunks_exact(width)) {
                let to =
                    &mut self.samples[(row - self.slice.rows.start) * self.slice.plan.cols + cols.start..][..width];
                to.iter_mut().zip(line).for_each(|(t, &s)| *t = s as i16);
            }
        }
        Ok(())
    }

    /// Tiles and samples, the latter row-major.
    pub fn finish(self) -> (Vec<TilePlan>, Vec<i16>) {
        (self.slice.tiles, self.samples)
    }

    fn context(&self, n: usize) -> HeaderContext {
        let across = self.slice.plan.tiles_across();
        let (rows, cols) = self.slice.tile_range(n);
        HeaderContext {
            tools: self.slice.tools,
            left: (!n.is_multiple_of(across)).then(|| self.slice.tiles[n - 1]),
            full: rows.len() == self.slice.plan.tile && cols.len() == self.slice.plan.tile,
        }
    }

    pub(super) fn uses(&self, tool: Tool) -> bool {
        self.input.tools.contains(&tool)
    }

    fn target(&self, n: usize) -> Result<Target> {
        let (plan, loss_weights) = (self.slice.plan, self.input.loss_weights);
        let (rows, cols) = self.slice.tile_range(n);
        let scales = TileScales::new(&self.slice, n)?;
        let density = loss_weights.tiles[self.slice.rows.start / plan.tile * plan.tiles_across() + n];
        let count = rows.len() * cols.len();
        let mut target = Target { values: [0.0; MAX_TILE], weights: [0.0; MAX_TILE], count, energy: 0.0 };
        for (i, row) in rows.clone().enumerate() {
            let base = density * loss_weights.rows[row];
            for (j, col) in cols.clone().enumerate() {
                let scale = scales.at(i, j);
                let k = i * cols.len() + j;
                target.values[k] = self.input.weights[row * plan.cols + col] / scale;
                target.weights[k] = base * loss_weights.cols[col] * scale * scale;
                target.energy += target.values[k].powi(2);
            }
        }
        Ok(target)
    }

    fn search(&mut self, n: usize) -> Result<Candidate> {
        let allocated = self.slice.tiles[n];
        let target = self.target(n)?;
        if allocated.format.level_range().is_none() {
            let mut samples = [0; MAX_TILE];
            if let Some(kind) = allocated.format.minifloat() {
                let values = target.values[..target.count].iter().map(|&v| i32::from(kind.encode(v)));
                samples.iter_mut().zip(values).for_each(|(s, v)| *s = v);
            }
            return Ok(Candidate { tile: allocated, cost: 0.0, samples });
        }
        let mut best = self.identity(n, &target, allocated, &[0; MAX_TILE])?;
        let mut predicted = None;
        for predictor in self.predictors(n, &target) {
            let tile = TilePlan { predictor, ..allocated };
            let mut prediction = [0; MAX_TILE];
            self.slice.tiles[n] = tile;
            self.planes.predict(&self.slice, n, &mut prediction[..target.count])?;
            let pairs = target.values.iter().zip(&prediction).take(target.count);
            let energy: f32 = pairs.map(|(v, &p)| (v - p as f32).powi(2)).sum();
            if predictor != Predictor::None && energy > target.energy * (1.0 - LEAST_GAIN) {
                continue;
            }
            if self.uses(Tool::Skip) {
                keep(&mut best, self.skip(n, &target, tile, &prediction));
            }
            if predictor != Predictor::None {
                if predicted.is_none_or(|(least, _)| energy < least) {
                    predicted = Some((energy, predictor));
                }
                keep(&mut best, self.identity(n, &target, tile, &prediction)?);
            }
        }
        if self.uses(Tool::Palette) {
            self.palette(n, &target, allocated).into_iter().for_each(|c| keep(&mut best, c));
        }
        if self.uses(Tool::BitPlanes) && target.count == TILE * TILE && self.slice.plan.tile == TILE {
            let planes = self.bit_planes(n, &best);
            keep(&mut best, planes);
        }
        let wide = self.input.allow_int8 || allocated.format == Format::Int8;
        if wide && (!self.transforms.is_empty() || self.uses(Tool::Centroids)) {
            let predictors = predicted.map(|p| p.1).into_iter().chain([Predictor::None]);
            let peak = target.values[..target.count].iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let room = |finer: &i16| peak * (f32::from(*finer) / 4.0).exp2() <= 126.0;
            let finer = FINER.into_iter().find(room).unwrap_or(0);
            for predictor in predictors {
                let fine = TilePlan {
                    format: Format::Int8,
                    step: allocated.step - finer,
                    coarse: finer as u8,
                    predictor,
                    ..allocated
                };
                self.coarse(n, &target, fine, &mut best)?;
            }
        }
        self.slice.tiles[n] = best.tile;
        Ok(best)
    }

    /// Bits of a tile's header where it stands.
    fn header_bits(&self, n: usize, tile: TilePlan) -> f32 {
        let (mut counter, mut tile) = (RateCounter::default(), tile);
        let mut models = self.models.clone();
        let coded = code_tile(&mut counter, &mut models, &self.context(n), &mut tile);
        coded.map_or(f32::INFINITY, |()| counter.rate().0 as f32)
    }

    /// The allocated spread, or the one that fits what is coded: `energy` is the mean square of levels
    /// over the square of the spread their classes would have with the allocated one.
    fn sigma(&self, tile: &TilePlan, energy: f32) -> i16 {
        if !self.uses(Tool::Spread) {
            return tile.sigma;
        }
        (tile.sigma + sigma_change(energy)).clamp(-120, 120)
    }

    /// Levels of the residual as it is, on the plane's own grid.
    fn identity(&self, n: usize, target: &Target, tile: TilePlan, prediction: &[i32; MAX_TILE]) -> Result<Candidate> {
        let (rows, cols) = self.slice.tile_range(n);
        let plan = self.slice.plan;
        let mut sigmas = [0; MAX_TILE];
        let mut energy = 0.0;
        for (i, row) in rows.clone().enumerate() {
            for (j, col) in cols.clone().enumerate() {
                let k = i * cols.len() + j;
                sigmas[k] = plan.sigma(&tile, row, col) - plan.row_col_scale(row, col) - i32::from(tile.step);
                energy += (target.values[k] - prediction[k] as f32).powi(2) * (-sigmas[k] as f32 / 2.0).exp2();
            }
        }
        let fitted = if tile.predictor == Predictor::None {
            tile.sigma
        } else {
            self.sigma(&tile, energy / target.count as f32)
        };
        let change = i32::from(fitted - tile.sigma);
        let tile = TilePlan { sigma: fitted, ..tile };
        let (low, high) = tile.format.level_range().unwrap_or((0, 0));
        let range = if tile.predictor == Predictor::None { (low, high) } else { (-MAX_LEVEL, MAX_LEVEL) };
        let (mut loss, mut bits) = (0.0, self.header_bits(n, tile));
        let mut samples = [0; MAX_TILE];
        for k in 0..target.count {
            let class = class_of(sigmas[k] + change);
            let residual = target.values[k] - prediction[k] as f32;
            let level = self.rounding.level(residual, target.weights[k], class, range);
            let plane = (prediction[k] + level).clamp(low, high);
            loss += target.weights[k] * (target.values[k] - plane as f32).powi(2);
            bits += self.rounding.bits(class, level);
            samples[k] = level;
        }
        Ok(Candidate { tile, cost: loss + self.lambda * bits, samples })
    }

    /// The prediction and nothing else.
    fn skip(&self, n: usize, target: &Target, tile: TilePlan, prediction: &[i32; MAX_TILE]) -> Candidate {
        let tile = TilePlan { mode: TileMode::Skip, ..tile };
        let (low, high) = tile.format.level_range().unwrap_or((0, 0));
        let error = |k: usize| target.values[k] - prediction[k].clamp(low, high) as f32;
        let loss: f32 = (0..target.count).map(|k| target.weights[k] * error(k).powi(2)).sum();
        Candidate { tile, cost: loss + self.lambda * self.header_bits(n, tile), samples: [0; MAX_TILE] }
    }

    /// Indices into the values that rounding leaves, where they are eight at most.
    fn palette(&self, n: usize, target: &Target, tile: TilePlan) -> Option<Candidate> {
        let (low, high) = tile.format.level_range()?;
        let level = |v: f32| (v.round_ties_even() as i32).clamp(low, high) as i16;
        let mut values: Vec<i16> = target.values[..target.count].iter().map(|&v| level(v)).collect();
        values.sort_unstable();
        values.dedup();
        if !(2..=8).contains(&values.len()) {
            return None;
        }
        let mut palette = Palette { len: values.len() as u8, values: [0; 8] };
        palette.values[..values.len()].copy_from_slice(&values);
        let tile = TilePlan {
            mode: TileMode::Palette(palette),
            sigma: if self.uses(Tool::Spread) { 0 } else { tile.sigma },
            ..tile
        };
        let (mut loss, mut samples) = (0.0, [0; MAX_TILE]);
        for ((sample, v), weight) in samples.iter_mut().zip(target.values).zip(target.weights).take(target.count) {
            let value = level(v);
            *sample = values.binary_search(&value).unwrap_or(0) as i32;
            loss += weight * (v - f32::from(value)).powi(2);
        }
        let bits = self.header_bits(n, tile) + (palette.bits() as usize * target.count) as f32;
        Some(Candidate { tile, cost: loss + self.lambda * bits, samples })
    }

    /// The best candidate's levels in bit planes.
    fn bit_planes(&self, n: usize, best: &Candidate) -> Candidate {
        let tile = TilePlan { mode: TileMode::BitPlanes, ..best.tile };
        let mut candidate = Candidate { tile, cost: f32::INFINITY, samples: best.samples };
        if best.tile.mode == TileMode::Coded {
            let levels = std::array::from_fn(|k| best.samples[k]);
            let planes = self.slice.plane_bits(&self.models, &levels).0 as f32;
            let coded = self.coded_bits(n, &best.tile, &best.samples);
            let change = planes + self.header_bits(n, tile) - coded - self.header_bits(n, best.tile);
            candidate.cost = best.cost + self.lambda * change;
        }
        candidate
    }

    fn coded_bits(&self, n: usize, tile: &TilePlan, samples: &[i32; MAX_TILE]) -> f32 {
        let (rows, cols) = self.slice.tile_range(n);
        let at = |k: usize| (rows.start + k / cols.len(), cols.start + k % cols.len());
        let bits = |k: usize| {
            let (row, col) = at(k);
            self.rounding.bits(self.slice.plan.level_class(tile, row, col), samples[k])
        };
        (0..rows.len() * cols.len()).map(bits).sum()
    }

    /// A quantizer coarser than the plane: without transform where reconstruction points lie off the
    /// middle, and with every transform.
    fn coarse(&mut self, n: usize, target: &Target, fine: TilePlan, best: &mut Candidate) -> Result<()> {
        let ratio = (f32::from(fine.coarse) / 4.0).exp2();
        self.slice.tiles[n] = fine;
        let mut prediction = [0; MAX_TILE];
        self.planes.predict(&self.slice, n, &mut prediction[..target.count])?;
        let mut residual = [0.0; MAX_TILE];
        for k in 0..target.count {
            residual[k] = target.values[k] - prediction[k] as f32 / ratio;
        }
        if self.uses(Tool::Centroids) && fine.predictor == Predictor::None {
            let mut samples = [0; MAX_TILE];
            let (rows, cols) = self.slice.tile_range(n);
            for k in 0..target.count {
                let (row, col) = (rows.start + k / cols.len(), cols.start + k % cols.len());
                let class = self.slice.plan.level_class(&fine, row, col);
                samples[k] = self.rounding.level(residual[k], target.weights[k], class, (-MAX_LEVEL, MAX_LEVEL));
            }
            let bits = self.coded_bits(n, &fine, &samples);
            keep(best, self.measured(n, target, fine, &prediction, samples, bits));
        }
        if target.count != TILE * TILE || self.slice.plan.tile != TILE {
            return Ok(());
        }
        let mean_weight = target.weights[..target.count].iter().sum::<f32>() / target.count as f32;
        let start: [f32; 256] = std::array::from_fn(|k| residual[k]);
        let sigmas: [i32; BANDS] = std::array::from_fn(|b| self.slice.plan.transform_sigma(&fine, b));
        let (rdoq, sigma) = (self.uses(Tool::Rdoq), self.uses(Tool::Spread));
        let cost_model = CostModel { error: mean_weight, bit: self.lambda, rdoq, sigma };
        let mut chosen: Option<(f32, f32, TilePlan, [i32; MAX_TILE])> = None;
        for Transformed { transform, coefficients, energy } in self.transforms.best(&start, &sigmas, &cost_model) {
            let sigma = self.sigma(&fine, energy);
            let change = i32::from(sigma - fine.sigma);
            let tile = TilePlan { transform, sigma, ..fine };
            let classes = sigmas.map(|s| class_of(s + change));
            let (mut loss, mut bits) = (0.0, 0.0);
            let mut samples = [0; MAX_TILE];
            for (k, &value) in coefficients.iter().enumerate() {
                let class = classes[band(transform, k / TILE, k % TILE)];
                let level = self.rounding.level(value, mean_weight, class, (-MAX_LEVEL, MAX_LEVEL));
                loss += (value - self.rounding.point(level)).powi(2);
                bits += self.rounding.bits(class, level);
                samples[k] = level;
            }
            let cost = mean_weight * loss + self.lambda * bits;
            if chosen.as_ref().is_none_or(|c| cost < c.0) {
                chosen = Some((cost, bits, tile, samples));
            }
        }
        if let Some((_, bits, tile, samples)) = chosen {
            keep(best, self.measured(n, target, tile, &prediction, samples, bits));
        }
        Ok(())
    }

    /// A candidate on a finer plane with its error as the decoder will have it.
    fn measured(
        &mut self,
        n: usize,
        target: &Target,
        tile: TilePlan,
        prediction: &[i32; MAX_TILE],
        samples: [i32; MAX_TILE],
        bits: f32,
    ) -> Candidate {
        let ratio = (f32::from(tile.coarse) / 4.0).exp2();
        let mut plane = *prediction;
        self.slice.tiles[n] = tile;
        reconstruct_tile(&self.slice, n, &mut plane[..target.count], &samples[..target.count]);
        let error = |k: usize| target.values[k] - plane[k] as f32 / ratio;
        let loss: f32 = (0..target.count).map(|k| target.weights[k] * error(k).powi(2)).sum();
        Candidate { tile, cost: loss + self.lambda * (bits + self.header_bits(n, tile)), samples }
    }
}

fn keep(best: &mut Candidate, candidate: Candidate) {
    if candidate.cost < best.cost {
        *best = candidate;
    }
}
