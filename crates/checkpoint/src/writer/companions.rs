//! Files next to the shards that belong to a model whatever its weights are: tokenizer, templates, settings, code, licence.

use std::path::Path;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::shard_mark::VERSION;
use crate::types::QUANT_METHOD;
use crate::writer::small_file::write_file;

/// Folder of templates by name, beside `chat_template.jinja`.
const TEMPLATES: &str = "additional_chat_templates";
/// Endings of files that tokenizers, templates, processors, settings and code of models have.
const ENDINGS: [&str; 6] = ["json", "jinja", "model", "tiktoken", "txt", "py"];
/// Beginnings of files with the terms of use, in small letters.
const TERMS: [&str; 4] = ["license", "licence", "notice", "use_policy"];
/// Files about the weights of one directory: the configuration, which is written anew, and what quantizers and trainers say.
const ABOUT_WEIGHTS: [&str; 4] = ["config.json", "quantize_config.json", "hf_quant_config.json", "trainer_state.json"];

/// Whether a file of a checkpoint directory, by its path within it, belongs to the model whatever its weights are, such as
/// `tokenizer.json`, `chat_template.jinja` or `LICENSE`.
///
/// ```
/// use waterfill_checkpoint::writer::is_companion;
///
/// for name in ["tokenizer.json", "added_tokens.json", "qwen.tiktoken", "additional_chat_templates/tool_use.jinja", "NOTICE"] {
///     assert!(is_companion(name), "{name}");
/// }
/// for name in ["config.json", "model.safetensors", "model.safetensors.index.json", ".gitattributes", "original/params.json"] {
///     assert!(!is_companion(name), "{name}");
/// }
/// ```
pub fn is_companion(name: &str) -> bool {
    if let Some((folder, template)) = name.split_once('/') {
        return folder == TEMPLATES && template.ends_with(".jinja") && !template.contains('/');
    }
    let of_weights = name.ends_with(".index.json") || ABOUT_WEIGHTS.contains(&name) || name.starts_with('.');
    let terms = TERMS.iter().any(|beginning| name.to_ascii_lowercase().starts_with(beginning));
    let ending = name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending));
    !of_weights && (terms || ending)
}

/// The companions in a directory, sorted.
pub(crate) fn companions(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (folder, prefix) in [(dir.to_path_buf(), String::new()), (dir.join(TEMPLATES), format!("{TEMPLATES}/"))] {
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).at(&folder)? {
            let entry = entry.at(&folder)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
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
        std::fs::create_dir(from.path().join(TEMPLATES)).unwrap();
        for name in files.iter().chain(&["weights.bin", ".hidden.json", "pytorch_model.bin.index.json"]) {
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
