//! All stages in order, and what comes out of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use waterfill_checkpoint::Prefix;
use waterfill_codec::BitsPerWeight;
use waterfill_evaluate::tasks::Task;
use waterfill_evaluate::{Band, ChoiceResult, Estimate, TextResult};
use waterfill_quantize::EncodeSummary;
use waterfill_quantize::rdo::Usage;
use waterfill_store::{Artifact, Progress};

use crate::closed_loop::{Attempt, kept};
use crate::config::Probes;
use crate::error::Result;
use crate::evaluation::{Asked, Evaluated, Whose};
use crate::probe::Probed;
use crate::report::write_report;
use crate::results::{AllocationSummary, Choice, Evaluation, read_json};
use crate::runs::Record;
use crate::session::{Goal, Session};
use crate::stages::Until;
use crate::tune::{Part, Tuned};

/// The object that `--json` prints; these names stay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunOutput {
    /// Name of the pipeline.
    pub model: String,
    /// The original, when it was evaluated.
    pub base: Option<BaseOutput>,
    /// Tuned checkpoints, smallest first.
    pub points: Vec<PointOutput>,
    /// Directories of the stages' artifacts, and `report` with tables and figures.
    pub artifacts: BTreeMap<String, PathBuf>,
}

/// Quality of the original.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BaseOutput {
    /// Nats per token.
    pub nll: f64,
    /// exp(nll).
    pub perplexity: f64,
    /// Share of right answers to the first benchmark.
    pub accuracy: Option<f64>,
    /// Figures by position in long sequences, where they were asked for.
    pub by_position: Vec<Band>,
    /// All benchmarks.
    pub benchmarks: Vec<BenchmarkOutput>,
}

impl BaseOutput {
    pub(crate) fn of(e: &Evaluation) -> Self {
        Self {
            nll: e.text.nll.mean,
            perplexity: e.text.perplexity,
            accuracy: e.choices.first().map(|c| c.result.all.accuracy),
            by_position: e.by_position.clone(),
            benchmarks: BenchmarkOutput::all(e),
        }
    }
}

/// A benchmark's questions, answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchmarkOutput {
    /// Which one.
    pub task: Task,
    /// Shares of right answers.
    #[serde(flatten)]
    pub result: ChoiceResult,
    /// Change of the accuracy from the original's, paired, with its standard error.
    pub change: Estimate,
    /// File with every answer.
    pub answers: PathBuf,
}

impl BenchmarkOutput {
    pub(crate) fn all(evaluation: &Evaluation) -> Vec<Self> {
        let one =
            |c: &Choice| Self { task: c.task, result: c.result.clone(), change: c.change, answers: c.answers.clone() };
        evaluation.choices.iter().map(one).collect()
    }
}

/// How much of a checkpoint in layers is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// The base and those after it.
    pub used: usize,
    /// Layers of the checkpoint.
    pub of: usize,
    /// Whether the last of those used is whole.
    pub whole: bool,
}

/// One tuned checkpoint; measured fields are empty where a stage did not run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PointOutput {
    /// Nats of loss for one bit of the file.
    pub lambda: f64,
    /// Of a checkpoint in layers, how many of them; sizes are of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Bytes of all safetensors files.
    pub bytes: Option<u64>,
    /// Bits of the file over all weights.
    pub bits_per_weight: Option<f64>,
    /// Bits of the coded linear layers over their weights.
    pub linear_bits_per_weight: Option<f64>,
    /// Bits in a runtime's memory over all weights.
    pub resident_bits_per_weight: f64,
    /// Nats per token.
    pub nll: Option<f64>,
    /// exp(nll).
    pub perplexity: Option<f64>,
    /// KL(original || tuned), nats per token.
    pub kl: Option<f64>,
    /// Standard error of `kl` over sequences.
    pub kl_se: Option<f64>,
    /// Share of positions with the original's most likely token.
    pub top1: Option<f64>,
    /// Share of right answers to the first benchmark.
    pub accuracy: Option<f64>,
    /// Figures by position in long sequences, where they were asked for.
    pub by_position: Vec<Band>,
    /// All benchmarks.
    pub benchmarks: Vec<BenchmarkOutput>,
    /// Loss that the allocation predicted.
    pub predicted_loss: f64,
    /// The same model's loss of the decoded weights.
    pub decoded_loss: Option<f64>,
    /// KL on calibration's kind of text that the decoded weights are expected to have: their loss by the
    /// model, and what probes found errors to make of each other.
    pub predicted_kl: Option<f64>,
    /// Numbers of tiles by coding tool, by kind of tensor.
    pub usage: BTreeMap<String, Usage>,
    /// Directory of the tuned checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Directory of its allocation, with `tiles.parquet`.
    pub allocation: Option<PathBuf>,
    /// File with the figures of every sequence of the text.
    pub sequences: Option<PathBuf>,
    /// Where the loop was closed, all its allocations; this point is the one that was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_loop: Vec<Attempt>,
}

