//! What people get wrong, and what they are told.

mod common;

use common::{Place, pipeline};

/// A generated model with one stage run, as files to damage.
fn prepared() -> (Place, std::path::PathBuf, String) {
    let place = Place::new();
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    let output = place.json(&["encode", "p.yaml"]);
    let tuned = output["points"][0]["checkpoint"].as_str().unwrap().to_string();
    let fixture = std::fs::read_dir(place.path("results/fixture/fixture")).unwrap().next().unwrap().unwrap().path();
    let model = place.path("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(fixture.join("model").join(file), model.join(file)).unwrap();
    }
    place.write("text.txt", "Ada sees the red fox . Bram likes the blue boat . ".repeat(80).as_str());
    let yaml =
        pipeline("lambdas: [1e-6]").replace("fixture:7", "path:model").replace("text: fixture", "text: text.txt");
    place.write("m.yaml", &yaml.replace(", multiple_choice: {path: fixture, questions: 24, shots: 1}", ""));
    (place, model, tuned)
}

fn expect(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

#[test]
fn models_that_cannot_be_used_are_named() {
    let (place, model, _) = prepared();
    place.ok(&["calibrate", "m.yaml"]);
    let weights = model.join("model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();

    std::fs::write(&weights, &good[..good.len() - 100]).unwrap();
    expect(&place.fails(&["calibrate", "m.yaml"]), &["model.safetensors", "its header describes", "download it again"]);
    std::fs::write(&weights, [0xff; 64]).unwrap();
    expect(&place.fails(&["calibrate", "m.yaml"]), &["model.safetensors", "truncated or not safetensors"]);
    std::fs::remove_file(&weights).unwrap();
    expect(&place.fails(&["calibrate", "m.yaml"]), &["model", "no model.safetensors"]);
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    std::fs::write(model.join("model.safetensors.index.json"), index).unwrap();
    expect(&place.fails(&["calibrate", "m.yaml"]), &["index.json", "model-00001-of-00002.safetensors"]);
    std::fs::remove_file(model.join("model.safetensors.index.json")).unwrap();

    // The last bf16 of the file becomes a NaN, then an infinity.
    for (pattern, name) in [([0xc0, 0x7f], "is NaN"), ([0x80, 0x7f], "is inf")] {
        let mut bad = good.clone();
        let end = bad.len();
        bad[end - 2..].copy_from_slice(&pattern);
        std::fs::write(&weights, bad).unwrap();
        expect(&place.fails(&["calibrate", "m.yaml"]), &["tensor model.", name, "finite"]);
    }
    std::fs::write(&weights, &good).unwrap();

    let change = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        std::fs::write(model.join("config.json"), config.replace(from, to)).unwrap();
        place.fails(&["calibrate", "m.yaml"])
    };
    expect(&change("LlamaForCausalLM", "MambaForCausalLM"), &["config.json", "Mamba", "supported: LlamaForCausalLM"]);
    expect(&change("\"intermediate_size\": 172", "\"intermediate_size\": 160"), &["_proj.weight", "172", "160"]);
    expect(&change("\"vocab_size\": 63", "\"vocab_size\": 50"), &["tokenizer.json", "63 tokens", "50 rows"]);
    std::fs::write(model.join("config.json"), &config).unwrap();

    place.write("text.txt", "");
    expect(&place.fails(&["calibrate", "m.yaml"]), &["text.txt", "0 tokens"]);
    assert!(
        !place
            .path("results/fixture/calibrate")
            .read_dir()
            .unwrap()
            .any(|e| { e.unwrap().file_name().to_string_lossy().starts_with(".unfinished") })
    );
}

#[test]
fn configurations_that_cannot_be_used_are_named() {
    let place = Place::new();
    let message = place.fails(&["run", "absent.yaml"]);
    expect(&message, &["absent.yaml", "No such file"]);
    assert_eq!(message.matches("No such file").count(), 1, "said once: {message}");
    place.write("p.yaml", &pipeline("lambda: [1e-6]"));
    expect(&place.fails(&["validate", "p.yaml"]), &["unknown key allocate.lambda", "did you mean lambdas?"]);
    place.write("p.yaml", &pipeline("lambdas: [1e6]"));
    expect(&place.fails(&["run", "p.yaml"]), &["allocate.lambdas[0] is 1000000", "1000"]);
    place.write("p.yaml", &pipeline("lambdas: [1e-6], formats: [int5]"));
    expect(&place.fails(&["run", "p.yaml"]), &["int5", "int4"]);
    place.write("p.yaml", &pipeline("lambdas: [1e-6]").replace("fixture:7", "path:nowhere"));
    expect(&place.fails(&["validate", "p.yaml"]), &["model is \"nowhere\"", "does not exist"]);
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    let message = place.fails(&["run", "p.yaml", "--model", "meta-llama/Meta-Llama-3-8B"]);
    expect(&message, &["meta-llama/Meta-Llama-3-8B", "expected hf:OWNER/NAME, path:DIR"]);
    if !cfg!(feature = "cuda") {
        let message = place.fails(&["run", "p.yaml", "--device", "cuda:0"]);
        expect(&message, &["cuda:0", "this build has no CUDA", "just build-cuda"]);
    }
    expect(&place.fails(&["run", "p.yaml", "--device", "tpu"]), &["tpu", "expected cpu or cuda:N"]);
    place.write(
        "p.yaml",
        &pipeline("lambdas: [1e-6]").replace("context: 48, sequences: 24", "context: 500, sequences: 24"),
    );
    expect(&place.fails(&["run", "p.yaml"]), &["context 500", "128 positions"]);
}

#[test]
fn damage_is_found_by_verify_and_by_reading() {
    let (place, _, tuned) = prepared();
    expect(&place.ok(&["verify", &tuned]), &["coded and", "plain tensors match their digests"]);
    let artifact = tuned.trim_end_matches("/checkpoint");
    expect(&place.ok(&["verify", artifact]), &["files match their digests"]);
    expect(&place.ok(&["inspect", artifact]), &["artifact of stage encode", "bits per weight", "int8", "q_proj"]);
    let path = place.path(&tuned).join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    for at in [good.len() / 3, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&path, bad).unwrap();
        let message = place.fails(&["verify", &tuned]);
        assert!(message.contains("damaged") && message.contains("model.safetensors"), "{message}");
        expect(&place.fails(&["verify", artifact]), &["model.safetensors", "digest"]);
    }
    expect(&place.fails(&["inspect", "model/config.json"]), &["neither an artifact"]);
    expect(&place.fails(&["decode", "nowhere", "out"]), &["nowhere"]);
}
