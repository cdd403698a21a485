//! JSON files of the stages' artifacts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_yaml::Value as Yaml;
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
    /// Where a floor asks for more than lambda does: bits of the file more than without it, what the bits that lambda counts
    /// cost, and the loss that they save, nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_floor: Option<[f64; 3]>,
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
/// A number in it that is not finite, which JSON could not hold, by the names of the fields that it is in; else as the
/// file system says.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    // JSON has null for such a number, YAML has a word.
    let tree = serde_yaml::to_value(value).expect("plain data");
    if let Some((field, value)) = not_finite(&tree) {
        return Err(PipelineError::NotFinite { path: path.into(), field, value });
    }
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    std::fs::write(path, text).map_err(PipelineError::io(path))
}

/// The first number of a tree that is not finite, with its dotted place.
fn not_finite(tree: &Yaml) -> Option<(String, f64)> {
    let inside = |key: String, value: &Yaml| {
        not_finite(value).map(|(rest, found)| (if rest.is_empty() { key } else { format!("{key}.{rest}") }, found))
    };
    match tree {
        Yaml::Number(n) => n.as_f64().filter(|v| !v.is_finite()).map(|v| (String::new(), v)),
        Yaml::Sequence(all) => all.iter().enumerate().find_map(|(n, value)| inside(n.to_string(), value)),
        Yaml::Mapping(all) => all.iter().find_map(|(key, value)| inside(key.as_str().unwrap_or("?").into(), value)),
        Yaml::Tagged(tagged) => not_finite(&tagged.value),
        Yaml::Null | Yaml::Bool(_) | Yaml::String(_) => None,
    }
}

/// Reads a value from JSON.
///
/// # Errors
/// Files that cannot be read, and other fields.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(PipelineError::io(path))?;
    serde_json::from_str(&text).map_err(|e| PipelineError::Json { path: path.into(), source: e })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_named_and_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("summary.json");
        let losses = |v: f64| BTreeMap::from([("layers.3.up_proj".to_string(), vec![Some(0.5), Some(v)])]);
        for (value, word) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf")] {
            let message = write_json(&path, &losses(value)).unwrap_err().to_string();
            assert!(message.contains("layers.3.up_proj.1") && message.contains(word), "{message}");
            assert!(message.contains("summary.json") && !path.exists(), "{message}");
        }
        write_json(&path, &(losses(0.25), u64::MAX, None::<f64>)).unwrap();
        let back: (BTreeMap<String, Vec<Option<f64>>>, u64, Option<f64>) = read_json(&path).unwrap();
        assert_eq!(back, (losses(0.25), u64::MAX, None));
    }
}