/// One allocation with what was made of it, or the first layers of that.
pub(crate) struct Made {
    pub summary: AllocationSummary,
    pub allocated: Option<Artifact>,
    pub layers: Option<Layers>,
    pub encoded: Option<(Artifact, EncodeSummary)>,
    pub evaluated: Option<Evaluation>,
    pub attempts: Vec<Attempt>,
}

/// Runs the stages up to `until`; finished artifacts are found in the store.
///
/// # Errors
/// The first failure; finished artifacts stay.
pub fn run(session: &Session, until: Until) -> Result<RunOutput> {
    let goals = session.goals();
    let evaluations = if until >= Until::Evaluate { session.evaluations() as u64 } else { 0 };
    let per_goal = [Until::Allocate, Until::Encode].iter().filter(|u| **u <= until).count() as u64 + evaluations;
    let shared = [Until::Calibrate, Until::Allocate].iter().filter(|u| **u <= until).count() as u64 + evaluations;
    let reports = u64::from(until >= Until::Report);
    session.console.steps(shared + per_goal * goals.len() as u64 + reports);
    let mut artifacts = BTreeMap::new();
    let calibration = session.calibrate()?;
    artifacts.insert("calibrate".to_string(), calibration.fitted.dir.clone());
    let mut made: Vec<Made> = Vec::new();
    let mut base = None;
    let mut probed: Option<Probed> = None;
    if until >= Until::Allocate {
        // Baselines need neither points nor allocations.
        let points = match session.config.baseline {
            Some(_) => None,
            None => Some(session.points(&calibration.fitted)?),
        };
        let probes = points.as_ref().map(|points| session.probe(&calibration, points)).transpose()?.flatten();
        if let Some(probes) = &probes {
            probed = Some(read_json(&probes.path("probes.json"))?);
        }
        for (name, artifact) in [("points", &points), ("probe", &probes)] {
            artifacts.extend(artifact.iter().map(|a| (name.to_string(), a.dir.clone())));
        }
        if until >= Until::Evaluate {
            let asked = session.asked()?;
            let evaluated = session.evaluate(Whose::Original, &asked)?;
            base = Some((evaluated, asked));
        }
        for &goal in &goals {
            let mut attempts = Vec::new();
            let tuned = match (&points, goal) {
                (_, Goal::Width(bits)) => session.baseline(&calibration.fitted, bits)?,
                (None, _) => continue,
                (Some(points), _) if until < Until::Encode => {
                    let allocation = session.allocate(points, probes.as_ref(), goal)?;
                    let summary = read_json(&allocation.path("summary.json"))?;
                    made.push(Made {
                        summary,
                        allocated: Some(allocation),
                        layers: None,
                        encoded: None,
                        evaluated: None,
                        attempts: vec![],
                    });
                    continue;
                }
                (Some(points), _) if session.config.allocate.closed_loop == Probes::None => {
                    session.tune(&calibration, points, probes.as_ref(), goal)?
                }
                (Some(points), _) => {
                    let closed = session.close_loop(&calibration, points, probes.as_ref(), goal)?;
                    attempts = closed
                        .iter()
                        .map(|(a, tuned)| attempt(session, a, tuned, base.as_ref()))
                        .collect::<Result<_>>()?;
                    kept(closed)
                }
            };
            for Part { prefix, layers, lambda, sizes } in session.prefixes(&tuned)? {
                let evaluated = match &base {
                    Some((base, asked)) => {
                        let evaluated = session.evaluate(Whose::Tuned(&tuned.encoded, prefix, base), asked)?;
                        Some(evaluated.read(Some(base))?)
                    }
                    None => None,
                };
                let summary = AllocationSummary { lambda, ..tuned.allocation.clone() };
                let encoded = Some((tuned.encoded.clone(), sizes));
                let (allocated, attempts) = (tuned.allocated.clone(), attempts.clone());
                made.push(Made { summary, allocated, layers, encoded, evaluated, attempts });
            }
        }
    }
    made.sort_by(|a, b| b.summary.lambda.total_cmp(&a.summary.lambda));
    let base = base.map(|(evaluated, _)| evaluated.read(None)).transpose()?;
    let mut output = RunOutput {
        model: session.config.name.clone(),
        base: base.as_ref().map(BaseOutput::of),
        points: made.iter().map(|one| point_output(one, probed.as_ref())).collect(),
        artifacts,
    };
    if let Some(base) = base.filter(|_| until >= Until::Report) {
        let artifact = write_report(session, &base, &made, &output)?;
        session.uses(&artifact);
        output.artifacts.insert("report".into(), artifact.dir);
    }
    let tensors = made.iter().map(|one| one.summary.tensors.clone()).collect();
    // A store that cannot be written to may still have everything.
    if let Err(error) = Record::keep(session, until, &output, tensors) {
        session.console.note(&format!("the run is not recorded: {error}"));
    }
    Ok(output)
}

