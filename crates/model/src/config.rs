//! `config.json` of the supported architectures.

use std::path::Path;

use serde::Deserialize;

use crate::error::{ModelError, Result};
use crate::family::{ARCHITECTURES, EVALUATED_ONLY, Family, architectures};
use crate::roles::{EMBEDDING, HEAD, Projection, TensorRole};
use crate::rope_scaling::{RopeScaling, Scaling};

/// A limit on the keys that a query looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Most keys, the query's own included.
    pub keys: usize,
    /// First block where the limit holds.
    pub first_block: usize,
}

/// Shape and constants of a Llama-family model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Most positions.
    pub positions: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their change for contexts beyond the pre-trained one.
    pub rope_scaling: RopeScaling,
    /// Whether a bias is added, by linear layer in the order of [`Projection::ALL`].
    pub biases: [bool; 7],
    /// Queries and keys pass an RMSNorm over each head (Qwen3).
    pub qk_norm: bool,
    /// Sliding window of attention, if any.
    pub window: Option<SlidingWindow>,
    /// The output head is the embedding.
    pub tied: bool,
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    /// Both of the former, since version 5 of transformers.
    rope_parameters: Option<Scaling>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    /// Mistral has no such key: its window holds when there is one.
    use_sliding_window: Option<bool>,
    #[serde(default)]
    max_window_layers: usize,
    #[serde(default = "default_activation")]
    hidden_act: String,
}

fn default_activation() -> String {
    "silu".into()
}

/// Name of the output head's weight.
pub fn lm_head_name(config: &ModelConfig) -> &'static str {
    if config.tied { EMBEDDING } else { HEAD }
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// A missing or malformed file, and everything this program cannot run.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let unsupported = |reason: String| ModelError::Unsupported { path: path.clone(), reason };
        let names = architectures(dir)?;
        let [architecture] = names.as_slice() else {
            return Err(unsupported(format!("architectures {names:?}, expected one name")));
        };
        let Some(family) = Family::of(architecture) else {
            let known = ARCHITECTURES.join(", ");
            let reason = match EVALUATED_ONLY.contains(&architecture.as_str()) {
                true => format!(
                    "architecture {architecture} can be evaluated (waterfill evaluate --original) but not calibrated: \
                     that needs its blocks one at a time with their vector-Jacobian products, which exist for {known}"
                ),
                false => {
                    format!(
                        "architecture {architecture}; supported: {known}; to evaluate only: {}",
                        EVALUATED_ONLY.join(", ")
                    )
                }
            };
            return Err(unsupported(reason));
        };
        let text = std::fs::read_to_string(&path).map_err(|e| unsupported(e.to_string()))?;
        let raw: Raw = serde_json::from_str(&text).map_err(|e| unsupported(e.to_string()))?;
        raw.resolve(family).map_err(unsupported)
    }

    /// Shape `[out, in]` of a linear layer of every block.
    pub fn linear_shape(&self, projection: Projection) -> [usize; 2] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::Query => [q, self.hidden],
            Projection::Key | Projection::Value => [kv, self.hidden],
            Projection::Output => [self.hidden, q],
            Projection::Gate | Projection::Up => [self.intermediate, self.hidden],
            Projection::Down => [self.hidden, self.intermediate],
        }
    }

    /// All tensors of a model of this shape, in the order of computation, each with its shape.
    pub fn tensors(&self) -> Vec<(TensorRole, Vec<usize>)> {
        let mut all = vec![(TensorRole::Embedding, vec![self.vocab, self.hidden])];
        for block in 0..self.layers {
            all.push((TensorRole::AttentionNorm { block }, vec![self.hidden]));
            for projection in Projection::ALL {
                if projection == Projection::Output && self.qk_norm {
                    all.push((TensorRole::QueryNorm { block }, vec![self.head_dim]));
                    all.push((TensorRole::KeyNorm { block }, vec![self.head_dim]));
                }
                if projection == Projection::Gate {
                    all.push((TensorRole::MlpNorm { block }, vec![self.hidden]));
                }
                let [rows, cols] = self.linear_shape(projection);
                all.push((projection.weight(block), vec![rows, cols]));
                if self.biases[projection as usize] {
                    all.push((projection.bias(block), vec![rows]));
                }
            }
        }
        all.push((TensorRole::FinalNorm, vec![self.hidden]));
        if !self.tied {
            all.push((TensorRole::Head, vec![self.vocab, self.hidden]));
        }
        all
    }

    /// Keys that queries of block `index` look at, themselves included.
    pub fn window_of(&self, index: usize) -> usize {
        self.window.filter(|window| index >= window.first_block).map_or(usize::MAX, |window| window.keys)
    }

    /// `config.json` of a plain Llama as other software reads it, for bf16 weights.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "vocab_size": self.vocab, "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "max_position_embeddings": self.positions, "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta, "tie_word_embeddings": self.tied,
            "attention_bias": false, "mlp_bias": false, "torch_dtype": "bfloat16",
        })
    }
}

impl Raw {
    /// Checks sizes and fills in what the family leaves out; says what is wrong.
    fn resolve(self, family: Family) -> std::result::Result<ModelConfig, String> {
        if self.hidden_act != "silu" {
            return Err(format!("hidden_act {:?}, supported: \"silu\"", self.hidden_act));
        }
        let sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_attention_heads];
        if sizes.contains(&0) || self.max_position_embeddings == 0 {
            return Err("a size of zero, expected at least 1".into());
        }
        let (heads, kv_heads) =
            (self.num_attention_heads, self.num_key_value_heads.unwrap_or(self.num_attention_heads));
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} query heads for {kv_heads} key heads, expected a multiple"));
        }
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim}, expected an even number"));
        }
        let scaling = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = self.rope_theta.or(scaling.and_then(|s| s.rope_theta)).unwrap_or(10000.0);
        let rope_scaling = scaling.map_or(Ok(RopeScaling::None), Scaling::resolve)?;
        let (attention, qwen2) = (self.attention_bias, family == Family::Qwen2);
        let [q, o, mlp] = [attention || qwen2, attention && !qwen2, self.mlp_bias];
        let uses_window = self.use_sliding_window.unwrap_or(family == Family::Mistral);
        let first_block = self.max_window_layers;
        let window = self.sliding_window.filter(|_| uses_window).map(|keys| SlidingWindow { keys, first_block });
        if window.is_some_and(|window| window.keys == 0) {
            return Err("sliding_window 0, expected at least 1 or null".into());
        }
        Ok(ModelConfig {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            positions: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps,
            rope_theta: theta,
            rope_scaling,
            biases: [q, q, q, o, mlp, mlp, mlp],
            qk_norm: family == Family::Qwen3,
            window,
            tied: self.tie_word_embeddings,
        })
    }
}
