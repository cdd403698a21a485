//! Published layouts end to end, other architectures, and memory that does not grow with the layers.

mod common;

use common::Place;
use serde_json::json;

/// A pipeline over a model in the directory `model`.
fn pipeline(context: usize) -> String {
    format!(
        "name: made\nmodel: path:model\n\
         calibrate: {{text: text.txt, context: {context}, sequences: 4}}\n\
         allocate: {{sizes: [{{bits_per_weight: 4}}]}}\n\
         evaluate: {{text: text.txt, context: {context}, sequences: 4}}\n"
    )
}

fn place() -> Place {
    let place = Place::new();
    place.write("text.txt", &"Ada sees the red fox . Bram likes the blue boat . ".repeat(200));
    place.write("p.yaml", &pipeline(64));
    place
}

#[test]
fn a_made_checkpoint_goes_through_all_stages() {
    let place = place();
    let text = place.ok(&["make-checkpoint", "--like", "smollm2-135m", "--layers", "1", "--out", "model"]);
    assert!(text.contains("1 of 30 layers") && text.contains("weights"), "{text}");
    let config = std::fs::read_to_string(place.path("model/config.json")).unwrap();
    assert!(config.contains("\"hidden_size\": 576") && config.contains("\"num_hidden_layers\": 1"), "{config}");
    let output = place.json(&["run", "p.yaml"]);
    let point = &output["points"][0];
    let bits = point["bits_per_weight"].as_f64().unwrap();
    assert!((bits - 4.0).abs() < 0.05, "{bits} bits per weight, asked for 4");
    assert!(point["kl"].as_f64().unwrap() > 0.0);
    // The same seed gives the same bytes, another does not.
    place.ok(&["make-checkpoint", "--like", "smollm2-135m", "--layers", "1", "--out", "again", "--threads", "1"]);
    place.ok(&["make-checkpoint", "--like", "smollm2-135m", "--layers", "1", "--seed", "2", "--out", "other"]);
    let weights = |dir: &str| std::fs::read(place.path(dir).join("model.safetensors")).unwrap();
    assert!(weights("model") == weights("again") && weights("model") != weights("other"));
}

#[test]
fn layouts_that_cannot_be_made_are_refused() {
    let place = place();
    let fails = |arguments: &[&str], words: &[&str]| {
        let message = place.fails(&[&["make-checkpoint"], arguments].concat());
        words.iter().for_each(|word| assert!(message.contains(word), "expected {word:?} in: {message}"));
    };
    fails(&["--like", "llama9", "--out", "x"], &["llama9", "llama3-8b", "qwen3-4b"]);
    fails(&["--like", "llama3-8b", "--layers", "33", "--out", "x"], &["33", "1 to 32"]);
    fails(&["--like", "llama3-8b", "--layers", "0", "--out", "x"], &["--layers 0"]);
    std::fs::create_dir(place.path("x")).unwrap();
    fails(&["--like", "smollm2-135m", "--layers", "1", "--out", "x"], &["x exists already"]);
}

