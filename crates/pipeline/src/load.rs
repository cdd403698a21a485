//! Reading YAML: includes, unknown keys, limits.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::Config;
use crate::error::{PipelineError, Result};
use crate::limits::problems;
use crate::sweep::{SweepSection, load_sweep};
use crate::training::load_train;

/// Deepest chain of includes.
const MAX_DEPTH: usize = 8;

/// JSON schema of the configuration.
pub fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    let include = serde_json::json!({
        "description": "YAML files (relative to this one) whose values hold where this file gives none.",
        "type": "array", "items": {"type": "string"},
    });
    schema["properties"]["include"] = include;
    let mut sweep = schemars::schema_for!(SweepSection).to_value();
    sweep["description"] = "Runs of `waterfill sweep`; other commands refuse a file with this section.".into();
    schema["properties"]["sweep"] = sweep;
    schema
}

/// Checks the keys of a `sweep` section.
pub(crate) fn check_section(section: &Value) -> std::result::Result<(), String> {
    let schema = schemars::schema_for!(SweepSection).to_value();
    check_keys(section, &schema, &schema, "sweep")
}

/// Reads a configuration and checks everything that needs no model.
///
/// # Errors
/// Files that cannot be read, unknown keys, wrong types, values outside their limits.
pub fn load(path: &Path) -> Result<Config> {
    let value = merged(path)?;
    if value.get("sweep").is_some() {
        let reason = "has a sweep section: `waterfill sweep` runs it".into();
        return Err(PipelineError::Config { path: path.to_path_buf(), reason });
    }
    config_of(value, path)
}

/// A configuration from merged values; `path` is for messages.
pub(crate) fn config_of(value: Value, path: &Path) -> Result<Config> {
    let failed = |reason: String| PipelineError::Config { path: path.to_path_buf(), reason };
    let config: Config = checked(value, &json_schema(), path)?;
    match problems(&config).as_slice() {
        [] => Ok(config),
        some => Err(failed(some.join("; "))),
    }
}

/// Values as a `T` whose schema is `schema`; unknown keys are named with the nearest known one.
pub(crate) fn checked<T: DeserializeOwned>(value: Value, schema: &Value, path: &Path) -> Result<T> {
    let failed = |reason: String| PipelineError::Config { path: path.to_path_buf(), reason };
    check_keys(&value, schema, schema, "").map_err(failed)?;
    serde_json::from_value(value).map_err(|e| failed(e.to_string()))
}

/// Checks a file of any kind (pipeline, sweep or training), and that every local file it names is
/// there; returns what it is.
///
/// # Errors
/// As [`load`], and files that are missing.
pub fn validate(path: &Path) -> Result<String> {
    let value = merged(path)?;
    if value.get("train").is_some() {
        let config = load_train(path)?;
        let files = config.from.iter().map(|dir| ("from", dir.as_str())).collect();
        exist(files, path)?;
        return Ok(format!("training of {}", config.out));
    }
    let sweep = load_sweep(path)?;
    for run in &sweep.runs {
        exist(named_files(&run.config), path)?;
    }
    match sweep.runs.as_slice() {
        [one] if value.get("sweep").is_none() => Ok(format!("pipeline {}", one.config.name)),
        runs => Ok(format!("sweep of {} runs", runs.len())),
    }
}

/// Local files that a configuration names, by key.
fn named_files(config: &Config) -> Vec<(&str, &str)> {
    let (c, e) = (&config.calibrate, &config.evaluate);
    let mut files = vec![("calibrate.text", c.text.as_str())];
    files.extend(e.text.as_deref().map(|t| ("evaluate.text", t)));
    files.extend(e.tokens.as_deref().map(|t| ("evaluate.tokens", t)));
    files.extend(e.multiple_choice.as_ref().map(|m| ("evaluate.multiple_choice.path", m.path.as_str())));
    files.extend(e.benchmarks.iter().map(|m| ("evaluate.benchmarks.path", m.path.as_str())));
    files.extend(e.choices().filter_map(|m| Some(("evaluate.benchmarks.examples", m.examples.as_deref()?))));
    files.extend(config.model.strip_prefix("path:").map(|d| ("model", d)));
    files
}

