//! Tokenizer as llama.cpp reads it. What it has no name for is refused: it would split texts otherwise without a word.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;
use waterfill_model::{ChatTemplates, ModelConfig, Text};

use crate::error::{ExportError, Result, refused};
use crate::gguf::Value;

/// Splits before byte-level BPE that llama.cpp knows, by the regular expression in `tokenizer.json`.
const SPLITS: [(&str, &str); 3] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "gpt-2"),
];

/// Kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

fn read(path: &Path) -> Result<Json> {
    let text = std::fs::read(path).map_err(|source| ExportError::Io { path: path.into(), source })?;
    serde_json::from_slice(&text).map_err(|e| ExportError::File { path: path.into(), reason: e.to_string() })
}

/// A file that may be missing.
fn read_if_there(path: &Path) -> Result<Json> {
    if path.exists() { read(path) } else { Ok(Json::Null) }
}

/// Key-value pairs of the tokenizer and the chat templates in `dir`.
///
/// # Errors
/// Tokenizers that llama.cpp does not know.
pub(crate) fn tokenizer(dir: &Path, config: &ModelConfig) -> Result<Vec<(String, Value)>> {
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
    if let Some(prepends) = bytes.then(|| sentence_piece(&json)).flatten() {
        // SentencePiece: what a pair becomes is as likely as its merge is early.
        let ranks: HashMap<String, usize> =
            pairs.iter().enumerate().rev().map(|(n, (a, b))| (a.clone() + b, n)).collect();
        let score = |(n, (text, kind)): (usize, &(String, i32))| match (kind, ranks.get(text)) {
            (&NORMAL, Some(&rank)) => -(rank as f32),
            (&NORMAL, None) => -((pairs.len() + n) as f32),
            _ => 0.0,
        };
        add("model", Value::Text("llama".into()));
        add("pre", Value::Text("default".into()));
        add("scores", Value::F32s(tokens.iter().enumerate().map(score).collect()));
        add("add_space_prefix", Value::Bool(prepends));
    } else {
        add("model", Value::Text("gpt2".into()));
        add("pre", Value::Text(byte_level(&json)?.into()));
        add("merges", Value::Texts(pairs.iter().map(|(a, b)| format!("{a} {b}")).collect()));
    }
    add("token_type", Value::I32s(tokens.iter().map(|t| t.1).collect()));
    let numbers: HashMap<String, u32> = tokens.iter().zip(0..).map(|(token, n)| (token.0.clone(), n)).collect();
    add("tokens", Value::Texts(tokens.into_iter().map(|t| t.0).collect()));
    for (key, id) in special_tokens(dir, |text| numbers.get(text).copied())? {
        add(key, Value::U32(id));
    }
    let text = Text::open(dir, config)?;
    add("add_bos_token", Value::Bool(!text.prefix().is_empty()));
    let templates = ChatTemplates::open(dir)?;
    all.extend(templates.default.map(|source| ("tokenizer.chat_template".to_string(), Value::Text(source))));
    if !templates.named.is_empty() {
        let names = templates.named.keys().cloned().collect();
        all.push(("tokenizer.chat_templates".into(), Value::Texts(names)));
        let named = templates.named.into_iter();
        all.extend(named.map(|(name, source)| (format!("tokenizer.chat_template.{name}"), Value::Text(source))));
    }
    Ok(all)
}

/// Tokens with a meaning, by llama.cpp's name: those that the tokenizer's settings name, as runtimes take them, else the
/// numbers in `config.json` or `generation_config.json`, of several the first.
fn special_tokens(dir: &Path, number: impl Fn(&str) -> Option<u32>) -> Result<Vec<(&'static str, u32)>> {
    let [settings, config, generation] =
        ["tokenizer_config.json", "config.json", "generation_config.json"].map(|name| read_if_there(&dir.join(name)));
    let (settings, config, generation) = (settings?, config?, generation?);
    let mut found = Vec::new();
    for (kind, name) in [("bos", "bos_token_id"), ("eos", "eos_token_id"), ("pad", "padding_token_id")] {
        let token = &settings[format!("{kind}_token")];
        let named = token.as_str().or_else(|| token["content"].as_str()).and_then(&number);
        let key = format!("{kind}_token_id");
        let in_file = |json: &Json| json[&key].as_u64().or_else(|| json[&key].get(0)?.as_u64());
        let id = named.or_else(|| u32::try_from(in_file(&config).or_else(|| in_file(&generation))?).ok());
        found.extend(id.map(|id| (name, id)));
    }
    Ok(found)
}

