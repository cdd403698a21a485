//! The run of a pipeline: calibrate, measure, allocate, encode, evaluate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use waterfill_codec::BitsPerWeight;
use waterfill_config::Probes;
use waterfill_quantize::EncodeSummary;

use super::closed_loop::{AttemptRefs, close_loop};
use super::compress::{CheckpointPrefix, Compressed, Inputs, compress, prefixes};
use crate::context::Context;
use crate::engine::{Engine, PlannedStage};
use crate::error::Result;
use crate::goal::Goal;
use crate::output::{
    Attempt, BaseOutput, BenchmarkOutput, FloorsOutput, PointOutput, PredictedKl, QualityLayers, RunOutput, SCHEMA,
};
use crate::results::{AllocationSummary, EvaluationResult};
use crate::stage::ArtifactRef;
use crate::stages::corrections::{CORRECTIONS, Corrections};
use crate::stages::{Allocate, EvaluateText, Evaluation, Measure, Subject, calibrate, probe};

/// The last stage to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// Sensitivities.
    Calibrate,
    /// Allocations.
    Allocate,
    /// Compressed checkpoints.
    Encode,
    /// Their quality.
    Evaluate,
    /// Tables and figures.
    Report,
}

/// A finished run: its figures, and the artifacts that they are from.
pub struct RunArtifacts {
    /// The object that `--json` prints.
    pub output: RunOutput,
    /// Evaluation of the original, where the run got that far.
    pub base: Option<EvaluationResult>,
    /// One for each point of the output.
    pub points: Vec<PointArtifacts>,
    /// Sensitivities.
    pub calibration: ArtifactRef,
    /// Folders of all artifacts that were made or found.
    pub used: BTreeSet<PathBuf>,
}

/// The artifacts of one compressed checkpoint, or of a prefix of it, with their figures.
pub struct PointArtifacts {
    /// The allocation, with the lambda of the last layer that is used.
    pub summary: AllocationSummary,
    /// Its artifact; `None` for baselines.
    pub allocated: Option<ArtifactRef>,
    /// The part of a checkpoint with quality layers that is used.
    pub layers: Option<QualityLayers>,
    /// The checkpoint with its sizes, where the run got that far.
    pub encoded: Option<(ArtifactRef, EncodeSummary)>,
    /// Its quality, where the run got that far.
    pub evaluated: Option<EvaluationResult>,
    /// All allocations of a closed loop.
    pub attempts: Vec<Attempt>,
}

/// One point of the flow before its figures are read.
struct Point {
    compressed: Option<Compressed>,
    allocated: Option<ArtifactRef>,
    prefix: Option<CheckpointPrefix>,
    evaluation: Option<Evaluation>,
    attempts: Vec<AttemptRefs>,
}

/// All points of the flow, and the artifacts that they share.
struct Flow {
    calibration: ArtifactRef,
    measured: Option<ArtifactRef>,
    corrections: Option<ArtifactRef>,
    base: Option<Evaluation>,
    points: Vec<Point>,
}

/// The flow of stages up to `until`.
fn flow(engine: &Engine, until: Until) -> Result<Flow> {
    let context = engine.context();
    let calibration = calibrate(engine)?;
    let mut all =
        Flow { calibration: calibration.clone(), measured: None, corrections: None, base: None, points: Vec::new() };
    if until == Until::Calibrate {
        return Ok(all);
    }
    // Baselines need neither candidates nor allocations.
    if context.config.baseline.is_none() {
        let measured = engine.make(&Measure { calibration: &calibration })?;
        all.corrections = probe(engine, &calibration, &measured)?;
        all.measured = Some(measured);
    }
    if until >= Until::Evaluate {
        all.base = Some(Evaluation::make(engine, Subject::Original)?);
    }
    // Predictions alone change no allocation.
    let corrects = matches!(context.config.allocate.probes, Probes::Roles | Probes::Tensors);
    let corrections = all.corrections.clone().filter(|_| corrects);
    let inputs = Inputs { calibration, measured: all.measured.clone(), corrections };
    for goal in context.goals() {
        if let (Until::Allocate, Some(measured)) = (until, &inputs.measured) {
            let allocated =
                engine.make(&Allocate { measured, corrections: inputs.corrections.as_ref(), goal, plain: false })?;
            let (compressed, prefix, evaluation, attempts) = (None, None, None, Vec::new());
            let allocated = Some(allocated);
            all.points.push(Point { compressed, allocated, prefix, evaluation, attempts });
            continue;
        }
        let (compressed, attempts) = compressed(engine, &inputs, goal, all.base.as_ref())?;
        for prefix in prefixes(engine, &compressed)? {
            let evaluation = match &all.base {
                Some(base) => {
                    let subject = Subject::Compressed(&compressed.encoded, prefix.prefix, base);
                    Some(Evaluation::make(engine, subject)?)
                }
                None => None,
            };
            all.points.push(Point {
                compressed: Some(compressed.clone()),
                allocated: compressed.allocated.clone(),
                prefix: Some(prefix),
                evaluation,
                attempts: attempts.clone(),
            });
        }
    }
    Ok(all)
}

