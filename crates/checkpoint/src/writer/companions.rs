//! Files next to the shards that belong to a model whatever its weights are: tokenizer, templates, settings, code, licence.

use std::path::Path;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::shard_mark::VERSION;
use crate::types::QUANT_METHOD;
use crate::writer::small_file::write_file;

/// Folder of templates by name, beside `chat_template.jinja`.
pub const NAMED_TEMPLATES: &str = "additional_chat_templates";
/// Endings of files that are templates, vocabularies of tokenizers, or a model's own code.
const ENDINGS: [&str; 3] = ["jinja", "model", "tiktoken"];
/// Beginnings of files with settings and vocabularies, in JSON or lines of text.
const SETTINGS: [&str; 13] = [
    "added_tokens",
    "chat_template",
    "generation_config",
    "image_processor",
    "merges",
    "preprocessor_config",
    "processor_config",
    "sentencepiece",
    "special_tokens",
    "spiece",
    "tokenizer",
    "video_preprocessor",
    "vocab",
];
/// Beginnings of files with a model's own code.
const CODE: [&str; 5] = ["configuration_", "image_processing_", "modeling_", "processing_", "tokenization_"];
/// Beginnings of files with the terms of use, in small letters.
const TERMS: [&str; 5] = ["copying", "license", "licence", "notice", "use_policy"];

/// Whether a file of a checkpoint directory, by its path within it, belongs to the model whatever its weights are, such as
/// `tokenizer.json`, `chat_template.jinja` or `LICENSE`. What else lies there may be anything: data, adapters, keys.
///
/// ```
/// use waterfill_checkpoint::writer::is_companion;
///
/// for name in ["tokenizer.json", "added_tokens.json", "tokenizer.model.v3", "additional_chat_templates/tool_use.jinja", "NOTICE"] {
///     assert!(is_companion(name), "{name}");
/// }
/// for name in ["config.json", "model.safetensors", "adapter_config.json", "hf_token.txt", ".gitattributes", "original/params.json"] {
///     assert!(!is_companion(name), "{name}");
/// }
/// ```
pub fn is_companion(name: &str) -> bool {
    if let Some((folder, template)) = name.split_once('/') {
        return folder == NAMED_TEMPLATES && template.ends_with(".jinja") && is_companion(template);
    }
    // Names that need no escape anywhere.
    if name.starts_with('.') || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return false;
    }
    let begins = |with: &[&str]| with.iter().any(|beginning| name.starts_with(beginning));
    let terms = TERMS.iter().any(|beginning| name.to_ascii_lowercase().starts_with(beginning));
    terms
        || name.starts_with("tokenizer.model")
        || match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("json" | "txt") => begins(&SETTINGS),
            Some("py") => begins(&CODE),
            Some(ending) => ENDINGS.contains(&ending),
            None => false,
        }
}

/// Digest of the names and bytes of the companions in a directory.
///
/// # Errors
/// Files that cannot be read.
pub fn companions_digest(dir: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for name in companions(dir)? {
        let path = dir.join(&name);
        let digest = blake3::hash(&std::fs::read(&path).at(&path)?);
        hasher.update(format!("{name} {}\n", digest.to_hex()).as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The companions in a directory, sorted.
pub(crate) fn companions(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (folder, prefix) in
        [(dir.to_path_buf(), String::new()), (dir.join(NAMED_TEMPLATES), format!("{NAMED_TEMPLATES}/"))]
    {
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).at(&folder)? {
            let entry = entry.at(&folder)?;
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
            // Through links: the hub's cache consists of them.
            if is_companion(&name) && entry.path().is_file() {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies the companions and `config.json` from `from`; with `compressed`, the configuration names the quantisation method.
///
/// # Errors
/// Files that cannot be read or written, and a `config.json` that is not an object.
pub fn write_companions(from: &Path, to: &Path, compressed: bool) -> Result<()> {
    for name in companions(from)? {
        let (source, copy) = (from.join(&name), to.join(&name));
        let folder = copy.parent().unwrap_or(to);
        std::fs::create_dir_all(folder).at(folder)?;
        write_file(&copy, &std::fs::read(&source).at(&source)?)?;
    }
    let path = from.join("config.json");
    let text = std::fs::read_to_string(&path).at(&path)?;
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).map_err(|error| CheckpointError::file(&path, FileError::Json { error }))?;
    config.remove("quantization_config");
    if compressed {
        let method = serde_json::json!({"quant_method": QUANT_METHOD, "version": VERSION});
        config.insert("quantization_config".into(), method);
    }
    let text = serde_json::to_string_pretty(&config).expect("JSON from JSON");
    write_file(&to.join("config.json"), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_copied_with_their_folder() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = [
            "chat_template.jinja",
            "added_tokens.json",
            "preprocessor_config.json",
            "LICENSE",
            "additional_chat_templates/rag.jinja",
        ];
        std::fs::create_dir(from.path().join(NAMED_TEMPLATES)).unwrap();
        let others = ["weights.bin", ".hidden.json", "pytorch_model.bin.index.json", "credentials.json", "vocab\\.txt"];
        for name in files.iter().chain(&others) {
            std::fs::write(from.path().join(name), name).unwrap();
        }
        std::fs::write(from.path().join("config.json"), r#"{"quantization_config": {}, "a": 1}"#).unwrap();
        write_companions(from.path(), to.path(), false).unwrap();
        let mut expected: Vec<String> = files.iter().map(ToString::to_string).collect();
        expected.sort();
        assert_eq!(companions(to.path()).unwrap(), expected);
        assert_eq!(std::fs::read_to_string(to.path().join(files[4])).unwrap(), files[4]);
        let config = std::fs::read_to_string(to.path().join("config.json")).unwrap();
        assert!(config.contains("\"a\"") && !config.contains("quantization_config"), "{config}");
        assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 6, "nothing else");
    }
}
