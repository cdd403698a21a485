//! The objects that `--json` prints and records keep.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use waterfill_evaluate::tasks::Task;
use waterfill_evaluate::{Band, ChoiceResult, Estimate};
use waterfill_quantize::rdo::Usage;

use crate::results::{AllocationSummary, Choice, EvaluationResult};

/// The version of objects from before it was printed.
fn first() -> u32 {
    1
}

/// Version of the names in [`RunOutput`]: 1 had `layers` of a point and artifact `points`.
pub const SCHEMA: u32 = 2;

/// The object that `run --json` prints. Its names stay; [`RunOutput::to_json`] adds the names of the last version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunOutput {
    /// Version of this object's names.
    #[serde(default = "first")]
    pub schema: u32,
    /// Name of the pipeline.
    pub model: String,
    /// The original, when it was evaluated.
    pub base: Option<BaseOutput>,
    /// Compressed checkpoints, smallest first.
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
    /// Figures by position in long sequences, where they were measured.
    pub by_position: Vec<Band>,
    /// All benchmarks.
    pub benchmarks: Vec<BenchmarkOutput>,
}

impl BaseOutput {
    pub(crate) fn of(e: &EvaluationResult) -> Self {
        Self {
            nll: e.text.nll.mean,
            perplexity: e.text.perplexity,
            accuracy: e.choices.first().map(|c| c.result.all.accuracy),
            by_position: e.by_position.clone(),
            benchmarks: BenchmarkOutput::all(e),
        }
    }
}

/// Answers to a benchmark.
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
    pub(crate) fn all(evaluation: &EvaluationResult) -> Vec<Self> {
        let one =
            |c: &Choice| Self { task: c.task, result: c.result.clone(), change: c.change, answers: c.answers.clone() };
        evaluation.choices.iter().map(one).collect()
    }
}

/// The part of a checkpoint with quality layers that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QualityLayers {
    /// Layers used: the base and the refinements after it.
    pub used: usize,
    /// Layers of the checkpoint.
    pub of: usize,
    /// Whether the last layer used is complete.
    pub whole: bool,
}

/// What floors cost, over all matrices that have one which asks for more bits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FloorsOutput {
    /// Matrices.
    pub matrices: usize,
    /// Bits per weight of these more than without floors.
    pub bits: f64,
    /// Predicted loss less than without floors, nats per token.
    pub gain: f64,
    /// Price of the bits over the gain: how many times more they cost than they are worth.
    pub price_over_worth: f64,
    /// The same by theory: `2 ln 2 b / (1 - 4^-b)` for `b` bits a weight above the optimum, numerator and denominator
    /// summed over the weights.
    pub expected: f64,
}

impl FloorsOutput {
    /// Of an allocation; `None` where no floor asks for more.
    pub(crate) fn of(summary: &AllocationSummary) -> Option<Self> {
        let floored = || summary.tensors.iter().filter_map(|t| Some((t.weights as f64, t.without_floor?)));
        let (mut bits, mut price, mut gain, mut weights, mut expected) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (own, [more, cost, worth]) in floored() {
            bits += more;
            price += cost;
            gain += worth;
            weights += own;
            expected += (1.0 - 4f64.powf(-more / own)) * own;
        }
        (bits > 0.0 && gain > 0.0).then(|| Self {
            matrices: floored().count(),
            bits: bits / weights,
            gain,
            price_over_worth: price / gain,
            expected: 2.0 * std::f64::consts::LN_2 * bits / expected,
        })
    }
}

