//! Benchmarks of questions, on the generated model.

mod common;

use common::{Place, pipeline};

const LINES: &str = r#"{"query": "the red fox", "choices": ["sees the boat", "is"], "gold": 0}
{"query": "a blue lamp", "choices": ["on the boat", "of a drum"], "gold": 1}
{"query": "Ada", "choices": ["likes", "feeds the horse"], "gold": 1}
"#;
const SENTENCES: &str = r#"{"context_options": ["Ada sees Bram since Ada", "Ada sees Bram since Bram"], "continuation": "sees", "gold": 0}
"#;

fn with_benchmarks(more: &str) -> String {
    let benchmarks = format!(
        ", benchmarks: [{{task: piqa, path: piqa.jsonl, questions: 2}}, {{task: winogrande, path: wino.jsonl, questions: 9}}{more}]}}\n"
    );
    pipeline("lambdas: [1e-6]").replace("shots: 1}}\n", &format!("shots: 1}}{benchmarks}"))
}

#[test]
fn several_benchmarks_are_answered_and_paired() {
    let place = Place::new();
    place.write("piqa.jsonl", LINES);
    place.write("wino.jsonl", SENTENCES);
    place.write("p.yaml", &with_benchmarks(""));
    let original = place.json(&["evaluate", "--original", "p.yaml"]);
    let output = place.json(&["run", "p.yaml"]);
    assert_eq!(output["base"]["benchmarks"], original["benchmarks"]);
    for (of, what) in [(&output["base"], "original"), (&output["points"][0], "tuned")] {
        let benchmarks = of["benchmarks"].as_array().unwrap();
        let tasks: Vec<&str> = benchmarks.iter().map(|b| b["task"].as_str().unwrap()).collect();
        assert_eq!(tasks, ["mmlu", "piqa", "winogrande"], "{what}");
        let counts: Vec<u64> = benchmarks.iter().map(|b| b["all"]["questions"].as_u64().unwrap()).collect();
        assert_eq!(counts, [24, 2, 1], "{what}");
        assert_eq!(of["accuracy"], benchmarks[0]["all"]["accuracy"], "{what}");
        assert!(benchmarks[1]["other_way"]["accuracy"].is_number() && benchmarks[2]["other_way"].is_null(), "{what}");
        assert!(benchmarks.iter().all(|b| b["change"]["mean"].is_number()), "{what}");
    }
    // Every answer is kept, so that later comparisons need no run.
    let answers = std::fs::read_to_string(place.path(original["benchmarks"][1]["answers"].as_str().unwrap()));
    let answers: serde_json::Value = serde_json::from_str(&answers.unwrap()).unwrap();
    assert_eq!(answers[1]["scores"].as_array().unwrap().len(), 2);
    let text = place.run(&["run", "p.yaml", "--quiet"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for expected in ["original: piqa", "by length", "1.00e-6: winogrande", "change"] {
        assert!(text.contains(expected), "{text}");
    }
}

/// Figures by position and keys at depths, paired as everything is.
#[test]
fn long_contexts_are_told_apart_by_position() {
    let place = Place::new();
    place.write("text.txt", &"Ada sees the red fox . Bram likes the blue boat . ".repeat(30));
    let retrieval = "{task: retrieval, path: text.txt, questions: 2, retrieval: {lengths: [48], depths: [0, 1], \
        needle: 'the key is a {key} .', question: 'the key is a', keys: [fox, boat, lamp, drum]}}";
    let yaml = pipeline("lambdas: [1e-6]").replace(
        "evaluate: {",
        &format!("evaluate: {{long_context: {{context: 96, sequences: 3, bands: 3}}, benchmarks: [{retrieval}], "),
    );
    place.write("p.yaml", &yaml);
    let output = place.json(&["run", "p.yaml"]);
    for (of, what) in [(&output["base"], "original"), (&output["points"][0], "tuned")] {
        let bands = of["by_position"].as_array().unwrap();
        let ends: Vec<[u64; 2]> = bands.iter().map(|b| ["from", "to"].map(|k| b[k].as_u64().unwrap())).collect();
        assert_eq!(ends, [[1, 24], [25, 48], [49, 96]], "{what}");
        assert!(bands.iter().all(|b| b["text"]["sequences"] == 3 && b["text"]["perplexity"].as_f64().unwrap() > 1.0));
        let apart = bands.iter().filter(|b| b["text"]["kl"]["mean"].as_f64().unwrap() > 0.0).count();
        assert_eq!(apart, if what == "tuned" { 3 } else { 0 }, "{what}");
        let found = &of["benchmarks"][1];
        assert_eq!(
            (found["task"].as_str(), found["all"]["questions"].as_u64()),
            (Some("retrieval"), Some(4)),
            "{what}"
        );
        assert_eq!(found["groups"].as_object().unwrap().len(), 2, "{what}");
    }
    let text = place.run(&["run", "p.yaml", "--quiet"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for expected in ["original: positions    49 to    96: perplexity", "KL 0.", "48 tokens, depth 100 %"] {
        assert!(text.contains(expected), "{text}");
    }
    // Another band or another length of sequences is another evaluation; the whole text's figures stay.
    place.write("p.yaml", &yaml.replace("sequences: 3, bands", "sequences: 2, bands"));
    let other = place.json(&["run", "p.yaml"]);
    assert_eq!(other["base"]["nll"], output["base"]["nll"]);
    assert_eq!(other["base"]["by_position"][0]["text"]["sequences"], 2);
}

/// A choice that is longer than the context is an error that says what to do, or left out.
#[test]
fn choices_beyond_the_context_are_left_out_on_request() {
    let place = Place::new();
    let long =
        format!("{{\"query\": \"Ada\", \"choices\": [\"sees\", \"{}\"], \"gold\": 0}}\n", "the red fox ".repeat(400));
    place.write("piqa.jsonl", &(long + LINES));
    place.write("wino.jsonl", SENTENCES);
    let yaml = with_benchmarks("").replace("questions: 2}", "questions: 9}");
    place.write("p.yaml", &yaml);
    let message = place.fails(&["evaluate", "--original", "p.yaml"]);
    assert!(message.contains("question \"Ada\\nAnswer:\"") && message.contains("skip_long: true"), "{message}");
    place.write("p.yaml", &yaml.replace("questions: 9}, {", "questions: 9, skip_long: true}, {"));
    // What had been found before the failure was kept.
    let progress = String::from_utf8(place.run(&["evaluate", "--original", "p.yaml"]).stderr).unwrap();
    assert!(progress.contains("answer mmlu with the original: found"), "{progress}");
    assert!(progress.contains("answer piqa with the original: done"), "{progress}");
    let output = place.json(&["evaluate", "--original", "p.yaml"]);
    let piqa = &output["benchmarks"][1];
    assert_eq!((piqa["skipped"].as_u64(), piqa["all"]["questions"].as_u64()), (Some(1), Some(3)), "{output}");
    let text = String::from_utf8(place.run(&["evaluate", "--original", "p.yaml", "--quiet"]).stdout).unwrap();
    assert!(text.contains("1 longer than the context left out"), "{text}");
}

/// The embedded model knows its world well enough to write the right choices; it has never seen GSM8K's form.
#[test]
fn answers_are_written() {
    let place = Place::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    place.write("train.jsonl", "{\"question\": \"one and one?\", \"answer\": \"It is two.\\n#### 2\"}\n");
    place.write("gsm8k.jsonl", "{\"question\": \"two and two?\", \"answer\": \"It is four.\\n#### 4\"}\n");
    let root = root.display();
    place.write(
        "p.yaml",
        &format!(
            "name: written\nmodel: path:{root}/calibration-data/tiny\n\
             calibrate: {{text: {root}/calibration-data/world/calibration.txt}}\nallocate: {{lambdas: [1e-9]}}\n\
             evaluate:\n  text: {root}/calibration-data/world/validation.txt\n  sequences: 2\n  \
             multiple_choice: {{path: {root}/calibration-data/world/questions, questions: 30, shots: 0, scoring: written}}\n  \
             benchmarks: [{{task: gsm8k, path: gsm8k.jsonl, examples: train.jsonl, shots: 1}}]\n"
        ),
    );
    let output = place.json(&["evaluate", "--original", "p.yaml"]);
    let all = |n: usize| output["benchmarks"][n]["all"]["accuracy"].as_f64().unwrap();
    assert!(all(0) > 0.9, "{output}");
    assert_eq!(output["benchmarks"][1]["other_way"]["questions"], 1);
    let answers = std::fs::read_to_string(place.path(output["benchmarks"][0]["answers"].as_str().unwrap()));
    let answers: serde_json::Value = serde_json::from_str(&answers.unwrap()).unwrap();
    for answer in answers.as_array().unwrap() {
        let written = answer["written"].as_str().unwrap().trim();
        assert_eq!(answer["correct"].as_bool().unwrap(), Some(written) == answer["answer"].as_str(), "{answer}");
    }
}

#[test]
fn wrong_benchmarks_are_named() {
    let place = Place::new();
    place.write("piqa.jsonl", LINES);
    place.write("wino.jsonl", SENTENCES);
    for (more, expected) in [
        (", {task: winogrande, path: piqa.jsonl}", "piqa.jsonl: line 1: expected sentence, option1, option2, answer"),
        (", {task: piqa, path: piqa.jsonl, shots: 3}", "evaluate.benchmarks[2].shots is 3, expected 0 to 0"),
        (", {task: piqa, path: piqa.jsonl, subjects: [art]}", "only mmlu"),
        (", {task: pica, path: piqa.jsonl}", "pica"),
        (", {tusk: piqa, path: piqa.jsonl}", "did you mean task"),
        (", {task: piqa, path: gone.jsonl}", "gone.jsonl"),
        (", {path: fixture, subjects: [coluors]}", "did you mean"),
        (", {task: gsm8k, path: piqa.jsonl, shots: 2}", "give examples"),
        (", {task: retrieval, path: piqa.jsonl, retrieval: {keys: [a, b]}}", "2 keys, 2 of them different, expected 4"),
        (", {task: retrieval, path: fixture, retrieval: {lengths: [3]}}", "more than the 3 asked for"),
        (", {task: piqa, path: piqa.jsonl, retrieval: {}}", "has retrieval, but asks piqa"),
        (", {task: hellaswag, path: .}", "has no file default/validation-*.parquet or"),
        (", {task: gsm8k, path: piqa.jsonl}", "piqa.jsonl: line 1: missing field `question`"),
    ] {
        place.write("p.yaml", &with_benchmarks(more));
        let message = place.fails(&["evaluate", "--original", "p.yaml"]);
        assert!(message.contains(expected), "{more}: {message}");
    }
}