/// The compressed checkpoint of a goal, and the attempts of its closed loop, if there is one.
fn compressed(
    engine: &Engine,
    inputs: &Inputs,
    goal: Goal,
    base: Option<&Evaluation>,
) -> Result<(Compressed, Vec<AttemptRefs>)> {
    let closed = engine.context().config.allocate.closed_loop != Probes::None;
    if !closed || matches!(goal, Goal::Width(_)) {
        return Ok((compress(engine, inputs, goal)?, Vec::new()));
    }
    let mut attempts = close_loop(engine, inputs, goal)?;
    if let Some(base) = base {
        for attempt in &mut attempts {
            let prefix = waterfill_checkpoint::QualityPrefix::All;
            let subject = Subject::Compressed(&attempt.compressed.encoded, prefix, base);
            attempt.text = Some(engine.make(&EvaluateText { subject })?);
        }
    }
    let kept = attempts.iter().find(|attempt| attempt.kept).expect("one is kept").compressed.clone();
    Ok((kept, attempts))
}

/// Lists the stages of a run up to the evaluation in order, without running them; the report, which takes no time, is left
/// out.
///
/// # Errors
/// Data that cannot be read, and damaged artifacts.
pub fn plan(context: &Context) -> Result<Vec<PlannedStage>> {
    let engine = Engine::planning(context);
    flow(&engine, Until::Evaluate)?;
    Ok(engine.into_plan())
}

/// Runs the stages up to `until`, at most the evaluation; finished artifacts are found in the store.
///
/// # Errors
/// The first failure; finished artifacts stay.
pub fn run(context: &Context, until: Until) -> Result<RunArtifacts> {
    let planned = Engine::planning(context);
    flow(&planned, until)?;
    context.console.steps(planned.into_plan().len() as u64 + u64::from(until >= Until::Report));
    let engine = Engine::running(context);
    let Flow { calibration, measured, corrections, base, points } = flow(&engine, until)?;
    let mut artifacts = BTreeMap::from([("calibrate".to_string(), calibration.dir().to_path_buf())]);
    for (name, artifact) in [("measure", &measured), ("probe", &corrections)] {
        artifacts.extend(artifact.iter().map(|a| (name.to_string(), a.dir().to_path_buf())));
    }
    let mut points: Vec<PointArtifacts> =
        points.into_iter().map(|point| point.read(base.as_ref())).collect::<Result<_>>()?;
    points.sort_by(|a, b| b.summary.lambda.total_cmp(&a.summary.lambda));
    let corrections: Option<Corrections> = corrections.map(|artifact| artifact.read(CORRECTIONS)).transpose()?;
    let base = base.map(|base| base.read(None)).transpose()?;
    let output = RunOutput {
        schema: SCHEMA,
        model: context.config.name.clone(),
        base: base.as_ref().map(BaseOutput::of),
        points: points.iter().map(|point| point.output(corrections.as_ref())).collect(),
        artifacts,
    };
    Ok(RunArtifacts { output, base, points, calibration, used: engine.used() })
}

