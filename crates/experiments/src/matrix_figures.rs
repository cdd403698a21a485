//! Figures of one matrix: sensitivity, bits and mode of its tiles, and its levels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::entropy::tables::{CLASSES, UNIT_CLASS};
use waterfill_codec::syntax::level_costs::LevelCosts;
use waterfill_codec::{CodedTensor, Format, Predictor, TILE, TensorPlan, TileMode, TilePlan};
use waterfill_pipeline::PointOutput;
use waterfill_quantize::rdo::tools_of;
use waterfill_report::{Levels, Sensitivity, TileMap, tile_bits};

use crate::error::{ExperimentError, Result};
use crate::record::Record;

/// Artifacts of a compressed checkpoint.
pub(crate) struct Parts<'a> {
    /// Artifact of the sensitivities.
    pub calibration: &'a Path,
    /// Artifact of the allocation.
    pub allocation: &'a Path,
    /// The checkpoint itself.
    pub checkpoint: &'a Path,
    pub bits_per_weight: f64,
}

/// The parts of a point that was coded.
pub(crate) fn parts_of<'a>(point: &'a PointOutput, calibration: &'a Path) -> Option<Parts<'a>> {
    let (allocation, checkpoint) = (point.allocation.as_deref()?, point.checkpoint.as_deref()?);
    Some(Parts { calibration, allocation, checkpoint, bits_per_weight: point.bits_per_weight? })
}

/// Draws the tiles and levels of a matrix of a recorded run's point to `NAME-tiles` and `NAME-levels` (`.png` and `.svg`) in
/// a directory, which is created; returns the images.
///
/// # Errors
/// A point or matrix that is not there, files that cannot be read or written.
pub fn draw_matrix(record: &Record, point: Option<usize>, tensor: &str, dir: &Path) -> Result<Vec<PathBuf>> {
    let points = &record.output.points;
    let failed = |reason: String| ExperimentError::Run { run: record.id.clone(), reason };
    let number = point.unwrap_or(points.len() / 2);
    let Some(chosen) = points.get(number) else {
        return Err(failed(format!("has no point {number}, expected 0 to {}", points.len().saturating_sub(1))));
    };
    let calibration = record.output.artifacts.get("calibrate").ok_or_else(|| failed("has no calibration".into()))?;
    let parts = parts_of(chosen, calibration).ok_or_else(|| failed("was not allocated and coded".into()))?;
    let names: Vec<&str> = record.tensors.get(number).into_iter().flatten().map(|t| t.name.as_str()).collect();
    let fits = |name: &&&str| {
        **name == tensor || name.strip_suffix(".weight") == Some(tensor) || name.ends_with(&format!(".{tensor}.weight"))
    };
    let name = match names.iter().filter(fits).collect::<Vec<_>>().as_slice() {
        [name] => **name,
        [] => return Err(failed(format!("has no matrix {tensor}; there are {}", names.join(", ")))),
        several => {
            let several: Vec<&str> = several.iter().map(|n| **n).collect();
            return Err(failed(format!("{tensor} could be {}", several.join(", "))));
        }
    };
    let (map, levels) = of_matrix(&parts, name)?;
    std::fs::create_dir_all(dir).map_err(ExperimentError::io(dir))?;
    let mut images = vec![map.write(dir, &format!("{name}-tiles"))?];
    if let Some(levels) = levels {
        images.push(levels.write(dir, &format!("{name}-levels"))?);
    }
    Ok(images)
}

/// Fisher information of all matrices of a calibration; `shapes` are theirs.
pub(crate) fn sensitivities(calibration: &Path, shapes: &[(String, [usize; 2])]) -> Result<Vec<Sensitivity>> {
    let store = Sensitivities::open(calibration)?;
    let one = |(name, [rows, cols]): &(String, [usize; 2])| {
        let fisher = store.read(name, *rows, *cols)?.row_fisher.sum();
        Ok(Sensitivity { name: name.clone(), weights: (rows * cols) as u64, fisher })
    };
    shapes.iter().map(one).collect()
}

