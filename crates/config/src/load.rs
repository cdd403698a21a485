//! Pipelines from files.

use std::path::Path;

use serde_json::Value;

use crate::Note;
use crate::config::Config;
use crate::error::{ConfigError, Result};
use crate::keys::checked;
use crate::limits::problems;
use crate::merge::merged;

/// Reads the configuration of a pipeline and checks everything that needs no model. `note` receives old names.
///
/// # Errors
/// Files that cannot be read, unknown keys, wrong types, values outside their limits, files with a `sweep` section.
pub fn load(path: &Path, note: Note) -> Result<Config> {
    let value = merged(path, note)?;
    match value.get("sweep") {
        Some(_) => Err(ConfigError::IsSweep { path: path.into() }),
        None => config_of(value, path),
    }
}

/// A configuration from merged values; `path` is for messages.
pub(crate) fn config_of(value: Value, path: &Path) -> Result<Config> {
    let config: Config = checked(value, &schemars::schema_for!(Config).to_value(), "", path)?;
    match problems(&config) {
        found if found.is_empty() => Ok(config),
        problems => Err(ConfigError::Limits { path: path.into(), problems }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name: a\nmodel: fixture:1\ncalibrate: {text: fixture}\nallocate: {lambdas: [1e-8]}\nevaluate: {text: fixture}\n";

    fn load_text(text: &str) -> std::result::Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        load(&path, &|_| {}).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_filled_in() {
        let config = load_text(GOOD).unwrap();
        assert_eq!((config.store.as_str(), config.calibrate.context), ("results", 256));
    }

    #[test]
    fn typos_are_named_with_the_nearest_key() {
        let message = load_text(&GOOD.replace("lambdas", "lambda")).unwrap_err();
        assert!(message.contains("unknown key allocate.lambda; did you mean lambdas?"), "{message}");
        let message =
            load_text(&GOOD.replace("text: fixture}\nallocate", "text: fixture, contxt: 3}\nallocate")).unwrap_err();
        assert!(message.contains("calibrate.contxt; did you mean context?"), "{message}");
    }

    #[test]
    fn values_outside_their_limits_are_named_with_them() {
        let message = load_text(&GOOD.replace("1e-8", "5000")).unwrap_err();
        assert!(message.contains("allocate.lambdas[0] is 5000") && message.contains("1000"), "{message}");
        let message = load_text(&GOOD.replace("lambdas: [1e-8]", "lambdas: []")).unwrap_err();
        assert!(message.contains("at least one entry"), "{message}");
        let message =
            load_text(&GOOD.replace("evaluate: {text: fixture", "evaluate: {text: fixture, part: [0.8, 0.5]"))
                .unwrap_err();
        assert!(message.contains("evaluate.part[1] is 0.5, expected 0.8 to 1"), "{message}");
        assert!(load_text(&GOOD.replace("fixture:1", "somewhere")).unwrap_err().contains("path:DIR"));
    }

    #[test]
    fn wrong_types_numbers_and_doubles_name_the_key() {
        let message = load_text(&GOOD.replace("name: a", "name: a\ntags: x")).unwrap_err();
        assert!(message.contains("tags: invalid type: string \"x\""), "{message}");
        let message = load_text(&GOOD.replace("1e-8]", "1e-8], margin: .nan")).unwrap_err();
        assert!(message.contains("allocate.margin is .nan, expected a finite number"), "{message}");
        let message = load_text(&GOOD.replace("1e-8]", "1e-8], margin: 1, margin: 2")).unwrap_err();
        assert!(message.contains("margin"), "{message}");
        let message = load_text(&GOOD.replace("1e-8]", "1e-8], shard_rul: mean")).unwrap_err();
        assert!(message.contains("did you mean fold_rule?"), "{message}");
    }

    #[test]
    fn old_names_are_read_with_one_note_that_names_the_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.yaml");
        std::fs::write(&path, GOOD.replace("calibrate: {", "calibrate: {shards: 3, second_moment: diagonal, "))
            .unwrap();
        let notes = std::cell::RefCell::new(Vec::new());
        let config = load(&path, &|note| notes.borrow_mut().push(note.to_string())).unwrap();
        assert_eq!((config.calibrate.folds, config.calibrate.hessian), (3, waterfill_calibrate::HessianKind::Diagonal));
        let notes = notes.into_inner();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("calibrate.shards is now calibrate.folds"), "{notes:?}");
    }

    #[test]
    fn includes_merge_and_do_not_loop() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("base.yaml", GOOD);
        write("top.yaml", "include: [base.yaml]\ncalibrate: {sequences: 7}\n");
        let config = load(&dir.path().join("top.yaml"), &|_| {}).unwrap();
        assert_eq!((config.calibrate.sequences, config.calibrate.text[0].text.as_str()), (7, "fixture"));
        write("loop.yaml", "include: [loop.yaml]\n");
        assert!(load(&dir.path().join("loop.yaml"), &|_| {}).unwrap_err().to_string().contains("include itself"));
    }
}
