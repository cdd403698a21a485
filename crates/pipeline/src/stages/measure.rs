//! Measurement: rate-distortion candidates of all tiles.

use std::path::PathBuf;

use rayon::prelude::*;
use waterfill_allocate as allocate;
use waterfill_calibrate::Sensitivities;
use waterfill_codec::Format;
use waterfill_config::PolicyName;
use waterfill_model::TensorRole;
use waterfill_model::roles::is_linear;
use waterfill_quadratic::{Damping, LdlFactor};
use waterfill_store::{Identity, Progress, Work};

use crate::context::Context;
use crate::error::{PipelineError, Result};
use crate::estimate::PROGRAM;
use crate::results::write_json;
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of the artifact; raised when results change.
const VERSION: u32 = 10;
/// File with the name of every matrix and the file of its candidates.
const INDEX: &str = "index.json";
/// Shares of the information of a head, and of an embedding that is not the head, that are added to their rows in equal
/// parts: other texts use other words.
const UNSEEN_HEAD: f64 = 0.1;
const UNSEEN_EMBEDDING: f64 = 0.3;

/// Rate-distortion candidates of all tiles under one calibration.
pub(crate) struct Measure<'a> {
    pub calibration: &'a ArtifactRef,
}

/// Every matrix with the file of its candidates.
pub(crate) fn candidate_files(measured: &ArtifactRef) -> Result<Vec<(String, PathBuf)>> {
    let index: Vec<(String, String)> = measured.read(INDEX)?;
    Ok(index.into_iter().map(|(name, file)| (name, measured.path(&file))).collect())
}

/// Formats that tiles may have.
pub(super) fn formats(context: &Context) -> Vec<Format> {
    context.config.allocate.formats.iter().map(|f| f.0).collect()
}

/// Formats whose candidates are measured: also those of floors, which say how much may be lost.
fn measured_formats(context: &Context) -> Vec<Format> {
    let a = &context.config.allocate;
    let safe = (a.policy == PolicyName::Safe).then_some(Format::Fp8);
    let floors = a.floors.iter().map(|floor| floor.at_least.0).chain(safe);
    let mut all = formats(context);
    floors.for_each(|format| {
        if !all.contains(&format) {
            all.push(format)
        }
    });
    all
}

/// Share of a matrix' information that each of its `rows` gets, whether calibration has seen its token or not.
fn unseen(name: &str, rows: usize, tied: bool) -> f64 {
    match TensorRole::parse(name) {
        Some(TensorRole::Embedding) if !tied => UNSEEN_EMBEDDING / rows as f64,
        // A tied embedding is a head above all.
        Some(TensorRole::Embedding | TensorRole::Head) => UNSEEN_HEAD / rows as f64,
        _ => 0.0,
    }
}

/// States of the trellis of planes, 0 for uniform levels: what they are known by in the stage's key.
fn states(planes: allocate::Planes) -> usize {
    match planes {
        allocate::Planes::Uniform => 0,
        allocate::Planes::Trellis(trellis) => trellis.states(),
    }
}

/// What planes hold, where memory comes first.
fn planes(context: &Context) -> Option<allocate::Planes> {
    let (a, e) = (&context.config.allocate, &context.config.encode);
    let first = a.rate().memory_first() && a.granularity.sharing() == allocate::Sharing::Tile;
    first.then(|| e.bit_shift().map_or(allocate::Planes::Uniform, allocate::Planes::Trellis))
}

fn unit(n: usize) -> String {
    format!("{n:04}.safetensors")
}