impl Point {
    fn read(self, base: Option<&Evaluation>) -> Result<PointArtifacts> {
        let summary: AllocationSummary = match (&self.compressed, &self.allocated) {
            (Some(compressed), _) => compressed.allocation()?.expect("a run has made it"),
            (None, Some(allocated)) => allocated.read("summary.json")?,
            (None, None) => unreachable!("a point has an allocation or a checkpoint"),
        };
        let lambda = self.prefix.as_ref().map_or(summary.lambda, |prefix| prefix.lambda);
        let encoded = match (self.compressed, &self.prefix) {
            (Some(compressed), Some(prefix)) => {
                let sizes = prefix.sizes.clone().expect("a run has made it");
                Some((compressed.encoded, sizes))
            }
            _ => None,
        };
        Ok(PointArtifacts {
            summary: AllocationSummary { lambda, ..summary },
            allocated: self.allocated,
            layers: self.prefix.and_then(|prefix| prefix.layers),
            encoded,
            evaluated: self.evaluation.map(|evaluation| evaluation.read(base)).transpose()?,
            attempts: self.attempts.iter().map(AttemptRefs::read).collect::<Result<_>>()?,
        })
    }
}

impl PointArtifacts {
    fn output(&self, corrections: Option<&Corrections>) -> PointOutput {
        // A prefix of quality layers has no allocation of its own.
        let loss = match (&self.layers, &self.encoded) {
            (Some(_), Some((_, sizes))) => sizes.loss,
            _ => self.summary.predicted_loss,
        };
        let prediction = corrections.and_then(|c| c.prediction.as_ref()).filter(|p| loss > 0.0 && p.holds());
        let overall = prediction.and_then(|p| Some(PredictedKl::new("all", p.expected(p.all?, loss))));
        let predicted = prediction
            .map(|p| p.texts.iter().map(|t| PredictedKl::new(&t.text, p.expected(t.ratio, loss))).collect::<Vec<_>>());
        let sizes = self.encoded.as_ref().map(|(_, sizes)| sizes);
        let text = self.evaluated.as_ref().map(|e| &e.text);
        let resident_bits = sizes.map_or(self.summary.resident_bits, |s| 8.0 * s.resident_bytes as f64);
        PointOutput {
            lambda: self.summary.lambda,
            quality_layers: self.layers,
            bytes: sizes.map(|s| s.bytes),
            bits_per_weight: sizes.map(|s| BitsPerWeight::of_bytes(s.bytes, s.weights).0),
            linear_bits_per_weight: sizes.map(|s| BitsPerWeight::of_bytes(s.linear_bytes, s.linear_weights).0),
            resident_bits_per_weight: resident_bits / self.summary.weights as f64,
            // Of a prefix of quality layers the allocation is that of the finest.
            floors: self.layers.is_none().then(|| FloorsOutput::of(&self.summary)).flatten(),
            nll: text.map(|t| t.nll.mean),
            perplexity: text.map(|t| t.perplexity),
            kl: text.map(|t| t.kl.mean),
            kl_se: text.map(|t| t.kl.se),
            top1: text.map(|t| t.top1.mean),
            accuracy: self.evaluated.as_ref().and_then(|e| e.choices.first()).map(|c| c.result.all.accuracy),
            by_position: self.evaluated.as_ref().map(|e| e.by_position.clone()).unwrap_or_default(),
            benchmarks: self.evaluated.as_ref().map(BenchmarkOutput::all).unwrap_or_default(),
            predicted_loss: self.summary.predicted_loss,
            decoded_loss: sizes.map(|s| s.loss),
            predicted_kl: overall.map(|p| p.kl),
            predicted: predicted.unwrap_or_default(),
            beyond_quadratic: prediction.and_then(|p| p.beyond(loss)),
            usage: sizes.map(|s| s.usage.clone()).unwrap_or_default(),
            checkpoint: self.encoded.as_ref().map(|(a, _)| a.path("checkpoint")),
            allocation: self.allocated.as_ref().map(|a| a.dir().to_path_buf()),
            sequences: self.evaluated.as_ref().map(|e| e.sequences.clone()),
            closed_loop: self.attempts.clone(),
        }
    }
}
