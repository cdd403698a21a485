//! The committed JSON schema is what the code says.

mod common;

#[test]
fn the_committed_schema_equals_the_code() {
    let place = common::Place::new();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/schema.json");
    let current = place.ok(&["schema"]);
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(current == committed, "run: waterfill schema > configs/schema.json");
}

#[test]
fn the_committed_configurations_are_valid() {
    let configs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");
    let place = common::Place::new();
    let mut count = 0;
    for entry in std::fs::read_dir(configs).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            // Parsed and checked as far as no file is needed: the shared models may be absent.
            let output = place.run(&["validate", path.to_str().unwrap()]);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() || message.contains("does not exist"), "{message}");
            count += 1;
        }
    }
    assert!(count >= 5);
}