impl Stage for Measure<'_> {
    fn label(&self) -> String {
        "measure".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let (a, e) = (&context.config.allocate, &context.config.encode);
        let floats: Vec<_> =
            measured_formats(context).iter().filter(|f| f.minifloat().is_some()).map(|f| f.name()).collect();
        let settings = serde_json::json!({
            "feedback": e.feedback, "damping": e.damping, "fold_rule": a.fold_rule, "granularity": a.granularity,
            "sensitivity_floor": a.sensitivity_floor, "float_formats": floats, "planes": planes(context).map(states), "spread_scales": a.rate().memory_first(),
        });
        Ok(context.identity("measure", VERSION, &[("calibrate", self.calibration.digest())], settings))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let shapes = || context.model.weights().into_iter().map(|(_, [rows, cols])| [rows as u64, cols as u64]);
        let largest = shapes().map(|[rows, cols]| rows * cols).max().unwrap_or(0);
        let widest = shapes().map(|[_, cols]| cols).max().unwrap_or(0);
        let factor = if context.config.encode.feedback { 16 * widest * widest } else { 0 };
        Estimate {
            operations: context.model.checkpoint().weights() as f64 * 4e4,
            // Values in f32, and candidates twice: as they are measured and as they are written.
            memory: PROGRAM + largest * 8 + factor,
            disk: 0,
        }
    }

    fn units(&self, context: &Context) -> Result<Vec<String>> {
        Ok((0..context.model.weights().len()).map(unit).collect())
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let (a, e) = (&context.config.allocate, &context.config.encode);
        let (of_linears, of_others) = a.granularity.scales();
        let sensitivities = Sensitivities::open(self.calibration.dir())?.damped(e.damping);
        let weights = context.model.weights();
        let checkpoint = context.model.checkpoint();
        let erasure = |(name, shape): &(String, [usize; 2])| -> Result<_> {
            let sensitivity = sensitivities.read(name, shape[0], shape[1])?;
            let rows = checkpoint.rows(name, shape)?;
            allocate::erasure_loss(|range| Ok(rows.read(range)?), &sensitivity, a.fold_rule)
        };
        let erasures = weights.par_iter().map(erasure).collect::<Result<Vec<_>>>()?;
        let loss_factors = allocate::sensitivity_floor(&erasures, a.sensitivity_floor);
        let formats = measured_formats(context);
        context.console.start("measure", weights.len() as u64);
        let mut index = Vec::new();
        for (i, (name, shape)) in weights.iter().enumerate() {
            let file = unit(i);
            work.file(&file, |path| -> Result<()> {
                let sensitivity = sensitivities.read(name, shape[0], shape[1])?;
                let values = checkpoint.read_f32(name, shape)?;
                let dtype = checkpoint.dtype(name)?;
                let hessian = if e.feedback { sensitivities.hessian(name)? } else { None };
                let damping = Damping { uniform: 0.0, lookup: sensitivity.lookup_share(), levels: &[] };
                let ldl = hessian.map(|h| LdlFactor::new(&h, &damping));
                let linear = is_linear(name);
                let rules = allocate::MeasureOptions {
                    fold_rule: a.fold_rule,
                    scale_vectors: if linear { of_linears } else { of_others },
                    shared_steps: linear && a.granularity.sharing() != allocate::Sharing::Tile,
                    unseen: unseen(name, shape[0], context.model.config.tied),
                    planes: planes(context),
                    spread_scales: a.rate().memory_first()
                        && (linear || a.granularity.sharing() == allocate::Sharing::Tile),
                    loss_factor: loss_factors[i],
                    formats: &formats,
                    ldl: ldl.as_ref(),
                };
                let points = allocate::measure_candidates(&values, dtype, &sensitivity, &rules);
                points
                    .write(path)
                    .map_err(|error| PipelineError::Stage { stage: format!("measure {name}"), source: Box::new(error) })
            })?;
            work.adopt(&file)?;
            index.push((name.clone(), file));
            context.console.advance(1);
        }
        write_json(&work.path(INDEX), &index)
    }
}

#[cfg(test)]
mod tests {
    use waterfill_calibrate::Sensitivity;
    use waterfill_codec::{Dtype, Lambda, TILE};
    use waterfill_model::EMBEDDING;

    use super::*;

    /// Fisher information of a matrix whose columns are alike.
    fn of_rows(rows: &[f64], cols: usize) -> Sensitivity {
        let tiles: Vec<[f64; 1]> = rows.chunks(TILE).map(|tile| [tile.iter().sum()]).collect();
        Sensitivity {
            tile_fisher: vec![tiles.into()],
            row_fisher: rows.to_vec().into(),
            col_fisher: vec![1.0; cols].into(),
            row_g2: vec![1.0; rows.len()].into(),
            col_x2: vec![1.0; cols].into(),
            lookup_row_fisher: None,
        }
    }

    /// However little calibration has seen of the second half's tokens, their rows keep four fifths of their energy at sizes
    /// below three bits a weight.
    #[test]
    fn unseen_rows_keep_their_energy() {
        let (rows, cols) = (4 * TILE, TILE);
        let weights: Vec<f32> = (0..rows * cols).map(|i| 0.05 * ((i * i) as f32 * 0.37).sin()).collect();
        let formats = [Format::Int2, Format::Int3, Format::Int4, Format::Int8];
        let policy = allocate::Policy {
            formats: formats.to_vec(),
            floors: vec![],
            margin: 0.0,
            rate: Default::default(),
            corrections: Default::default(),
            structure: None,
        };
        for name in ["lm_head.weight", EMBEDDING] {
            let options = allocate::MeasureOptions {
                fold_rule: Default::default(),
                scale_vectors: allocate::ScaleVectors::Row,
                unseen: unseen(name, rows, false),
                loss_factor: 1.0,
                formats: &formats,
                planes: None,
                spread_scales: false,
                shared_steps: false,
                ldl: None,
            };
            let fisher: Vec<f64> = (0..rows).map(|i| if i < rows / 2 { 1.0 } else { 1e-6 }).collect();
            let measured = allocate::measure_candidates(&weights, Dtype::F32, &of_rows(&fisher, cols), &options);
            let selection = allocate::select_weight(name, &measured, &policy, Lambda(4e-7)).unwrap();
            let bits = selection.rate.0 / weights.len() as f64;
            assert!(bits < 3.0, "{bits}");
            for n in 2..4 {
                // The coarsest step makes all levels zero.
                let energy = measured.tiles.tile(n).map(|candidate| candidate.loss.0).fold(0.0, f64::max);
                let lost = selection.chosen[n].loss.0 / energy;
                assert!(lost < 0.2, "{name}: tile {n} loses {lost} of its energy");
            }
        }
    }
}
