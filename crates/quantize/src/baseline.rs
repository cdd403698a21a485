//! Usual quantizers to compare with: codes of a fixed width under scales from the largest weight. Their
//! checkpoints are written dense; their size is that of codes and scales, by arithmetic.

use std::collections::BTreeSet;

use rayon::prelude::*;
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_file};
use waterfill_checkpoint::{Checkpoint, CheckpointError, TensorInfo, element_of};
use waterfill_codec::{Minifloat, TILE};
use waterfill_model::TensorRole;
use waterfill_quadratic::{Damping, LdlFactor};
use waterfill_store::{Progress, Work};

use crate::error::Result;
use crate::summary::EncodeSummary;

/// Bytes of a scale, an f16.
const SCALE_BYTES: u64 = 2;
/// Share of the mean of H's diagonal that GPTQ adds to it, as published.
const DAMPING: f64 = 0.01;

/// A quantizer of fixed width.
#[derive(Debug, Clone)]
pub enum Baseline {
    /// Rounding to the nearest, a scale for each 16x16 tile.
    Absmax,
    /// FP8 E4M3, rounded to the nearest, a scale for each 16x16 tile.
    Fp8,
    /// Rounding with error feedback in the columns' own order, a scale for each group of that many columns
    /// of a row (GPTQ, Frantar et al. 2023).
    Gptq {
        /// Columns of a group.
        group: usize,
        /// Where the Hessians are.
        sensitivities: Sensitivities,
    },
}

impl Baseline {
    /// Scales of a matrix.
    fn scales(&self, rows: usize, cols: usize) -> u64 {
        match self {
            Self::Absmax | Self::Fp8 => (rows.div_ceil(TILE) * cols.div_ceil(TILE)) as u64,
            Self::Gptq { group, .. } => (rows * cols.div_ceil(*group)) as u64,
        }
    }

    /// Replaces weights by the values of their codes of `bits` bits.
    fn quantize(&self, name: &str, weights: &mut [f32], cols: usize, bits: u32) -> Result<()> {
        match self {
            Self::Absmax => by_tile(weights, cols, |tile| {
                let scale = Scale::of(tile.iter().map(|w| &**w), bits);
                tile.iter_mut().for_each(|w| **w = scale.round(**w));
            }),
            Self::Fp8 => by_tile(weights, cols, |tile| {
                let kind = Minifloat::E4M3;
                // The largest weight is kept, not its quotient by the largest code, which f16 would round coarsely.
                let step = Scale::fitting(tile.iter().map(|w| &**w), 1.0) / kind.max();
                tile.iter_mut().for_each(|w| **w = kind.decode(kind.encode(**w / step)) * step);
            }),
            Self::Gptq { group, sensitivities } => {
                let factor = match sensitivities.hessian(name)? {
                    Some(hessian) => LdlFactor::new(&hessian, &Damping::uniform(DAMPING)),
                    None => LdlFactor::diagonal(vec![1.0; cols]),
                };
                weights.par_chunks_mut(cols).for_each(|row| feed_back(row, *group, bits, &factor));
            }
        }
        Ok(())
    }
}

/// Does something with the weights of every tile.
fn by_tile(weights: &mut [f32], cols: usize, each: impl Fn(&mut [&mut f32]) + Sync) {
    weights.par_chunks_mut(TILE * cols).for_each(|band| {
        let mut tiles: Vec<Vec<&mut f32>> = (0..cols.div_ceil(TILE)).map(|_| Vec::new()).collect();
        for row in band.chunks_mut(cols) {
            tiles.iter_mut().zip(row.chunks_mut(TILE)).for_each(|(tile, part)| tile.extend(part));
        }
        tiles.iter_mut().for_each(|tile| each(tile));
    });
}

/// A scale of codes of some bits.
struct Scale {
    step: f32,
    most: f32,
}

impl Scale {
    /// The largest magnitude is the largest code.
    fn of<'a>(weights: impl Iterator<Item = &'a f32>, bits: u32) -> Self {
        let most = ((1i32 << (bits - 1)) - 1) as f32;
        Self { step: Self::fitting(weights, most), most }
    }

    /// Step at which the largest magnitude is `most`, as an f16 holds it.
    fn fitting<'a>(weights: impl Iterator<Item = &'a f32>, most: f32) -> f32 {
        let step = weights.fold(0.0f32, |m, w| m.max(w.abs())) / most;
        half::f16::from_f32(step).to_f32().max(f32::MIN_POSITIVE)
    }

    fn round(&self, weight: f32) -> f32 {
        (weight / self.step).round_ties_even().clamp(-self.most - 1.0, self.most) * self.step
    }
}

