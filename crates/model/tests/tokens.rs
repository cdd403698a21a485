//! Token ids against the `tokenizers` library reading the same files.

use std::path::{Path, PathBuf};

use serde_json::json;
use tokenizers::Tokenizer;
use waterfill_fixture::{small_config_of, write_random};
use waterfill_model::{ModelConfig, Text, Windows, tokens::Layout};

const SAMPLE: &str = "In the year 1911, Ada's boat (the \u{e9}toile) sank.\n\n  def f(x): return x**2  # \u{1f40d} <s>\t\u{4f60}\u{597d}";

/// Our prefix and ids are what the library gives with special tokens.
fn same_as_the_library(dir: &Path) -> Vec<u32> {
    let config = ModelConfig::open(dir).unwrap();
    let text = Text::open(dir, &config).unwrap();
    let library = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    for sample in [SAMPLE, "a", "", " leading", "two  spaces"] {
        let ours = [text.prefix(), &text.encode(sample).unwrap()].concat();
        assert_eq!(ours, library.encode(sample, true).unwrap().get_ids(), "{}: {sample:?}", dir.display());
    }
    text.prefix().to_vec()
}

#[test]
fn ids_are_those_of_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    for (name, prefix) in [("llama3-8b", vec![300]), ("mistral-7b", vec![300]), ("qwen2.5-7b", vec![])] {
        let made = dir.path().join(name);
        write_random(&made, &small_config_of(name).unwrap(), 1).unwrap();
        assert_eq!(same_as_the_library(&made), prefix, "{name}");
    }
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    if !models.exists() {
        eprintln!("skipped for trained tokenizers: ../shared/models is not there");
        return;
    }
    for (name, prefix) in [("books-7m", vec![]), ("babyllama-tok361", vec![1]), ("stories260k", vec![1])] {
        assert_eq!(same_as_the_library(&models.join(name)), prefix, "{name}");
    }
}

#[test]
fn the_flag_rules_where_the_class_builds_its_template() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config_of("llama2-7b").unwrap();
    write_random(dir.path(), &config, 1).unwrap();
    let config = ModelConfig::open(dir.path()).unwrap();
    let prefix = |rules: serde_json::Value| {
        std::fs::write(dir.path().join("tokenizer_config.json"), rules.to_string()).unwrap();
        Text::open(dir.path(), &config).map(|t| t.prefix().to_vec()).map_err(|e| e.to_string())
    };
    let bos = "<|begin_of_text|>";
    let rules = |class: &str, add: bool| json!({"tokenizer_class": class, "add_bos_token": add, "bos_token": bos});
    assert_eq!(prefix(rules("LlamaTokenizer", true)).unwrap(), [300]);
    assert_eq!(prefix(rules("LlamaTokenizer", false)).unwrap(), [0u32; 0]);
    assert_eq!(prefix(rules("PreTrainedTokenizerFast", false)).unwrap(), [300], "the template rules");

    // Without a template of its own, only the flag puts the token there.
    let path = dir.path().join("tokenizer.json");
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["post_processor"] = serde_json::Value::Null;
    std::fs::write(&path, file.to_string()).unwrap();
    assert_eq!(prefix(json!({})).unwrap(), [0u32; 0]);
    assert_eq!(prefix(rules("GemmaTokenizer", true)).unwrap(), [300]);
    assert_eq!(
        prefix(json!({"tokenizer_class": "X", "add_bos_token": true, "bos_token": {"content": bos}})).unwrap(),
        [300]
    );
    let message = prefix(json!({"tokenizer_class": "X", "add_bos_token": true, "bos_token": "<gone>"})).unwrap_err();
    assert!(message.contains("tokenizer.json") && message.contains("<gone>"), "{message}");

    let small = ModelConfig { vocab: 256, ..config.clone() };
    let message = Text::open(dir.path(), &small).err().unwrap().to_string();
    assert!(message.contains("301 tokens, the embedding has 256 rows"), "{message}");
}

#[test]
fn every_window_begins_with_the_prefix() {
    let ids: Vec<u32> = (10..40).collect();
    let path = Path::new("text");
    let windows = Windows::cut((&[1], &ids), 5, 9, Layout::FromStart, (50, 8), path).unwrap();
    assert_eq!(windows.rows[0], [1, 10, 11, 12, 13, 14]);
    assert_eq!(windows.rows[5], [1, 35, 36, 37, 38, 39]);
    assert_eq!((windows.rows.len(), windows.targets(1)), (6, &[15, 16, 17, 18, 19][..]));
    let message =
        |context| Windows::cut((&[1], &ids), context, 9, Layout::FromStart, (50, 8), path).unwrap_err().to_string();
    assert!(message(9).contains("context 9, the model takes 8 positions"));
    assert!(message(1).contains("expected at least 2"));
}
