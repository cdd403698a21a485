//! `config.json` of the supported architectures.

use std::path::Path;

use serde::Deserialize;

use crate::error::{ModelError, Result};

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
    /// The output head is the embedding.
    pub tied: bool,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(default = "default_theta")]
    rope_theta: f64,
    rope_scaling: Option<serde_json::Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_activation")]
    hidden_act: String,
}

fn default_theta() -> f64 {
    10000.0
}

fn default_activation() -> String {
    "silu".into()
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// A missing or malformed file, and everything this program cannot run.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let unsupported = |reason: String| ModelError::Unsupported { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|e| unsupported(e.to_string()))?;
        let raw: Raw = serde_json::from_str(&text).map_err(|e| unsupported(e.to_string()))?;
        if raw.architectures != ["LlamaForCausalLM"] {
            return Err(unsupported(format!("architectures {:?}, supported: LlamaForCausalLM", raw.architectures)));
        }
        if let Some(scaling) = raw.rope_scaling.filter(|v| !v.is_null()) {
            return Err(unsupported(format!("rope_scaling {scaling}, supported: none")));
        }
        if raw.attention_bias || raw.mlp_bias {
            return Err(unsupported("biases in linear layers, supported: none".into()));
        }
        if raw.hidden_act != "silu" {
            return Err(unsupported(format!("hidden_act {:?}, supported: \"silu\"", raw.hidden_act)));
        }
        let sizes = [raw.vocab_size, raw.hidden_size, raw.intermediate_size, raw.num_attention_heads];
        if sizes.contains(&0) || raw.max_position_embeddings == 0 {
            return Err(unsupported("a size of zero, expected at least 1".into()));
        }
        let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        if kv_heads == 0 || !raw.num_attention_heads.is_multiple_of(kv_heads) {
            let heads = raw.num_attention_heads;
            return Err(unsupported(format!("{heads} query heads for {kv_heads} key heads, expected a multiple")));
        }
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(unsupported(format!("head_dim {head_dim}, expected an even number")));
        }
        Ok(Self {
            vocab: raw.vocab_size,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads,
            head_dim,
            positions: raw.max_position_embeddings,
            norm_eps: raw.rms_norm_eps,
            rope_theta: raw.rope_theta,
            tied: raw.tie_word_embeddings,
        })
    }

    /// Shape `[out, in]` of linear layer `i` of a block, in the order of [`crate::LINEARS`].
    pub fn linear_shape(&self, i: usize) -> [usize; 2] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match crate::LINEARS[i] {
            "self_attn.q_proj" => [q, self.hidden],
            "self_attn.k_proj" | "self_attn.v_proj" => [kv, self.hidden],
            "self_attn.o_proj" => [self.hidden, q],
            "mlp.down_proj" => [self.hidden, self.intermediate],
            _ => [self.intermediate, self.hidden],
        }
    }

    /// `config.json` of the model as other software reads it, for bf16 weights.
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
