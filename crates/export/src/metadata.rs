//! Architecture and tokenizer as llama.cpp reads them.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;
use waterfill_model::{ModelConfig, RopeScaling, Text, architectures};

use crate::error::{ExportError, Result, refused};
use crate::gguf::Value;
use crate::types::GgufType;

/// Pre-tokenizers that llama.cpp knows, by a part of the regular expression in `tokenizer.json`.
const SPLITS: [(&str, &str); 3] = [
    ("\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*", "llama-bpe"),
    ("\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*", "qwen2"),
    ("\\p{L}+| ?\\p{N}+", "gpt-2"),
];

/// Kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

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

fn read(path: &Path) -> Result<Json> {
    let text = std::fs::read(path).map_err(|source| ExportError::Io { path: path.into(), source })?;
    serde_json::from_slice(&text).map_err(|e| ExportError::File { path: path.into(), reason: e.to_string() })
}

fn tokenizer(dir: &Path, config: &ModelConfig) -> Result<Vec<(String, Value)>> {
    let path = dir.join("tokenizer.json");
    let json = read(&path)?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(refused(format!("a tokenizer of type {}, expected BPE", model["type"])));
    }
    let mut tokens: Vec<(String, i32)> = (0..config.vocab).map(|i| (format!("[PAD{i}]"), UNUSED)).collect();
    let mut place = |id: u64, text: &str, kind: i32| match tokens.get_mut(id as usize) {
        Some(token) => {
            *token = (text.to_string(), kind);
            Ok(())
        }
        None => Err(refused(format!("token {text:?} has number {id}, the model knows {}", config.vocab))),
    };
    let vocab = model["vocab"].as_object().ok_or_else(|| refused("a tokenizer without a vocabulary"))?;
    let bytes = model["byte_fallback"] == true;
    for (text, id) in vocab {
        let is_byte = bytes && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        place(id.as_u64().unwrap_or(u64::MAX), text, if is_byte { BYTE } else { NORMAL })?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let text = added["content"].as_str().unwrap_or_default();
        let unknown = model["unk_token"] == text;
        let kind = match added["special"] == true {
            _ if unknown && bytes => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        place(added["id"].as_u64().unwrap_or(u64::MAX), text, kind)?;
    }
    let pairs: Vec<(String, String)> = model["merges"].as_array().into_iter().flatten().filter_map(pair).collect();
    let mut all = Vec::new();
    let mut add = |key: &str, value: Value| all.push((format!("tokenizer.ggml.{key}"), value));
    if bytes && json["pre_tokenizer"].is_null() {
        // SentencePiece: what a pair becomes is as likely as its merge is early.
        let ranks: HashMap<String, usize> =
            pairs.iter().enumerate().rev().map(|(n, (a, b))| (a.clone() + b, n)).collect();
        let score = |(n, (text, kind)): (usize, &(String, i32))| match (kind, ranks.get(text)) {
            (&NORMAL, Some(&rank)) => -(rank as f32),
            (&NORMAL, None) => -((pairs.len() + n) as f32),
            _ => 0.0,
        };
        let prepends =
            json["normalizer"].to_string().contains("\"Prepend\"") || json["normalizer"]["type"] == "Prepend";
        add("model", Value::Text("llama".into()));
        add("pre", Value::Text("default".into()));
        add("scores", Value::F32s(tokens.iter().enumerate().map(score).collect()));
        add("add_space_prefix", Value::Bool(prepends));
    } else {
        add("model", Value::Text("gpt2".into()));
        add("pre", Value::Text(pre_tokenizer(&json["pre_tokenizer"])?.into()));
        add("merges", Value::Texts(pairs.iter().map(|(a, b)| format!("{a} {b}")).collect()));
    }
    add("token_type", Value::I32s(tokens.iter().map(|t| t.1).collect()));
    add("tokens", Value::Texts(tokens.into_iter().map(|t| t.0).collect()));
    let config_json = read(&dir.join("config.json"))?;
    for (key, name) in
        [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id"), ("pad_token_id", "padding_token_id")]
    {
        // Where there are several, the first ends a turn.
        let id = config_json[key].as_u64().or_else(|| config_json[key].get(0)?.as_u64());
        if let Some(id) = id {
            add(name, Value::U32(id as u32));
        }
    }
    let text = Text::open(dir, config)?;
    add("add_bos_token", Value::Bool(!text.prefix().is_empty()));
    let settings = dir.join("tokenizer_config.json");
    if settings.exists()
        && let Some(template) = read(&settings)?["chat_template"].as_str()
    {
        all.push(("tokenizer.chat_template".into(), Value::Text(template.into())));
    }
    Ok(all)
}

fn pair(merge: &Json) -> Option<(String, String)> {
    match merge {
        Json::String(text) => text.split_once(' ').map(|(a, b)| (a.into(), b.into())),
        Json::Array(two) => Some((two.first()?.as_str()?.into(), two.get(1)?.as_str()?.into())),
        _ => None,
    }
}

/// llama.cpp's name of a pre-tokenizer.
fn pre_tokenizer(json: &Json) -> Result<&'static str> {
    let parts: Vec<&Json> = match json["type"].as_str() {
        Some("Sequence") => json["pretokenizers"].as_array().into_iter().flatten().collect(),
        _ => vec![json],
    };
    let byte_level = parts.iter().any(|p| p["type"] == "ByteLevel");
    let digits = parts.iter().any(|p| p["type"] == "Digits" && p["individual_digits"] == true);
    let regex = parts.iter().find_map(|p| p["pattern"]["Regex"].as_str());
    let by_regex = regex.and_then(|r| SPLITS.iter().find(|(part, _)| r.contains(part)).map(|(_, name)| *name));
    match (byte_level, by_regex, regex) {
        (true, Some(name), _) => Ok(name),
        (true, None, None) if digits => Ok("smollm"),
        (true, None, None) => Ok("gpt-2"),
        _ => Err(refused(format!(
            "a pre-tokenizer that llama.cpp has no name for here: {}",
            regex.map_or_else(|| json.to_string(), String::from)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pre_tokenizers_are_known_by_their_expressions() {
        let split = |regex: &str| {
            serde_json::json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}}, {"type": "ByteLevel", "use_regex": false}]})
        };
        let llama = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+";
        assert_eq!(pre_tokenizer(&split(llama)).unwrap(), "llama-bpe");
        assert_eq!(pre_tokenizer(&split(&llama.replace("{1,3}", ""))).unwrap(), "qwen2");
        assert_eq!(pre_tokenizer(&serde_json::json!({"type": "ByteLevel", "use_regex": true})).unwrap(), "gpt-2");
        let digits = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "use_regex": true}]});
        assert_eq!(pre_tokenizer(&digits).unwrap(), "smollm");
        for wrong in [split("[a-z]+"), serde_json::json!({"type": "Whitespace"}), Json::Null] {
            assert!(pre_tokenizer(&wrong).unwrap_err().to_string().contains("pre-tokenizer"));
        }
    }
}
