//! Training on the generated world, and the files that are committed from it.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{Place, files};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A network of a few thousand weights; `world` is the body of that section.
fn training(world: &str, steps: usize) -> String {
    format!(
        "name: t\nout: model\nworld: {{{world}, out: world}}\n\
         network: {{vocab: 400, hidden: 32, intermediate: 48, layers: 2, heads: 2, kv_heads: 1, positions: 64}}\n\
         train: {{steps: {steps}, warmup: 2, decay: 4, learning_rate: 3e-3, batch: 6, context: 32, every: 4}}\n"
    )
}

#[test]
fn training_learns_and_goes_on_to_the_same_model() {
    let place = Place::new();
    place.write("t.yaml", &training("seed: 5, bytes: 400000, text_bytes: 2000, questions: 5", 120));
    let output = place.json(&["train", "t.yaml"]);
    let number = |key: &str| output[key].as_f64().unwrap();
    assert!(number("perplexity") < number("unigram_perplexity"), "{output}");
    assert!(number("bigram_perplexity") < number("unigram_perplexity"), "{output}");
    place.ok(&["inspect", "model"]);
    let whole = files(&place.path("model"));
    let log = std::fs::read_to_string(place.path("model/training-log.csv")).unwrap();
    assert_eq!(log.lines().count(), 31, "{log}");

    place.write(
        "again.yaml",
        &training("seed: 5, bytes: 400000, text_bytes: 2000, questions: 5", 120).replace("name: t", "name: u"),
    );
    let mut child = place.start(&["train", "again.yaml"], Stdio::null());
    // Killed once it has kept a state.
    let state = || {
        let dir = place.path("results/u/train");
        let unfinished = std::fs::read_dir(dir).into_iter().flatten().flatten();
        unfinished.map(|e| e.path().join("units/state")).any(|p| p.exists())
    };
    while !state() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(place.path("model")).unwrap();
    place.ok(&["train", "again.yaml", "--threads", "1"]);
    assert!(files(&place.path("model")) == whole);
}

#[test]
fn a_fine_tune_begins_at_its_base() {
    let place = Place::new();
    place.write("t.yaml", &training("seed: 5, bytes: 200000, text_bytes: 2000, questions: 5", 40));
    let base = place.json(&["train", "t.yaml"]);
    let tune = "name: f\nout: tuned\nworld: {seed: 5, year: 1, style: letters, bytes: 200000, text_bytes: 2000, questions: 5, out: letters}\n\
         from: model\ntrain: {steps: 1, warmup: 0, decay: 0, learning_rate: 1e-9, batch: 6, context: 32}\n";
    place.write("f.yaml", tune);
    place.ok(&["train", "f.yaml"]);
    let weights = |dir: &str| std::fs::read(place.path(dir).join("model.safetensors")).unwrap();
    let (before, after) = (weights("model"), weights("tuned"));
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!(
        before.len() == after.len() && moved < before.len() / 100,
        "a step of almost no length moved {moved} bytes"
    );
    assert!(base["weights"].as_u64().unwrap() > 10_000);
    let texts = |dir: &str| std::fs::read_to_string(place.path(dir).join("test.txt")).unwrap();
    assert_ne!(texts("world"), texts("letters"));
    place.write("f.yaml", &tune.replace("from: model", "from: nowhere"));
    assert!(place.fails(&["train", "f.yaml"]).contains("nowhere"));
    place.write("f.yaml", &tune.replace("bytes: 200000", "bytes: 10000").replace("steps: 1,", "steps: 5000,"));
    assert!(place.fails(&["train", "f.yaml"]).contains("tokens, training needs"));
    place.write("f.yaml", &tune.replace("steps: 1", "stepz: 1"));
    assert!(place.fails(&["train", "f.yaml"]).contains("unknown key train.stepz; did you mean steps?"));
}

#[test]
fn the_committed_texts_and_questions_are_what_the_generator_makes() {
    for (folder, file) in [("world", "tiny-train.yaml"), ("world-letters", "tiny-letters-train.yaml")] {
        let committed = Path::new(ROOT).join("calibration-data").join(folder);
        let place = Place::new();
        let yaml = std::fs::read_to_string(format!("{ROOT}/configs/{file}")).unwrap();
        // The same world, a small network, one step.
        let world: String = yaml
            .lines()
            .skip_while(|l| !l.starts_with("world:"))
            .skip(1)
            .take_while(|l| l.starts_with(' '))
            .map(|l| {
                let (key, value) = l.trim().split_once(": ").unwrap();
                match key {
                    "bytes" => "bytes: 100000, ".to_string(),
                    "out" => String::new(),
                    _ => format!("{key}: {value}, "),
                }
            })
            .collect();
        place.write("t.yaml", &training(world.trim_end_matches(", "), 4));
        place.ok(&["train", "t.yaml"]);
        assert!(files(&committed).len() > 15, "{}", committed.display());
        assert!(
            files(&place.path("world")) == files(&committed),
            "{} differs: {file} makes another",
            committed.display()
        );
    }
}
