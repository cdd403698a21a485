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
    let answers =
        std::fs::read_to_string(place.path(original["artifact"].as_str().unwrap()).join("questions-piqa-1.json"));
    let answers: serde_json::Value = serde_json::from_str(&answers.unwrap()).unwrap();
    assert_eq!(answers[1]["scores"].as_array().unwrap().len(), 2);
    let text = place.run(&["run", "p.yaml", "--quiet"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for expected in ["original: piqa", "by length", "1.00e-6: winogrande", "change"] {
        assert!(text.contains(expected), "{text}");
    }
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
    let answers =
        std::fs::read_to_string(place.path(output["artifact"].as_str().unwrap()).join("questions-mmlu-0.json"));
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
        (", {task: winogrande, path: piqa.jsonl}", "piqa.jsonl: line 1: missing field `context_options`"),
        (", {task: piqa, path: piqa.jsonl, shots: 3}", "evaluate.benchmarks[2].shots is 3, expected 0 to 0"),
        (", {task: piqa, path: piqa.jsonl, subjects: [art]}", "only mmlu"),
        (", {task: pica, path: piqa.jsonl}", "pica"),
        (", {tusk: piqa, path: piqa.jsonl}", "did you mean task"),
        (", {task: piqa, path: gone.jsonl}", "gone.jsonl"),
        (", {path: fixture, subjects: [coluors]}", "did you mean"),
        (", {task: gsm8k, path: piqa.jsonl, shots: 2}", "give examples"),
        (", {task: gsm8k, path: piqa.jsonl}", "piqa.jsonl: line 1: missing field `question`"),
    ] {
        place.write("p.yaml", &with_benchmarks(more));
        let message = place.fails(&["evaluate", "--original", "p.yaml"]);
        assert!(message.contains(expected), "{more}: {message}");
    }
}