fn feed_back(row: &mut [f32], group: usize, bits: u32, factor: &LdlFactor) {
    let mut targets = row.to_vec();
    let mut scale = Scale { step: 1.0, most: 1.0 };
    for j in 0..row.len() {
        if j % group == 0 {
            scale = Scale::of(targets[j..row.len().min(j + group)].iter(), bits);
        }
        let value = scale.round(targets[j]);
        let error = value - row[j];
        row[j] = value;
        if let Some((range, upper)) = factor.block(j) {
            let factors = &upper[(j - range.start) * range.len()..][j + 1 - range.start..range.len()];
            targets[j + 1..range.end].iter_mut().zip(factors).for_each(|(t, u)| *t -= error * u);
        }
    }
}

/// Writes `source` with the matrices in `names` quantized to codes of `bits` bits, as a dense checkpoint in `checkpoint/`
/// of `work`; sizes in the summary are those of codes and scales.
///
/// # Errors
/// Tensors that cannot be read, files that cannot be written.
pub fn encode_baseline(
    source: &Checkpoint,
    names: &BTreeSet<String>,
    baseline: &Baseline,
    bits: u32,
    work: &Work,
    progress: &dyn Progress,
) -> Result<EncodeSummary> {
    let out = work.path("checkpoint");
    std::fs::create_dir(&out).map_err(CheckpointError::io(&out))?;
    let tensors: Vec<&TensorInfo> = source.tensors().collect();
    progress.start("baseline", tensors.len() as u64);
    let mut summary = EncodeSummary { weights: source.weights(), ..EncodeSummary::default() };
    let mut entries = Vec::new();
    for (i, info) in tensors.into_iter().enumerate() {
        let coded = names.contains(&info.name);
        let blob = work.file(&format!("tensor-{i}"), |path| -> Result<()> {
            let bytes = match coded {
                true => {
                    let dtype = source.dtype(&info.name)?;
                    let mut weights = source.read_f32(&info.name, &info.shape)?;
                    baseline.quantize(&info.name, &mut weights, info.shape[1], bits)?;
                    let width = dtype.bytes();
                    weights.iter().flat_map(|&w| dtype.pattern_of(w).to_le_bytes()[..width].to_vec()).collect()
                }
                false => source.read_raw(&info.name)?,
            };
            Ok(write_file(path, &bytes)?)
        })?;
        let bytes = match coded {
            true => {
                let codes = (info.weights() * u64::from(bits)).div_ceil(8);
                codes + SCALE_BYTES * baseline.scales(info.shape[0], info.shape[1])
            }
            false => info.bytes,
        };
        summary.bytes += bytes;
        if TensorRole::parse(&info.name).is_some_and(TensorRole::is_of_linear_layer) {
            summary.linear_bytes += bytes;
            summary.linear_weights += info.weights();
        }
        let plain = Some(if coded { element_of(source.dtype(&info.name)?) } else { info.element });
        let bytes = blob.metadata().map_err(CheckpointError::io(&blob))?.len();
        entries.push(Entry {
            name: info.name.clone(),
            shape: info.shape.clone(),
            plain,
            data: Data::File(blob),
            bytes,
        });
        progress.advance(1);
    }
    summary.resident_bytes = summary.bytes;
    write_checkpoint(source.dir(), &out, &entries, false)?;
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_as_many_as_the_bits_say() {
        let mut row: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        let original = row.clone();
        feed_back(&mut row, 32, 3, &LdlFactor::diagonal(vec![1.0; 64]));
        for part in row.chunks(32) {
            let mut values: Vec<f32> = part.to_vec();
            values.sort_by(f32::total_cmp);
            values.dedup();
            assert!((4..=8).contains(&values.len()), "{values:?}");
        }
        assert!(row.iter().zip(&original).all(|(a, b)| (a - b).abs() <= 0.17));
    }

    /// Three bits of fraction: a sixteenth of the weight at most, and finer than a scale of eight bits for small ones.
    #[test]
    fn fp8_is_relative_to_the_weight() {
        let (rows, cols) = (20, 24);
        let original: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * 0.02).collect();
        let mut weights = original.clone();
        by_tile(&mut weights, cols, |tile| assert!([256, 128, 64, 32].contains(&tile.len()), "{}", tile.len()));
        let quantize = |bits| -> Vec<f32> {
            let mut weights = original.clone();
            Baseline::Fp8.quantize("w", &mut weights, cols, bits).unwrap();
            weights
        };
        for (q, w) in quantize(8).iter().zip(&original) {
            assert!((q - w).abs() <= w.abs() / 16.0 + 1e-6, "{q} {w}");
        }
        assert!(quantize(8) != original);
    }
}
