//! The committed JSON schemas are what the code says, and the committed files obey them.

mod common;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn the_committed_schemas_equal_the_code() {
    let place = common::Place::new();
    for (file, arguments) in [("schema.json", &["schema"][..]), ("train-schema.json", &["schema", "--train"])] {
        let committed = std::fs::read_to_string(format!("{ROOT}/configs/{file}")).unwrap_or_default();
        let current = place.ok(arguments);
        assert!(current == committed, "run: waterfill {} > configs/{file}", arguments.join(" "));
    }
}

#[test]
fn the_committed_files_are_valid() {
    let place = common::Place::new();
    for (folder, least) in [("configs", 7), ("experiments", 2)] {
        let mut count = 0;
        for entry in std::fs::read_dir(format!("{ROOT}/{folder}")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "yaml") {
                // Parsed and checked as far as no file is needed: the shared models may be absent.
                let output = place.run(&["validate", path.to_str().unwrap()]);
                let message = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success() || message.contains("does not exist"), "{message}");
                count += 1;
            }
        }
        assert!(count >= least, "{folder}: {count}");
    }
}
