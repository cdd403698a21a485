//! Parts of a model that represent all of it while the lambda of a wanted size is searched.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;

use waterfill_checkpoint::Checkpoint;
use waterfill_codec::{CodecError, Format, Lambda, TILE, TensorPlan};
use waterfill_store::in_groups;

use crate::error::{AllocateError, Result};
use crate::overhead::side_bits;
use crate::policy::Policy;
use crate::rd_candidate::{Candidates, TensorCandidates};
use crate::select::{floor_lambda, scale_bits, select_at};
use crate::shared_steps::format_costs;
use crate::structure::FormatCosts;

/// Tiles whose bits are estimated, at most about this many.
const TILES: usize = 1 << 20;
/// Weights whose slices are counted exactly, at most about this many, but a slice of every weight matrix.
const WEIGHTS: usize = 8 << 20;
/// Bytes of candidates that are read side by side.
const READ_BYTES: u64 = 1 << 30;

/// Parts of one weight matrix.
pub(crate) struct Sample {
    name: String,
    /// Plan of the whole matrix, without its tiles.
    plan: TensorPlan,
    /// Rows of tiles spread over the matrix.
    tiles: TensorCandidates,
    /// Tiles of the matrix over those.
    tile_factor: f64,
    /// Slices with their weights, or the whole matrix.
    slices: Vec<(TensorCandidates, Vec<f32>)>,
    /// Rows of the matrix over those.
    slice_factor: f64,
    /// Lambda that a floor does not let the matrix exceed, once it is asked for.
    floor_lambda: OnceLock<Option<Lambda>>,
}

/// Samples of all weight matrices whose candidates `files` names.
pub(crate) fn sample_weights(files: &[(String, PathBuf)], checkpoint: &Checkpoint) -> Result<Vec<Sample>> {
    let shape = |name: &str| -> Result<[usize; 2]> {
        let shape = &checkpoint.tensor(name)?.shape;
        Ok([shape[0], shape.get(1).copied().unwrap_or(1)])
    };
    let shapes = files.iter().map(|(name, _)| shape(name)).collect::<Result<Vec<_>>>()?;
    let weights: usize = shapes.iter().map(|[rows, cols]| rows * cols).sum();
    let tiles: usize = shapes.iter().map(|[rows, cols]| rows.div_ceil(TILE) * cols.div_ceil(TILE)).sum();
    let every = tiles.div_ceil(TILES).max(1);
    let sizes: Vec<u64> = files.iter().map(|(_, path)| path.metadata().map_or(0, |m| m.len())).collect();
    in_groups(&sizes, READ_BYTES, |n| {
        let (name, path) = &files[n];
        let candidates = TensorCandidates::read(path)?;
        let rows = checkpoint.rows(name, &shapes[n])?;
        Sample::of(name, &candidates, every, weights, |range| Ok(rows.read(range)?))
    })
}

impl Sample {
    fn of(
        name: &str,
        candidates: &TensorCandidates,
        every: usize,
        weights: usize,
        read: impl Fn(Range<usize>) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let plan = &candidates.plan;
        let down = plan.rows.div_ceil(TILE);
        let picked: Vec<usize> = (0..down).skip((every / 2).min(down - 1)).step_by(every).collect();
        let tile_factor = down as f64 / picked.len() as f64;
        let (slices, slice_factor) = if weights <= WEIGHTS {
            (vec![(candidates.clone(), read(0..plan.rows)?)], 1.0)
        } else {
            let all = plan.slices();
            let wanted = ((all as f64 * WEIGHTS as f64 / weights as f64) as usize).clamp(1, all);
            let slice = |i: usize| {
                let rows = plan.slice_range((2 * i + 1) * all / (2 * wanted));
                let tiles: Vec<usize> = (rows.start / TILE..rows.end.div_ceil(TILE)).collect();
                Ok((part(candidates, &tiles), read(rows)?))
            };
            let slices = (0..wanted).map(slice).collect::<Result<Vec<_>>>()?;
            let rows: usize = slices.iter().map(|(part, _): &(TensorCandidates, _)| part.plan.rows).sum();
            (slices, plan.rows as f64 / rows as f64)
        };
        let tiles = part(candidates, &picked);
        let plan = TensorPlan { tiles: vec![], ..plan.clone() };
        let floor_lambda = OnceLock::new();
        Ok(Self { name: name.into(), plan, tiles, tile_factor, slices, slice_factor, floor_lambda })
    }

    /// Name of the matrix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Weights of the matrix.
    pub fn weights(&self) -> usize {
        self.plan.rows * self.plan.cols
    }

    /// Name of the matrix, and J of its tiles for every format that all of them can have.
    pub fn format_costs(&self, policy: &Policy, lambda: Lambda) -> (&str, FormatCosts) {
        let costs = format_costs(&self.name, &self.tiles, policy, lambda);
        (&self.name, costs.into_iter().map(|(format, cost)| (format, cost * self.tile_factor)).collect())
    }

    /// Lambda as the floor of a policy lets the matrix have it. All policies that ask have the same floor; where matrices have
    /// one format, it also depends on that.
    fn within_floor(&self, policy: &Policy, lambda: Lambda) -> Result<Lambda> {
        let most = match self.floor_lambda.get() {
            _ if policy.structure.is_some() => floor_lambda(&self.name, &self.tiles, policy)?,
            Some(most) => *most,
            None => {
                let found = floor_lambda(&self.name, &self.tiles, policy)?;
                *self.floor_lambda.get_or_init(|| found)
            }
        };
        Ok(most.map_or(lambda, |most| Lambda(lambda.0.min(most.0))))
    }