fn pair(merge: &Json) -> Option<(String, String)> {
    match merge {
        Json::String(text) => text.split_once(' ').map(|(a, b)| (a.into(), b.into())),
        Json::Array(two) => Some((two.first()?.as_str()?.into(), two.get(1)?.as_str()?.into())),
        _ => None,
    }
}

/// Parts of a normalizer or pre-tokenizer that may be a sequence of others under `key`.
fn parts<'a>(json: &'a Json, key: &str) -> Vec<&'a Json> {
    match json["type"].as_str() {
        None => vec![],
        Some("Sequence") => json[key].as_array().into_iter().flatten().collect(),
        Some(_) => vec![json],
    }
}

/// What SentencePiece puts in place of a space.
const SPACE: &str = "\u{2581}";

/// Whether a space is put before a text, where spaces become [`SPACE`]: by a normalizer, or by a Metaspace pre-tokenizer.
/// `None` for other tokenizers.
fn sentence_piece(json: &Json) -> Option<bool> {
    let (mut prepends, mut replaces) = (false, false);
    for part in parts(&json["normalizer"], "normalizers") {
        match part["type"].as_str()? {
            "Prepend" if part["prepend"] == SPACE => prepends = true,
            "Replace" if part["pattern"]["String"] == " " && part["content"] == SPACE => replaces = true,
            _ => return None,
        }
    }
    match parts(&json["pre_tokenizer"], "pretokenizers")[..] {
        [] if replaces => Some(prepends),
        // Split at spaces, no token could be of several words; it is what the file means where it does not say.
        [one] if one["type"] == "Metaspace" && one["replacement"] == SPACE && one["split"] == false => {
            let never = one["prepend_scheme"] == "never" || one["add_prefix_space"] == false;
            Some(prepends || !never)
        }
        _ => None,
    }
}

