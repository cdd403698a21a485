//! Figures of a written checkpoint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rdo::usage::Usage;

/// Sizes of a written checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EncodeSummary {
    /// Bytes of all `.safetensors` files, whole.
    pub bytes: u64,
    /// Weights of all tensors.
    pub weights: u64,
    /// Bytes of the coded linear layers alone, embedding and head not included.
    pub linear_bytes: u64,
    /// Weights of the coded linear layers.
    pub linear_weights: u64,
    /// Bytes in the memory of a runtime that keeps tiles packed; plain tensors as they are.
    pub resident_bytes: u64,
    /// Loss of the decoded weights by the allocation's quadratic model, nats per token.
    pub loss: f64,
    /// Loss by tensor, nats per token.
    pub losses: BTreeMap<String, f64>,
    /// Numbers of tiles by tool, by label of the tensor's role such as `q_proj`.
    pub usage: BTreeMap<String, Usage>,
    /// Where weights adapted to those coded before: divergence after each part was coded and after the
    /// weights left had made up for it, nats per token of calibration text.
    #[serde(default)]
    pub descents: Vec<[f64; 2]>,
    /// Quality layers, where there are several: each with those before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerSummary>,
}

/// A checkpoint up to one of its layers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// Bytes of the shards, whole.
    pub bytes: u64,
    /// Bytes in memory, as [`EncodeSummary::resident_bytes`]; of several layers those of elements, although a runtime may keep
    /// 2:4 sparse ones apart.
    pub resident_bytes: u64,
    /// Loss by tensor, as [`EncodeSummary::losses`].
    pub losses: BTreeMap<String, f64>,
}