fn exist(files: Vec<(&str, &str)>, path: &Path) -> Result<()> {
    for (key, file) in files {
        if file != "fixture" && !file.starts_with("hf:") && !Path::new(file).exists() {
            let reason =
                format!("{key} is {file:?}, which does not exist (paths are relative to the working directory)");
            return Err(PipelineError::Config { path: path.to_path_buf(), reason });
        }
    }
    Ok(())
}

/// A file's values over those of its includes.
pub(crate) fn merged(path: &Path) -> Result<Value> {
    merged_at(path, 0)
}

fn merged_at(path: &Path, depth: usize) -> Result<Value> {
    let failed = |reason: String| PipelineError::Config { path: path.to_path_buf(), reason };
    if depth > MAX_DEPTH {
        return Err(failed(format!("includes nest deeper than {MAX_DEPTH}; does a file include itself?")));
    }
    let text = std::fs::read_to_string(path).map_err(|source| PipelineError::Io { path: path.into(), source })?;
    let mut value: Value = serde_yaml::from_str(&text).map_err(|e| failed(e.to_string()))?;
    let Some(map) = value.as_object_mut() else {
        return Err(failed("expected keys and values at the top".into()));
    };
    let mut result = Value::Object(Default::default());
    if let Some(includes) = map.remove("include") {
        let includes: Vec<String> =
            serde_json::from_value(includes).map_err(|_| failed("include: expected a list of files".into()))?;
        for include in includes {
            let file = path.parent().unwrap_or(Path::new(".")).join(include);
            merge(&mut result, merged_at(&file, depth + 1)?);
        }
    }
    merge(&mut result, value);
    Ok(result)
}

/// Values of `over` replace those of `base`; maps merge key by key.
pub(crate) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Compares keys with the schema, so that a typo is named with the key that was likely meant.
fn check_keys(value: &Value, schema: &Value, root: &Value, at: &str) -> std::result::Result<(), String> {
    let schema = resolve(schema, root);
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let Some(properties) = properties else { return Ok(()) };
            for (key, value) in map {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                match properties.get(key) {
                    Some(schema) => check_keys(value, schema, root, &path)?,
                    None => return Err(unknown_key(&path, key, properties.keys())),
                }
            }
            Ok(())
        }
        Value::Array(items) => match schema.get("items") {
            Some(schema) => {
                items.iter().enumerate().try_for_each(|(i, v)| check_keys(v, schema, root, &format!("{at}[{i}]")))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn unknown_key<'a>(path: &str, key: &str, known: impl Iterator<Item = &'a String>) -> String {
    let mut known: Vec<&String> = known.collect();
    known.sort_by(|a, b| strsim::jaro_winkler(key, b).total_cmp(&strsim::jaro_winkler(key, a)));
    match known.first() {
        Some(nearest) => format!("unknown key {path}; did you mean {nearest}?"),
        None => format!("unknown key {path}"),
    }
}

/// Follows `$ref` and the non-null branch of an optional value.
fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        return root.pointer(name.trim_start_matches('#')).map_or(schema, |s| resolve(s, root));
    }
    let branches = schema.get("anyOf").and_then(Value::as_array);
    let value = branches.and_then(|b| b.iter().find(|s| s.get("type") != Some(&Value::from("null"))));
    value.map_or(schema, |s| resolve(s, root))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name: a\nmodel: fixture:1\ncalibrate: {text: fixture}\nallocate: {lambdas: [1e-8]}\nevaluate: {text: fixture}\n";

    fn load_text(text: &str) -> std::result::Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|e| e.to_string())
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
    fn includes_merge_and_do_not_loop() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("base.yaml", GOOD);
        write("top.yaml", "include: [base.yaml]\ncalibrate: {sequences: 7}\n");
        let config = load(&dir.path().join("top.yaml")).unwrap();
        assert_eq!((config.calibrate.sequences, config.calibrate.text.as_str()), (7, "fixture"));
        write("loop.yaml", "include: [loop.yaml]\n");
        assert!(load(&dir.path().join("loop.yaml")).unwrap_err().to_string().contains("include itself"));
    }
}
