//! JSON files of the stages' artifacts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use waterfill_evaluate as eval;

use crate::error::{PipelineError, Result};

/// `summary.json` of an allocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AllocationSummary {
    /// Nats of loss for one bit.
    pub lambda: f64,
    /// The size that was asked for.
    pub target_bytes: Option<u64>,
    /// Nats per token.
    pub predicted_loss: f64,
    /// Bytes of the file, before it is encoded.
    pub estimated_bytes: u64,
    /// Bits in a runtime's memory.
    pub resident_bits: f64,
    /// Weights of the whole checkpoint.
    pub weights: u64,
    /// Coded tensors.
    pub tensors: Vec<TensorSummary>,
}

/// One coded tensor of an allocation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// Its weights.
    pub weights: u64,
    /// Bits it takes, estimated.
    pub bits: f64,
    /// Predicted loss, nats per token.
    pub loss: f64,
    /// Weights in each format.
    pub formats: BTreeMap<String, u64>,
}

/// Figures of a model.
#[derive(Debug, Clone)]
pub struct EvaluationResult {
    /// Figures of the text.
    pub text: eval::TextResult,
    /// File with the text's figures by sequence.
    pub sequences: PathBuf,
    /// The same by position in long sequences.
    pub by_position: Vec<eval::Band>,
    /// Benchmarks in the order of the configuration.
    pub choices: Vec<Choice>,
}

/// Multiple choice, with the paired change from the original.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The benchmark.
    pub task: eval::tasks::Task,
    /// Accuracies.
    pub result: eval::ChoiceResult,
    /// Paired change of the accuracy from the original's.
    pub change: eval::Estimate,
    /// File with every answer.
    pub answers: PathBuf,
}

/// `summary.json` of an export.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExportSummary {
    pub lambda: f64,
    pub predicted_loss: f64,
    pub types: BTreeMap<String, u64>,
}

/// Writes a value as indented JSON.
///
/// # Errors
/// As the file system says.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    std::fs::write(path, text).map_err(PipelineError::io(path))
}

/// Reads a value from JSON.
///
/// # Errors
/// Files that cannot be read, and other fields.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(PipelineError::io(path))?;
    serde_json::from_str(&text).map_err(|e| PipelineError::Json { path: path.into(), source: e })
}
