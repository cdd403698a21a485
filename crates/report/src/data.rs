//! The data that a report is made from.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::figures::levels::Levels;
use crate::figures::tiles::TileMap;

/// Results of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the pipeline.
    pub model: String,
    /// Weights of the model.
    pub weights: u64,
    /// Bytes of the original checkpoint.
    pub original_bytes: u64,
    /// Negative log likelihood of the original, nats per token.
    pub base_nll: f64,
    /// Standard error of `base_nll` over sequences.
    pub base_nll_se: f64,
    /// exp(`base_nll`).
    pub base_perplexity: f64,
    /// The original's share of right answers, if there were questions.
    pub base_accuracy: Option<f64>,
    /// Sequences evaluated.
    pub sequences: usize,
    /// Input tokens of each sequence.
    pub context: usize,
    /// Questions answered.
    pub questions: usize,
    /// The resolved configuration, as YAML.
    pub configuration: String,
    /// Tuned checkpoints, smallest first.
    pub points: Vec<OperatingPoint>,
    /// Fisher information of every matrix.
    pub sensitivities: Vec<Sensitivity>,
    /// Map of the tiles of one matrix of one checkpoint.
    pub map: Option<TileMap>,
    /// Levels of the same matrix.
    pub levels: Option<Levels>,
}

/// Fisher information of a matrix: mean over tokens of g_i^2 x_j^2, summed over its weights.
#[derive(Debug, Clone, Serialize)]
pub struct Sensitivity {
    /// Name of the tensor.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// Sum over all weights, nats.
    pub fisher: f64,
}

/// One compressed checkpoint. Losses are nats per token, `_se` standard errors.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct OperatingPoint {
    pub lambda: f64,
    pub bytes: u64,
    pub bits_per_weight: f64,
    pub linear_bits_per_weight: f64,
    pub resident_bits_per_weight: f64,
    pub nll: f64,
    pub nll_se: f64,
    /// Paired with the original.
    pub nll_change: f64,
    pub nll_change_se: f64,
    pub perplexity: f64,
    pub kl: f64,
    pub kl_se: f64,
    pub top1: f64,
    pub top1_se: f64,
    pub accuracy: Option<f64>,
    /// 95 % Wilson interval.
    pub accuracy_low: Option<f64>,
    pub accuracy_high: Option<f64>,
    /// Paired with the original.
    pub accuracy_change: Option<f64>,
    pub accuracy_change_se: Option<f64>,
    pub predicted_kl: f64,
    /// Coded tensors.
    pub tensors: Vec<Tensor>,
}

/// One coded tensor of a compressed checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Tensor {
    /// Name of the tensor.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// Size in bits, as the allocation estimates it.
    pub bits: f64,
    /// Predicted loss, nats per token.
    pub loss: f64,
    /// Weights in each format.
    pub formats: BTreeMap<String, u64>,
}

/// Block and last part of the name of a tensor: `model.layers.3.mlp.up_proj.weight` is (Some(3), "up_proj").
pub fn place(tensor: &str) -> (Option<usize>, &str) {
    let name = tensor.trim_end_matches(".weight");
    let layer = name.split('.').skip_while(|p| *p != "layers").nth(1).and_then(|n| n.parse().ok());
    (layer, name.rsplit('.').next().unwrap_or(name))
}
