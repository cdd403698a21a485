//! Measurement: rate-distortion candidates of all tiles.

use std::path::PathBuf;

use rayon::prelude::*;
use waterfill_allocate as allocate;
use waterfill_calibrate::{CalibrateSummary, Sensitivities};
use waterfill_codec::Format;
use waterfill_model::EMBEDDING;
use waterfill_model::roles::is_linear;
use waterfill_quadratic::{Damping, LdlFactor};
use waterfill_store::{Identity, Progress, Work};

use crate::context::Context;
use crate::error::{PipelineError, Result};
use crate::estimate::PROGRAM;
use crate::results::write_json;
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of the artifact; raised when results change.
const VERSION: u32 = 6;
/// File with the name of every matrix and the file of its candidates.
const INDEX: &str = "index.json";

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

fn unit(n: usize) -> String {
    format!("{n:04}.safetensors")
}

impl Stage for Measure<'_> {
    fn label(&self) -> String {
        "measure".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let (a, e) = (&context.config.allocate, &context.config.encode);
        let floats: Vec<_> = formats(context).iter().filter(|f| f.minifloat().is_some()).map(|f| f.name()).collect();
        let settings = serde_json::json!({
            "feedback": e.feedback, "damping": e.damping, "fold_rule": a.fold_rule, "granularity": a.granularity,
            "sensitivity_floor": a.sensitivity_floor, "float_formats": floats,
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
        let summary: CalibrateSummary = self.calibration.read("summary.json")?;
        let weights = context.model.weights();
        let checkpoint = context.model.checkpoint();
        let erasure = |(name, shape): &(String, [usize; 2])| -> Result<_> {
            let sensitivity = sensitivities.read(name, shape[0], shape[1])?;
            let rows = checkpoint.rows(name, shape)?;
            allocate::erasure_loss(|range| Ok(rows.read(range)?), &sensitivity, a.fold_rule)
        };
        let erasures = weights.par_iter().map(erasure).collect::<Result<Vec<_>>>()?;
        let loss_factors = allocate::sensitivity_floor(&erasures, a.sensitivity_floor);
        let formats = formats(context);
        context.console.start("measure", weights.len() as u64);
        let mut index = Vec::new();
        for (i, (name, shape)) in weights.iter().enumerate() {
            let file = unit(i);
            work.file(&file, |path| -> Result<()> {
                let sensitivity = sensitivities.read(name, shape[0], shape[1])?;
                let values = checkpoint.read_f32(name, shape)?;
                let dtype = checkpoint.dtype(name)?;
                let unseen = if name == EMBEDDING { 0.5 / summary.tokens as f64 } else { 0.0 };
                let hessian = if e.feedback { sensitivities.hessian(name)? } else { None };
                let damping = Damping { uniform: 0.0, lookup: sensitivity.lookup_share(), levels: &[] };
                let ldl = hessian.map(|h| LdlFactor::new(&h, &damping));
                let linear = is_linear(name);
                let rules = allocate::MeasureOptions {
                    fold_rule: a.fold_rule,
                    scale_vectors: if linear { of_linears } else { of_others },
                    shared_steps: linear && a.granularity.sharing() != allocate::Sharing::Tile,
                    unseen,
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