/// Tiles and levels of one matrix of a compressed checkpoint; no levels where it has none, as FP8 and lossless tiles.
///
/// # Errors
/// A matrix that is not there or not coded, files that cannot be read.
pub(crate) fn of_matrix(parts: &Parts, tensor: &str) -> Result<(TileMap, Option<Levels>)> {
    let checkpoint = Checkpoint::open(parts.checkpoint)?;
    let raw = checkpoint.read_raw(tensor)?;
    let failed = |reason: String| ExperimentError::Mismatch { path: parts.checkpoint.into(), reason };
    let coded = CodedTensor::parse(&raw).map_err(|e| failed(format!("{tensor} is no coded matrix: {e}")))?;
    let (rows, cols) = (coded.plan().rows, coded.plan().cols);
    let mut counted = Counts::default();
    let mut tiles: Vec<TilePlan> = Vec::new();
    for n in 0..coded.slices() {
        let slice = coded.decode_planes(n).map_err(|e| failed(format!("{tensor}: {e}")))?;
        counted.add(coded.plan(), coded.slice_rows(n).start, &slice.tiles, &slice.plane);
        tiles.extend(slice.tiles);
    }
    let (across, side) = (cols.div_ceil(TILE), coded.plan().tile);
    let coded_across = cols.div_ceil(side);
    let weights = |n: usize| {
        let (row, col) = (n / across * TILE, n % across * TILE);
        (TILE.min(rows - row) * TILE.min(cols - col)) as f64
    };
    let store = Sensitivities::open(parts.calibration)?;
    let folds = store.read(tensor, rows, cols)?.tile_fisher;
    let count = folds.len().max(1) as f64;
    let bits = tile_bits(&parts.allocation.join("tiles.parquet"), tensor)?;
    let all = across * rows.div_ceil(TILE);
    if bits.len() != all || folds.iter().any(|s| s.len() != all) {
        return Err(failed(format!("{tensor}: allocation or sensitivities are of another shape")));
    }
    let fisher = |n: usize| folds.iter().map(|s| s[[n / across, n % across]]).sum::<f64>() / count;
    let mode = |n: usize| {
        let (row, col) = (n / across * TILE / side, n % across * TILE / side);
        mode_of(&tiles[row * coded_across + col])
    };
    let map = TileMap {
        tensor: tensor.into(),
        across,
        sensitivity: (0..all).map(|n| fisher(n) / weights(n)).collect(),
        bits: (0..all).map(|n| bits[n] / weights(n)).collect(),
        modes: (0..all).map(mode).collect(),
        bits_per_weight: parts.bits_per_weight,
    };
    Ok((map, counted.commonest(tensor, coded.plan())))
}

/// Format of a tile and the tools that it uses.
fn mode_of(tile: &TilePlan) -> String {
    let tools = if tile.format.level_range().is_some() { tools_of(tile) } else { vec![] };
    std::iter::once(tile.format.name()).chain(tools).collect::<Vec<_>>().join(" ")
}

/// Levels beyond this count as it.
const MOST_LEVEL: i32 = 512;

/// Levels by class of their spread.
#[derive(Default)]
struct Counts {
    /// By class and level, from the least on; none of classes that do not occur.
    classes: BTreeMap<usize, Vec<u64>>,
    samples: u64,
}