/// One compressed checkpoint; measured fields are empty where a stage did not run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PointOutput {
    /// Nats of loss for one bit of the file.
    pub lambda: f64,
    /// For a checkpoint with quality layers, those that are used; all sizes are of these.
    #[serde(default, alias = "layers", skip_serializing_if = "Option::is_none")]
    pub quality_layers: Option<QualityLayers>,
    /// Bytes of all safetensors files.
    pub bytes: Option<u64>,
    /// Bits of the file over all weights.
    pub bits_per_weight: Option<f64>,
    /// Bits of the coded linear layers over their weights.
    pub linear_bits_per_weight: Option<f64>,
    /// Bits in a runtime's memory over all weights.
    pub resident_bits_per_weight: f64,
    /// What floors cost, by the allocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floors: Option<FloorsOutput>,
    /// Nats per token.
    pub nll: Option<f64>,
    /// exp(nll).
    pub perplexity: Option<f64>,
    /// KL(original || compressed), nats per token.
    pub kl: Option<f64>,
    /// Standard error of `kl` over sequences.
    pub kl_se: Option<f64>,
    /// Share of positions with the original's most likely token.
    pub top1: Option<f64>,
    /// Share of right answers to the first benchmark.
    pub accuracy: Option<f64>,
    /// Figures by position in long sequences, where they were measured.
    pub by_position: Vec<Band>,
    /// All benchmarks.
    pub benchmarks: Vec<BenchmarkOutput>,
    /// Loss that the allocation predicted, nats per token.
    pub predicted_loss: f64,
    /// Loss of the decoded weights by the same quadratic model.
    pub decoded_loss: Option<f64>,
    /// Predicted KL on text like the calibration's, nats per token: `predicted_loss` times what quantized weights
    /// were measured to lose over what was predicted for them.
    pub predicted_kl: Option<f64>,
    /// The same for each text of the calibration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predicted: Vec<PredictedKl>,
    /// The block where errors of such a loss begin to grow otherwise than the quadratic model has it: predictions mean
    /// little then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond_quadratic: Option<usize>,
    /// Numbers of tiles by coding tool, for each tensor role.
    pub usage: BTreeMap<String, Usage>,
    /// Directory of the compressed checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Directory of its allocation, with `tiles.parquet`.
    pub allocation: Option<PathBuf>,
    /// File with the figures of every sequence of the text.
    pub sequences: Option<PathBuf>,
    /// All allocations of a closed loop; this point is the one that was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_loop: Vec<Attempt>,
}

/// KL that is predicted on one kind of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictedKl {
    /// The text, as the configuration names it.
    pub text: String,
    /// Nats per token.
    pub kl: f64,
    /// 95 % interval of its mean over sequences.
    pub interval: [f64; 2],
}

impl PredictedKl {
    pub(crate) fn new(text: &str, kl: Estimate) -> Self {
        const Z: f64 = 1.96;
        let interval = [(kl.mean - Z * kl.se).max(0.0), kl.mean + Z * kl.se];
        Self { text: text.into(), kl: kl.mean, interval }
    }
}

/// Losses by which a compressed checkpoint was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocated {
    /// Predicted losses.
    First,
    /// Losses measured in the first.
    Second,
    /// None: as many bits per weight in all matrices.
    Uniform,
}

impl Allocated {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Uniform => "uniform",
        }
    }
}

/// One allocation of a loop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// Which one.
    pub allocated: Allocated,
    /// Bytes of all safetensors files.
    pub bytes: u64,
    /// Bits of the file over all weights.
    pub bits_per_weight: f64,
    /// KL on held-out text of the calibration, by which one allocation is kept.
    pub held_out: Estimate,
    /// KL on the evaluation's text, where that was measured.
    pub kl: Option<Estimate>,
    /// Directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// Whether this allocation is kept.
    pub kept: bool,
}

impl RunOutput {
    /// The object with `schema`, in which renamed fields also have their name of schema 1.
    ///
    /// # Panics
    /// Never: the object is plain data.
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("plain data");
        for point in value["points"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            if let Some(layers) = point.get("quality_layers").cloned() {
                point.insert("layers".into(), layers);
            }
        }
        if let Some(artifacts) = value["artifacts"].as_object_mut() {
            for (from, to) in [("measure", "points"), ("points", "measure")] {
                if let Some(artifact) = artifacts.get(from).cloned() {
                    artifacts.entry(to).or_insert(artifact);
                }
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_names_are_printed_and_the_old_one_is_read() {
        let layers = QualityLayers { used: 1, of: 2, whole: true };
        let output = RunOutput {
            schema: SCHEMA,
            model: "m".into(),
            base: None,
            points: vec![PointOutput { quality_layers: Some(layers), ..PointOutput::default() }],
            artifacts: [("measure".to_string(), PathBuf::from("x"))].into(),
        };
        let mut value = output.to_json();
        assert_eq!(value["schema"], 2);
        assert_eq!(value["points"][0]["layers"], value["points"][0]["quality_layers"]);
        assert_eq!(value["artifacts"]["points"], "x");
        // As a record of the last version has it.
        value["points"][0].as_object_mut().unwrap().remove("quality_layers");
        value.as_object_mut().unwrap().remove("schema");
        let read: RunOutput = serde_json::from_value(value).unwrap();
        assert_eq!((read.points[0].quality_layers, read.schema), (Some(layers), 1));
    }
}
