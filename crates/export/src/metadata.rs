//! Architecture of a model as llama.cpp reads it, and all key-value pairs of its file.

use std::path::Path;

use waterfill_model::{ModelConfig, RopeScaling, architectures};

use crate::error::{Result, refused};
use crate::gguf::Value;
use crate::tokenizer::tokenizer;
use crate::types::GgufType;

/// Name of the architecture in GGUF and all key-value pairs of the model in `dir`, whose tensors mostly have the type
/// `mostly`.
///
/// # Errors
/// Models and tokenizers that llama.cpp does not know.
pub fn metadata(
    dir: &Path,
    name: &str,
    config: &ModelConfig,
    mostly: GgufType,
) -> Result<(&'static str, Vec<(String, Value)>)> {
    let names = architectures(dir)?;
    let architecture = match names.first().map(String::as_str) {
        Some("LlamaForCausalLM" | "MistralForCausalLM") => "llama",
        Some("Qwen2ForCausalLM") => "qwen2",
        Some("Qwen3ForCausalLM") => "qwen3",
        other => return Err(refused(format!("architecture {other:?}, expected Llama, Mistral, Qwen2 or Qwen3"))),
    };
    let mut all = vec![
        ("general.architecture".to_string(), Value::Text(architecture.into())),
        ("general.name".into(), Value::Text(name.into())),
        ("general.file_type".into(), Value::U32(mostly.file_type())),
        ("general.quantization_version".into(), Value::U32(2)),
    ];
    let mut own = |key: &str, value: Value| all.push((format!("{architecture}.{key}"), value));
    for (key, value) in [
        ("context_length", config.positions),
        ("embedding_length", config.hidden),
        ("block_count", config.layers),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab),
    ] {
        own(key, Value::U32(value as u32));
    }
    own("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps as f32));
    own("rope.freq_base", Value::F32(config.rope_theta as f32));
    if let RopeScaling::Linear(factor) = config.rope_scaling {
        own("rope.scaling.type", Value::Text("linear".into()));
        own("rope.scaling.factor", Value::F32(factor as f32));
    }
    if let Some(window) = config.window {
        own("attention.sliding_window", Value::U32(window.keys as u32));
    }
    all.extend(tokenizer(dir, config)?);
    Ok((architecture, all))
}