/// An allocation of a loop with its KL on the evaluation's text.
fn attempt(session: &Session, attempt: &Attempt, tuned: &Tuned, base: Option<&(Evaluated, Asked)>) -> Result<Attempt> {
    let Some((base, asked)) = base else { return Ok(attempt.clone()) };
    let text = session.evaluate_text(Whose::Tuned(&tuned.encoded, Prefix::All, base), asked)?;
    let text: TextResult = read_json(&text.path("result.json"))?;
    Ok(Attempt { kl: Some(text.kl), ..attempt.clone() })
}

fn point_output(made: &Made, probed: Option<&Probed>) -> PointOutput {
    let sizes = made.encoded.as_ref().map(|(_, sizes)| sizes);
    let text = made.evaluated.as_ref().map(|e| &e.text);
    PointOutput {
        lambda: made.summary.lambda,
        layers: made.layers,
        bytes: sizes.map(|s| s.bytes),
        bits_per_weight: sizes.map(|s| BitsPerWeight::of_bytes(s.bytes, s.weights).0),
        linear_bits_per_weight: sizes.map(|s| BitsPerWeight::of_bytes(s.linear_bytes, s.linear_weights).0),
        resident_bits_per_weight: (made.summary.resident_bits + sizes.map_or(0.0, |s| s.widened_bits))
            / made.summary.weights as f64,
        nll: text.map(|t| t.nll.mean),
        perplexity: text.map(|t| t.perplexity),
        kl: text.map(|t| t.kl.mean),
        kl_se: text.map(|t| t.kl.se),
        top1: text.map(|t| t.top1.mean),
        accuracy: made.evaluated.as_ref().and_then(|e| e.choices.first()).map(|c| c.result.all.accuracy),
        by_position: made.evaluated.as_ref().map(|e| e.by_position.clone()).unwrap_or_default(),
        benchmarks: made.evaluated.as_ref().map(BenchmarkOutput::all).unwrap_or_default(),
        predicted_loss: made.summary.predicted_loss,
        decoded_loss: sizes.map(|s| s.loss),
        predicted_kl: sizes.map(|s| probed.map_or(s.loss, |p| p.expected(&s.losses))),
        usage: sizes.map(|s| s.usage.clone()).unwrap_or_default(),
        checkpoint: made.encoded.as_ref().map(|(a, _)| a.path("checkpoint")),
        allocation: made.allocated.as_ref().map(|a| a.dir.clone()),
        sequences: made.evaluated.as_ref().map(|e| e.sequences.clone()),
        closed_loop: made.attempts.clone(),
    }
}
