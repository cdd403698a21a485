//! What a report is made from.

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
    /// Original: nats per token.
    pub base_nll: f64,
    /// Its standard error over sequences.
    pub base_nll_se: f64,
    /// exp(nll).
    pub base_perplexity: f64,
    /// Share of right answers, when there were questions.
    pub base_accuracy: Option<f64>,
    /// Sequences evaluated.
    pub sequences: usize,
    /// Inputs of each.
    pub context: usize,
    /// Questions answered.
    pub questions: usize,
    /// Resolved configuration, for people.
    pub configuration: String,
    /// Tuned checkpoints, smallest first.
    pub points: Vec<Point>,
    /// Fisher information of every matrix.
    pub sensitivities: Vec<Sensitivity>,
    /// Tiles of one matrix of one checkpoint.
    pub map: Option<TileMap>,
    /// Levels of the same.
    pub levels: Option<Levels>,
}

/// Fisher information of a matrix: a mean over tokens, summed over its weights.
#[derive(Debug, Clone, Serialize)]
pub struct Sensitivity {
    /// Its name.
    pub name: String,
    /// Its weights.
    pub weights: u64,
    /// Nats for a squared change of one by every weight.
    pub fisher: f64,
}

/// One tuned checkpoint. Losses are nats per token, `_se` standard errors.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Point {
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
    pub predicted_loss: f64,
    /// Coded tensors.
    pub tensors: Vec<Tensor>,
}

/// One coded tensor of a tuned checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its weights.
    pub weights: u64,
    /// Bits it takes, estimated by the allocation.
    pub bits: f64,
    /// Predicted loss, nats per token.
    pub loss: f64,
    /// Weights in each format.
    pub formats: BTreeMap<String, u64>,
}

/// Block and kind of a tensor: `model.layers.3.mlp.up_proj.weight` is (Some(3), "up_proj").
pub fn place(tensor: &str) -> (Option<usize>, &str) {
    let name = tensor.trim_end_matches(".weight");
    let layer = name.split('.').skip_while(|p| *p != "layers").nth(1).and_then(|n| n.parse().ok());
    (layer, name.rsplit('.').next().unwrap_or(name))
}