    /// Estimated bits of the matrix.
    pub fn estimate(&self, policy: &Policy, lambda: Lambda) -> Result<f64> {
        let lambda = self.within_floor(policy, lambda)?;
        let selection = select_at(&self.name, &self.tiles, policy, lambda)?;
        let lossless = selection.chosen.iter().any(|p| p.format == Format::Lossless);
        Ok(selection.rate.0 * self.tile_factor + side_bits(&self.plan, lossless).0)
    }

    /// Estimated bits of the matrix in memory.
    pub fn estimate_resident(&self, policy: &Policy, lambda: Lambda) -> Result<f64> {
        let lambda = self.within_floor(policy, lambda)?;
        let tiles = select_at(&self.name, &self.tiles, policy, lambda)?.resident.0 - scale_bits(&self.tiles.plan).0;
        Ok(tiles * self.tile_factor + scale_bits(&self.plan).0)
    }

    /// Estimated and exact bits of the matrix, from its sampled slices.
    pub fn count(&self, policy: &Policy, lambda: Lambda) -> Result<(f64, f64)> {
        let failed = |source: CodecError| AllocateError::Codec { weight: self.name.clone(), source };
        let (mut estimated, mut exact) = (0.0, 0.0);
        let lambda = self.within_floor(policy, lambda)?;
        for (candidates, weights) in &self.slices {
            let selection = select_at(&self.name, candidates, policy, lambda)?;
            let lossless = selection.chosen.iter().any(|p| p.format == Format::Lossless);
            let side = side_bits(&self.plan, lossless).0 / self.slice_factor / self.slices.len() as f64;
            estimated += selection.rate.0 + side;
            for n in 0..selection.plan.slices() {
                exact += selection.plan.slice_rate(n, weights).map_err(failed)?.0;
            }
            exact += match selection.plan.rows == self.plan.rows {
                true => selection.plan.side_rate(weights).map_err(failed)?.0,
                false => side,
            };
        }
        Ok((estimated * self.slice_factor, exact * self.slice_factor))
    }
}

/// Some rows of tiles as a matrix of their own.
fn part(candidates: &TensorCandidates, tile_rows: &[usize]) -> TensorCandidates {
    let plan = &candidates.plan;
    let across = plan.tiles_across();
    let rows: Vec<usize> = tile_rows.iter().flat_map(|&t| t * TILE..plan.rows.min((t + 1) * TILE)).collect();
    let entries = |v: &[i8]| rows.iter().filter_map(|&row| v.get(row).copied()).collect::<Vec<i8>>();
    let numbers: Vec<usize> = tile_rows.iter().flat_map(|&t| t * across..(t + 1) * across).collect();
    let mut tiles = Candidates::default();
    numbers.iter().for_each(|&n| tiles.push(candidates.tiles.tile(n)));
    let plan = TensorPlan {
        rows: rows.len(),
        row_scale: entries(&plan.row_scale),
        row_sigma: entries(&plan.row_sigma),
        tiles: numbers.iter().map(|&n| plan.tiles[n]).collect(),
        ..plan.clone()
    };
    TensorCandidates { plan, tiles, loss_weights: Default::default() }
}

#[cfg(test)]
mod tests {
    use waterfill_codec::{Dtype, Loss, Rate, TilePlan};

    use super::*;
    use crate::policy::RateWeights;
    use crate::rd_candidate::RdCandidate;

    /// A matrix of many slices; every tile costs about `bits` for a weight.
    fn candidates(rows: usize, cols: usize) -> TensorCandidates {
        let plan = TensorPlan {
            row_scale: vec![0; rows],
            ..TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default())
        };
        let mut tiles = Candidates::default();
        for n in 0..plan.tiles.len() {
            let rate = |step: i16| Rate(256.0 * (4.0 - f64::from(step) / 4.0) + (n % 7) as f64);
            let loss = |step: i16| Loss(1e-6 * (1.0 + (n % 3) as f64) * f64::from(step).exp2());
            tiles.push((0..8).map(|step| RdCandidate {
                format: Format::Int8,
                step,
                width: 8,
                loss: loss(step),
                rate: rate(step),
            }));
        }
        TensorCandidates { plan, tiles, loss_weights: Default::default() }
    }

    /// Samples of every size estimate what the whole matrix does.
    #[test]
    fn parts_stand_for_the_whole() {
        let candidates = candidates(4096 + 8, 512);
        let rate = RateWeights { storage: 1.0, resident: 0.0 };
        let policy = Policy {
            formats: vec![Format::Int8],
            floors: vec![],
            margin: 0.0,
            rate,
            corrections: Default::default(),
            structure: None,
        };
        let weight = |n: usize| ((n * 7919 % 1013) as f32 / 500.0 - 1.0) * 0.05;
        let read = |rows: Range<usize>| Ok((rows.start * 512..rows.end * 512).map(weight).collect());
        let lambda = Lambda(1e-8);
        let whole = Sample::of("w", &candidates, 1, 1, read).unwrap();
        let (bits, (estimated, exact)) =
            (whole.estimate(&policy, lambda).unwrap(), whole.count(&policy, lambda).unwrap());
        assert!((bits / estimated - 1.0).abs() < 1e-9, "{bits} {estimated}");
        for every in [2, 5, 1000] {
            let sample = Sample::of("w", &candidates, every, 1 << 40, read).unwrap();
            let estimate = sample.estimate(&policy, lambda).unwrap();
            assert!((estimate / bits - 1.0).abs() < 0.01, "{every}: {estimate}, all tiles {bits}");
            let (e, x) = sample.count(&policy, lambda).unwrap();
            assert!((e / estimated - 1.0).abs() < 0.02 && (x / exact - 1.0).abs() < 0.02, "{every}: {e} {x}");
        }
    }
}