/// llama.cpp's name of what happens to a text before byte-level BPE.
fn byte_level(json: &Json) -> Result<&'static str> {
    // Qwen's tokenizers normalize to composed characters, which llama.cpp leaves to the caller.
    let normalizers = parts(&json["normalizer"], "normalizers");
    if let Some(other) = normalizers.iter().find(|part| part["type"] != "NFC") {
        return Err(refused(format!("a normalizer that llama.cpp does not have for byte-level tokens: {other}")));
    }
    let steps = parts(&json["pre_tokenizer"], "pretokenizers");
    let byte_level = |part: &Json, regex: bool| {
        // These are on where the file does not say.
        let on = |key: &str| part[key].as_bool().unwrap_or(true);
        part["type"] == "ByteLevel" && !on("add_prefix_space") && on("use_regex") == regex
    };
    let name = match steps[..] {
        [one] if byte_level(one, true) => Some("gpt-2"),
        [digits, one] if digits["type"] == "Digits" && digits["individual_digits"] == true && byte_level(one, true) => {
            Some("smollm")
        }
        [split, one] if split["type"] == "Split" && byte_level(one, false) => {
            let isolated = split["behavior"] == "Isolated" && split["invert"] != true;
            let regex = split["pattern"]["Regex"].as_str().filter(|_| isolated);
            regex.and_then(|regex| SPLITS.iter().find(|(known, _)| *known == regex)).map(|(_, name)| *name)
        }
        _ => None,
    };
    // llama.cpp takes whole words that are tokens as they are for this one, and for no other.
    if json["model"]["ignore_merges"] == true && name.is_some_and(|name| name != "llama-bpe") {
        return Err(refused("ignore_merges, which llama.cpp does not have for this pre-tokenizer"));
    }
    name.ok_or_else(|| {
        refused(format!("a pre-tokenizer that llama.cpp has no name for here: {}", json["pre_tokenizer"]))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bytes(regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
    }

    fn sequence(steps: &[Json]) -> Json {
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    fn split(regex: &str, behavior: &str) -> Json {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": false})
    }

    /// As the families' own `tokenizer.json` have it.
    #[test]
    fn byte_level_tokenizers_are_known_by_all_their_steps() {
        let nfc = json!({"type": "NFC"});
        let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
        let of = |steps: Json, normalizer: &Json| {
            byte_level(&json!({"normalizer": normalizer, "pre_tokenizer": steps})).map_err(|e| e.to_string())
        };
        let [llama, qwen, gpt] = SPLITS.map(|(regex, _)| sequence(&[split(regex, "Isolated"), bytes(false)]));
        let known = [
            (llama, &Json::Null, "llama-bpe"),
            (qwen, &nfc, "qwen2"),
            (gpt, &Json::Null, "gpt-2"),
            (bytes(true), &Json::Null, "gpt-2"),
            (sequence(&[digits(true), bytes(true)]), &Json::Null, "smollm"),
        ];
        for (steps, normalizer, name) in known {
            assert_eq!(of(steps, normalizer).unwrap(), name);
        }
        let llama = SPLITS[0].0;
        let unknown = [
            bytes(false),
            json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}),
            sequence(&[digits(false), bytes(true)]),
            sequence(&[json!({"type": "Punctuation", "behavior": "Contiguous"}), bytes(true)]),
            sequence(&[split(llama, "Isolated"), bytes(true)]),
            sequence(&[split(llama, "Removed"), bytes(false)]),
            sequence(&[split(&llama.replace("{1,3}", "{1,2}"), "Isolated"), bytes(false)]),
            sequence(&[digits(true), split(llama, "Isolated"), bytes(false)]),
            sequence(&[json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}), bytes(false)]),
            json!({"type": "Whitespace"}),
            Json::Null,
        ];
        for steps in unknown {
            assert!(of(steps.clone(), &Json::Null).unwrap_err().contains("pre-tokenizer"), "{steps}");
        }
        let lowercase = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]});
        assert!(of(bytes(true), &lowercase).unwrap_err().contains("Lowercase"));
    }

    #[test]
    fn sentence_piece_prepends_as_normalizer_or_metaspace_says() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let prepend = json!({"type": "Prepend", "prepend": SPACE});
        let old = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        let metaspace = |more: Json| {
            let mut json = json!({"type": "Metaspace", "replacement": SPACE, "split": false});
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json
        };
        let of =
            |normalizer: &Json, pre: Json| sentence_piece(&json!({"normalizer": normalizer, "pre_tokenizer": pre}));
        assert_eq!(of(&old, Json::Null), Some(true));
        assert_eq!(of(&replace, Json::Null), Some(false));
        for (more, prepends) in [
            (json!({"prepend_scheme": "first"}), true),
            (json!({"prepend_scheme": "always"}), true),
            (json!({"prepend_scheme": "never"}), false),
            (json!({"add_prefix_space": true}), true),
            (json!({"add_prefix_space": false}), false),
            (json!({}), true),
        ] {
            assert_eq!(of(&Json::Null, metaspace(more)), Some(prepends));
        }
        assert_eq!(of(&Json::Null, metaspace(json!({"split": true}))), None);
        assert_eq!(of(&Json::Null, Json::Null), None, "nothing replaces spaces");
        assert_eq!(of(&json!({"type": "NFKC"}), Json::Null), None);
        assert_eq!(of(&Json::Null, bytes(true)), None);
    }

    #[test]
    fn special_tokens_are_those_that_the_tokenizer_names() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, json: Json| std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        let found = || special_tokens(dir.path(), |text| text.strip_prefix('t')?.parse().ok()).unwrap();
        write("config.json", json!({"bos_token_id": 1, "eos_token_id": [2, 3, 4]}));
        assert_eq!(found(), [("bos_token_id", 1), ("eos_token_id", 2)]);
        write("tokenizer_config.json", json!({"eos_token": {"content": "t4"}, "bos_token": "unheard of"}));
        assert_eq!(found(), [("bos_token_id", 1), ("eos_token_id", 4)]);
        write("config.json", json!({"eos_token_id": null}));
        write("generation_config.json", json!({"pad_token_id": 5, "bos_token_id": [6]}));
        assert_eq!(found(), [("bos_token_id", 6), ("eos_token_id", 4), ("padding_token_id", 5)]);
    }
}
