//! What stages leave in their artifacts as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use waterfill_evaluate as eval;

use crate::error::{PipelineError, Result};

/// `summary.json` of an allocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AllocationSummary {
    pub lambda: f64,
    pub target_bytes: Option<u64>,
    pub predicted_loss: f64,
    pub estimated_bytes: u64,
    pub resident_bits: f64,
    pub weights: u64,
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
pub(crate) struct Evaluation {
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
pub(crate) struct Choice {
    pub task: eval::tasks::Task,
    pub result: eval::ChoiceResult,
    pub change: eval::Estimate,
    /// File with every answer.
    pub answers: PathBuf,
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    std::fs::write(path, text).map_err(|source| PipelineError::Io { path: path.into(), source })
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|source| PipelineError::Io { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|e| PipelineError::Artifact { path: path.into(), reason: e.to_string() })
}
