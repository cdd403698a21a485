//! The forward pass of every family against candle-transformers' own models on the same weights.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use serde_json::{Value, json};
use waterfill_fixture::{FAMILIES, small_config_of, write_random};
use waterfill_model::Model;

/// Tokens of a row.
const TOKENS: usize = 40;

fn rows(vocab: usize) -> Vec<Vec<u32>> {
    (0..3).map(|r| (0..TOKENS).map(|i| ((i * 7 + i * i * 3 + r * 5) % vocab) as u32).collect()).collect()
}

/// Logits `[rows, vocab]` after the last token of every row.
fn ours(model: &Model, rows: &[Vec<u32>]) -> Tensor {
    let batch = vec![rows.iter().map(Vec::as_slice).collect::<Vec<_>>()];
    let mut inputs = Vec::new();
    let collect = |_, x| -> Result<(), waterfill_model::ModelError> {
        inputs.push(x);
        Ok(())
    };
    model.embed(&batch, collect).unwrap();
    let mut x = inputs.remove(0);
    for i in 0..model.config.layers {
        x = model.block(i).unwrap().forward(&x).unwrap();
    }
    let head = model.head().unwrap();
    let last = x.narrow(1, TOKENS - 1, 1).unwrap().squeeze(1).unwrap();
    head.logits(&head.normalise(&last).unwrap()).unwrap()
}

fn theirs(model: &Model, config: &Value, rows: &[Vec<u32>]) -> Tensor {
    let tensors = model.checkpoint().tensors().map(|t| {
        let values = model.checkpoint().read(&t.name).unwrap().to_f32();
        (t.name.clone(), Tensor::from_vec(values, t.shape.as_slice(), &Device::Cpu).unwrap())
    });
    let builder = VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu);
    let ids = Tensor::from_vec(rows.concat(), (rows.len(), TOKENS), &Device::Cpu).unwrap();
    let text = config.to_string();
    let logits = match config["architectures"][0].as_str().unwrap() {
        "MistralForCausalLM" => {
            let config: mistral::Config = serde_json::from_str(&text).unwrap();
            mistral::Model::new(&config, builder).unwrap().forward(&ids, 0).unwrap()
        }
        "Qwen2ForCausalLM" => {
            let config: qwen2::Config = serde_json::from_str(&text).unwrap();
            qwen2::ModelForCausalLM::new(&config, builder).unwrap().forward(&ids, 0).unwrap()
        }
        "Qwen3ForCausalLM" => {
            let config: qwen3::Config = serde_json::from_str(&text).unwrap();
            qwen3::ModelForCausalLM::new(&config, builder).unwrap().forward(&ids, 0).unwrap()
        }
        _ => {
            let config: llama::LlamaConfig = serde_json::from_str(&text).unwrap();
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            llama::Llama::load(builder, &config).unwrap().forward(&ids, 0, &mut cache).unwrap()
        }
    };
    logits.reshape((rows.len(), ())).unwrap()
}

/// Largest differences of a logit, for what we compute from `config` and candle from `reference`.
fn difference(config: &Value, reference: &Value) -> f32 {
    let dir = tempfile::tempdir().unwrap();
    write_random(dir.path(), config, 11).unwrap();
    let model = Model::open(dir.path(), &Device::Cpu).unwrap();
    let rows = rows(model.config.vocab);
    let (ours, theirs) = (ours(&model, &rows), theirs(&model, reference, &rows));
    let spread = theirs.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    println!("logits reach {spread:.1}");
    assert!(spread > 0.5, "logits reach {spread} only: nothing is compared");
    (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

#[test]
fn logits_of_every_family_equal_candle_transformers() {
    for name in FAMILIES {
        let config = small_config_of(name).unwrap();
        for tied in [true, false] {
            // candle's Mistral has no tied heads.
            if tied && name == "mistral-7b" {
                continue;
            }
            let mut config = config.clone();
            config["tie_word_embeddings"] = tied.into();
            let worst = difference(&config, &config);
            println!("{name}, tied {tied}: largest difference of a logit {worst:.1e}");
            assert!(worst < 1e-4, "{name}, tied {tied}: largest difference of a logit {worst}");
        }
    }
}

/// A window of w keys in transformers has the query itself among them; in candle it has not.
#[test]
fn sliding_windows_equal_candle_transformers() {
    let mut config = small_config_of("mistral-7b").unwrap();
    let full = config.clone();
    config["sliding_window"] = 8.into();
    let mut reference = config.clone();
    reference["sliding_window"] = 7.into();
    let worst = difference(&config, &reference);
    assert!(worst < 1e-4, "largest difference of a logit {worst}");
    assert!(difference(&config, &full) > 1e-3, "the window must matter");
}

/// Version 5 of transformers writes rotary constants in one object.
#[test]
fn newer_configurations_mean_the_same() {
    let old = small_config_of("llama3.1-8b").unwrap();
    let mut new = old.clone();
    let mut rope = new["rope_scaling"].take();
    rope["rope_theta"] = new["rope_theta"].take();
    new["rope_parameters"] = rope;
    let dir = tempfile::tempdir().unwrap();
    let open = |config: &Value| {
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        waterfill_model::ModelConfig::open(dir.path())
    };
    assert_eq!(open(&old).unwrap(), open(&new).unwrap());
    let refused = |changes: Value| {
        let mut config = old.clone();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        open(&config).unwrap_err().to_string()
    };
    for (changes, words) in [
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "\"yarn\", supported: default, linear, llama3"),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "low_freq_factor None"),
        (json!({"hidden_act": "gelu"}), "\"silu\""),
        (json!({"num_key_value_heads": 3}), "4 query heads for 3 key heads"),
        (json!({"architectures": ["GPT2LMHeadModel"]}), "GPT2LMHeadModel; supported: LlamaForCausalLM"),
    ] {
        let message = refused(changes);
        assert!(message.contains(words) && message.contains("config.json"), "{message}");
    }
}