impl Counts {
    /// Adds the levels of a slice that begins at `first`; those that stand for a residual or a coefficient are left out.
    fn add(&mut self, plan: &TensorPlan, first: usize, tiles: &[TilePlan], plane: &[i32]) {
        let across = plan.cols.div_ceil(plan.tile);
        let mut classes = vec![Vec::new(); CLASSES];
        for (n, &level) in plane.iter().enumerate() {
            let (row, col) = (n / plan.cols, n % plan.cols);
            let tile = &tiles[row / plan.tile * across + col / plan.tile];
            self.samples += 1;
            let plain = tile.mode == TileMode::Coded
                && tile.predictor == Predictor::None
                && tile.transform.is_identity()
                && tile.coarse == 0
                && matches!(tile.format, Format::Int2 | Format::Int3 | Format::Int4 | Format::Int8);
            if plain {
                let counts: &mut Vec<u64> = &mut classes[plan.level_class(tile, first + row, col)];
                counts.resize(2 * MOST_LEVEL as usize + 1, 0);
                counts[(level.clamp(-MOST_LEVEL, MOST_LEVEL) + MOST_LEVEL) as usize] += 1;
            }
        }
        for (class, counts) in classes.into_iter().enumerate().filter(|(_, counts)| !counts.is_empty()) {
            let sum = self.classes.entry(class).or_insert_with(|| vec![0; counts.len()]);
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }

    /// The class that most levels have, with its table.
    fn commonest(self, tensor: &str, plan: &TensorPlan) -> Option<Levels> {
        let (class, counts) = self.classes.into_iter().max_by_key(|(_, counts)| counts.iter().sum::<u64>())?;
        let total: u64 = counts.iter().sum();
        let count = |level: i32| counts[(level + MOST_LEVEL) as usize];
        let costs = LevelCosts::get();
        let bits = |level: i32| match plan.parameters.trellis {
            None => costs.cost(class, level),
            // Both quantizers of a trellis are as likely; their levels are an octave further apart.
            Some(_) => {
                let (parity, class) = (level.rem_euclid(2), class.saturating_sub(4).min(CLASSES - 1));
                1.0 + costs.index_cost(parity as usize, class, (level - parity) >> 1)
            }
        };
        let most = (1..=MOST_LEVEL).rev().find(|&l| count(l) + count(-l) > 0).unwrap_or(0).clamp(1, 127);
        let share = |level: i32| count(level) as f64 / total as f64;
        let levels: Vec<(i32, f64, f64)> =
            (-most..=most).map(|level| (level, share(level), (-f64::from(bits(level))).exp2())).collect();
        // The path of a trellis is worth one bit.
        let known = if plan.parameters.trellis.is_some() { 1.0 } else { 0.0 };
        let shown = || levels.iter().filter(|l| l.1 > 0.0);
        let coded = shown().map(|l| -l.1 * l.2.log2()).sum::<f64>() - known;
        let entropy = shown().map(|l| -l.1 * l.1.log2()).sum::<f64>() - known;
        Some(Levels {
            tensor: tensor.into(),
            spread: (f64::from(class as i32 - UNIT_CLASS) / 4.0).exp2(),
            levels,
            samples: (total, self.samples),
            bits: (coded, entropy),
        })
    }
}

#[cfg(test)]
mod tests {
    use waterfill_codec::{Dtype, Trellis};

    use super::*;

    /// Levels that are drawn from a table cost its entropy, with a trellis as without.
    #[test]
    fn tables_are_those_that_levels_are_coded_under() {
        for trellis in [None, Trellis::new(3)] {
            let tile = TilePlan { format: Format::Int8, ..TilePlan::default() };
            let mut plan = TensorPlan::uniform(Dtype::Bf16, 16, 4096, tile);
            plan.parameters.trellis = trellis;
            plan.sigma_base = 8;
            // Quantiles of a Gaussian whose deviation is four levels.
            let sigma = 4.0;
            let cdf = |x: f64| 0.5 * libm::erfc(-x / sigma / std::f64::consts::SQRT_2);
            let mut plane = Vec::new();
            for level in -20..=20 {
                let p = cdf(f64::from(level) + 0.5) - cdf(f64::from(level) - 0.5);
                plane.extend(std::iter::repeat_n(level, (p * 65536.0).round() as usize));
            }
            plane.resize(65536, 0);
            let mut counts = Counts::default();
            counts.add(&plan, 0, &plan.tiles.clone(), &plane);
            let levels = counts.commonest("t", &plan).unwrap();
            assert_eq!(levels.samples, (65536, 65536));
            assert!((levels.spread - sigma).abs() < 1e-9, "{}", levels.spread);
            let known = if trellis.is_some() { 1.0 } else { 0.0 };
            let gaussian = (sigma * (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt()).log2() - known;
            let (coded, entropy) = levels.bits;
            assert!((entropy - gaussian).abs() < 0.02, "{entropy} {gaussian}");
            assert!(coded - entropy > -1e-9 && coded - entropy < 0.02, "{coded} {entropy}");
        }
    }
}