#[test]
fn other_architectures_are_evaluated_but_not_calibrated() {
    let place = place();
    let mut config = waterfill_fixture::small_config_of("llama2-7b").unwrap();
    for (key, value) in [("architectures", json!(["OlmoForCausalLM"])), ("clip_qkv", json!(null))] {
        config[key] = value;
    }
    waterfill_fixture::write_random(&place.path("model"), &config, 1).unwrap();
    let output = place.json(&["evaluate", "p.yaml", "--original"]);
    let perplexity = output["perplexity"].as_f64().unwrap();
    // Questions are answered too, by a reading of each choice and in writing.
    let question = "{\"query\": \"the red fox\", \"choices\": [\"sees the boat\", \"is\"], \"gold\": 0}\n";
    place.write("piqa.jsonl", &question.repeat(3));
    place.write("gsm8k.jsonl", "{\"question\": \"two and two?\", \"answer\": \"It is four.\\n#### 4\"}\n");
    let asked = "benchmarks: [{task: piqa, path: piqa.jsonl}, {task: gsm8k, path: gsm8k.jsonl}]}";
    let yaml = std::fs::read_to_string(place.path("p.yaml")).unwrap();
    let (start, _) = yaml.trim_end().rsplit_once('}').unwrap();
    place.write("q.yaml", &format!("{start}, {asked}\n"));
    let answered = place.json(&["evaluate", "q.yaml", "--original"]);
    assert_eq!(answered["perplexity"], output["perplexity"]);
    assert_eq!(answered["benchmarks"][0]["all"]["questions"], 3);
    let answers = std::fs::read_to_string(place.path(answered["benchmarks"][1]["answers"].as_str().unwrap())).unwrap();
    assert!(answers.contains("\"written\""), "{answers}");
    // A random model of 320 tokens knows less than nothing, but is not far from guessing.
    assert!((100.0..5000.0).contains(&perplexity), "{perplexity}");
    let message = place.fails(&["run", "p.yaml"]);
    for word in ["OlmoForCausalLM", "evaluate --original", "vector-Jacobian", "LlamaForCausalLM"] {
        assert!(message.contains(word), "expected {word:?} in: {message}");
    }
    config["architectures"] = json!(["BertModel"]);
    std::fs::write(place.path("model/config.json"), config.to_string()).unwrap();
    for arguments in [&["run", "p.yaml"][..], &["evaluate", "p.yaml", "--original"]] {
        let message = place.fails(arguments);
        assert!(message.contains("BertModel") && message.contains("Phi3ForCausalLM"), "{message}");
    }
}

/// What can be evaluated alone and calibrated gives the same figure both ways.
#[test]
fn the_original_alone_is_what_a_run_compares_with() {
    let place = place();
    waterfill_fixture::write_random(&place.path("model"), &waterfill_fixture::small_config_of("qwen3-4b").unwrap(), 1)
        .unwrap();
    let alone = place.json(&["evaluate", "p.yaml", "--original"]);
    let run = place.json(&["run", "p.yaml"]);
    assert_eq!(alone["nll"], run["base"]["nll"]);
}

#[test]
fn contexts_and_tokenizers_must_fit_the_model() {
    let place = place();
    let config = waterfill_fixture::small_config_of("llama3-8b").unwrap();
    waterfill_fixture::write_random(&place.path("model"), &config, 1).unwrap();
    place.write("long.yaml", &pipeline(257));
    let message = place.fails(&["calibrate", "long.yaml"]);
    assert!(message.contains("context 257, the model takes 256 positions"), "{message}");
    let mut small = config.clone();
    small["vocab_size"] = 280.into();
    waterfill_fixture::write_random(&place.path("small"), &small, 1).unwrap();
    std::fs::copy(place.path("model/tokenizer.json"), place.path("small/tokenizer.json")).unwrap();
    let message = place.fails(&["calibrate", "p.yaml", "--model", "path:small"]);
    assert!(message.contains("301 tokens, the embedding has 280 rows"), "{message}");
}

/// Weights of a block are gone before the next is read.
#[test]
fn memory_does_not_grow_with_the_layers() {
    let peak = |layers: usize| {
        let place = place();
        let mut config = waterfill_fixture::small_config_of("llama3-8b").unwrap();
        for (key, value) in [("hidden_size", 512), ("intermediate_size", 2048), ("num_hidden_layers", layers)] {
            config[key] = value.into();
        }
        waterfill_fixture::write_random(&place.path("model"), &config, 1).unwrap();
        let of = |dir: &serde_json::Value| {
            let text = std::fs::read_to_string(place.path(dir.as_str().unwrap()).join("timings.json")).unwrap();
            let timings: serde_json::Value = serde_json::from_str(&text).unwrap();
            timings["peak_memory_bytes"].as_f64().unwrap() / 1e6
        };
        let calibrated = place.json(&["calibrate", "p.yaml"]);
        let evaluated = place.json(&["evaluate", "p.yaml", "--original"]);
        [of(&calibrated["artifacts"]["calibrate"]), of(&evaluated["artifact"])]
    };
    let (few, many) = (peak(2), peak(14));
    // Twelve more blocks have 200 MB of weights in f32.
    for (few, many) in few.into_iter().zip(many) {
        println!("{few} MB with 2 layers, {many} MB with 14");
        assert!(many < few + 60.0, "{few} MB with 2 layers, {many} MB with 14");
    }
}
