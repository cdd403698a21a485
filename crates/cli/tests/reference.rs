//! Real checkpoints against reference figures, where they are at hand beside the project.

mod common;

use std::path::Path;

use common::Place;

#[test]
fn evaluation_equals_the_reference_figures() {
    let shared = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let Ok(text) = std::fs::read_to_string(shared.join("bench/base.json")) else {
        eprintln!("skipped: no reference figures beside the project");
        return;
    };
    let references: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shared = shared.canonicalize().unwrap();
    let shared = shared.to_str().unwrap();
    for (name, reference) in references.as_object().unwrap() {
        let model = name.split(' ').next().unwrap();
        let (tokens, sequences) = (reference["tokens"].as_str().unwrap(), &reference["sequences"]);
        let place = Place::new();
        // The dearest bit: one tiny file, so that the base is all the work.
        let yaml = format!(
            "name: m\nmodel: path:{shared}/models/{model}\n\
             calibrate: {{text: {shared}/data/books-calibration.txt, context: 64, sequences: 4}}\n\
             allocate: {{lambdas: [1e-7]}}\n\
             evaluate: {{tokens: {shared}/bench/{tokens}, context: {}, sequences: {sequences}}}\n",
            reference["context"]
        );
        place.write("p.yaml", &yaml);
        let output = place.json(&["evaluate", "p.yaml"]);
        let want = reference["nll"].as_f64().unwrap();
        let close = |what: &str, got: &serde_json::Value| {
            let got = got.as_f64().unwrap();
            assert!((got - want).abs() < 1e-3, "{name}, {what}: {got} nats per token, reference {want}");
        };
        close("tokens", &output["base"]["nll"]);
        // The text itself, as its tokens were made from it.
        let text = format!("{shared}/data/{}", name.rsplit(' ').next().unwrap());
        place.write(
            "t.yaml",
            &yaml.replace(&format!("tokens: {shared}/bench/{tokens}"), &format!("bos: none, text: {text}")),
        );
        close("text", &place.json(&["evaluate", "--original", "t.yaml"])["nll"]);
    }
}
