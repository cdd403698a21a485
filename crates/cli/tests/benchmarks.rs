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
        assert!(benchmarks[1]["by_length"]["accuracy"].is_number() && benchmarks[2]["by_length"].is_null(), "{what}");
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
    ] {
        place.write("p.yaml", &with_benchmarks(more));
        let message = place.fails(&["evaluate", "--original", "p.yaml"]);
        assert!(message.contains(expected), "{more}: {message}");
    }
}
