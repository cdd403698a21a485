//! Models by their hub id, from a hub on this machine.

mod common;
#[path = "../../hub/tests/common/mod.rs"]
mod hub;

use std::collections::BTreeMap;
use std::process::{Command, Output};

use common::{Place, pipeline};
use hub::{COMMIT, ID, Server};

/// Files of a small random model.
fn model() -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = waterfill_fixture::small_config_of("llama3-8b").unwrap();
    config["torch_dtype"] = "bfloat16".into();
    waterfill_fixture::write_random(dir.path(), &config, 1).unwrap();
    let read = |name: &str| (name.to_string(), std::fs::read(dir.path().join(name)).unwrap());
    ["config.json", "tokenizer.json", "model.safetensors"].map(read).into()
}

struct Run<'a> {
    place: &'a Place,
    endpoint: String,
    offline: bool,
}

impl Run<'_> {
    fn output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waterfill"));
        command.args(arguments).current_dir(self.place.path(""));
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.place.path("hf")).env("HF_ENDPOINT", &self.endpoint);
        command.env("HF_HUB_OFFLINE", if self.offline { "1" } else { "0" }).output().unwrap()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn a_hub_id_is_a_model_and_its_commit_part_of_the_key() {
    let (server, place) = (Server::start(model()), Place::new());
    place.write("text.txt", &"Ada sees the red fox . Bram likes the blue boat . ".repeat(80));
    let yaml = pipeline("lambdas: [1e-6]").replace("fixture:7", &format!("hf:{ID}"));
    let yaml = yaml.replace("text: fixture", "text: text.txt");
    place.write("p.yaml", &yaml.replace(", multiple_choice: {path: fixture, questions: 24, shots: 1}", ""));
    let mut run = Run { place: &place, endpoint: server.endpoint.clone(), offline: false };
    let output = run.output(&["--json", "encode", "p.yaml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let calibration = result["artifacts"]["calibrate"].as_str().unwrap();
    let manifest = std::fs::read_to_string(place.path(calibration).join("manifest.json")).unwrap();
    assert!(manifest.contains(&format!("\"commit\": \"{COMMIT}\"")), "{manifest}");
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(messages.contains(&format!("hf:{ID} is at commit {COMMIT}")), "{messages}");

    // Finished stages and the cached model do without the hub.
    run.offline = true;
    run.endpoint = "http://127.0.0.1:1".into();
    let again = run.output(&["--json", "encode", "p.yaml"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&again.stdout).unwrap(), result);
}

#[test]
fn what_the_hub_refuses_is_said_in_one_message() {
    let (server, place) = (Server::start(model()), Place::new());
    place.write("p.yaml", &pipeline("lambdas: [1e-6]"));
    let mut run = Run { place: &place, endpoint: server.endpoint.clone(), offline: false };
    let expect = |run: &Run, model: &str, words: &[&str]| {
        let message = run.fails(&["calibrate", "p.yaml", "--model", model]);
        let last = message.lines().last().unwrap();
        for word in words {
            assert!(last.contains(word), "expected {word:?} in: {message}");
        }
    };
    expect(&run, "hf:someone/typo", &["hf:someone/typo", "check the spelling"]);
    expect(&run, &format!("hf:{ID}@gone"), &["no revision gone"]);
    expect(&run, "hf:a/b/c", &["a/b/c", "expected OWNER/NAME"]);
    server.trouble.lock().unwrap().token = Some("secret".into());
    expect(&run, &format!("hf:{ID}"), &["gated", "accept its licence", "HF_TOKEN"]);
    run.endpoint = "http://127.0.0.1:1".into();
    expect(&run, &format!("hf:{ID}"), &["cannot be reached", "127.0.0.1:1"]);
    run.offline = true;
    expect(&run, &format!("hf:{ID}"), &["HF_HUB_OFFLINE is set"]);
}

/// Questions and a text from datasets of the hub, the one a table and the other compressed lines.
#[test]
fn data_come_from_the_hub() {
    let gzip = |text: &str| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, text.as_bytes()).unwrap();
        gzip.finish().unwrap()
    };
    let rows: String = (0..40).map(|i| format!("{{\"text\": \"Ada sees the red fox {i} .\"}}\n")).collect();
    let question = "{\"goal\": \"the red fox\", \"sol1\": \"sees the boat\", \"sol2\": \"is\", \"label\": 1}\n";
    let files = BTreeMap::from([
        ("en/test-00000-of-00001.json.gz".to_string(), gzip(&rows)),
        ("validation.jsonl".to_string(), question.repeat(3).into_bytes()),
    ]);
    let (server, place) = (Server::start(files), Place::new());
    let data = |text: &str, path: &str| {
        let choices = format!("multiple_choice: {{task: piqa, path: \"{path}\", questions: 9}}");
        let yaml =
            pipeline("lambdas: [1e-6]").replace("multiple_choice: {path: fixture, questions: 24, shots: 1}", &choices);
        let (before, after) = yaml.split_once("evaluate:").unwrap();
        format!(
            "{before}evaluate:{}",
            after.replace("text: fixture", &format!("text: \"{text}\", join: \" \", documents: 30"))
        )
    };
    let run = Run { place: &place, endpoint: server.endpoint.clone(), offline: false };
    let (text, questions) = (format!("hf:{ID}:en/test-*.json.gz"), format!("hf:{ID}:validation.jsonl"));
    place.write("p.yaml", &data(&text, &questions));
    let output = run.output(&["--json", "evaluate", "--original", "p.yaml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["benchmarks"][0]["all"]["questions"], 3);
    // The same text in a file gives the same figures.
    place.write("text.txt", &(0..30).map(|i| format!("Ada sees the red fox {i} .")).collect::<Vec<_>>().join(" "));
    place.write("p.yaml", &data("text.txt", &questions));
    let local = run.output(&["--json", "evaluate", "--original", "p.yaml"]);
    let local: serde_json::Value = serde_json::from_slice(&local.stdout).unwrap();
    assert_eq!(local["nll"], result["nll"]);
    for (text, path, expected) in [
        (&text, &format!("hf:{ID}"), "the dataset has no plain_text/validation-*.parquet or"),
        (&text, &"hf:someone/else".to_string(), "no dataset of that name"),
        (&format!("hf:{ID}"), &questions, "names no files"),
        (&format!("hf:{ID}:de/*"), &questions, "the dataset has no de/*"),
    ] {
        place.write("p.yaml", &data(text, path));
        let message = run.fails(&["evaluate", "--original", "p.yaml"]);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}
