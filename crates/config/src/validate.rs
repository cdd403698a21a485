//! The check of a file of any kind, with the local files that it names.

use std::path::Path;

use crate::Note;
use crate::config::Config;
use crate::error::{ConfigError, Result};
use crate::merge::merged;
use crate::sweep::load_sweep;
use crate::train::load_train;

/// Checks a pipeline, sweep or training file, and that every local file it names exists; returns a description of the
/// file.
///
/// # Errors
/// As [`crate::load`], and files that are missing.
pub fn validate(path: &Path, note: Note) -> Result<String> {
    let value = merged(path, &|_| {})?;
    if value.get("train").is_some() {
        let config = load_train(path, note)?;
        let files = config.from.iter().map(|dir| ("from", dir.as_str())).collect();
        exist(files, path)?;
        return Ok(format!("training of {}", config.out));
    }
    let sweep = load_sweep(path, note)?;
    for run in &sweep.runs {
        exist(named_files(&run.config), path)?;
    }
    match sweep.runs.as_slice() {
        [one] if value.get("sweep").is_none() => Ok(format!("pipeline {}", one.config.name)),
        runs => Ok(format!("sweep of {} runs", runs.len())),
    }
}

/// Dotted keys of a configuration's files, and the files.
fn named_files(config: &Config) -> Vec<(&str, &str)> {
    let (c, e) = (&config.calibrate, &config.evaluate);
    let mut files: Vec<(&str, &str)> = c.text.iter().map(|t| ("calibrate.text", t.text.as_str())).collect();
    files.extend(e.text.as_deref().map(|t| ("evaluate.text", t)));
    files.extend(e.tokens.as_deref().map(|t| ("evaluate.tokens", t)));
    files.extend(e.multiple_choice.as_ref().map(|m| ("evaluate.multiple_choice.path", m.path.as_str())));
    files.extend(e.benchmarks.iter().map(|m| ("evaluate.benchmarks.path", m.path.as_str())));
    files.extend(e.choices().filter_map(|m| Some(("evaluate.benchmarks.examples", m.examples.as_deref()?))));
    files.extend(config.model.strip_prefix("path:").map(|d| ("model", d)));
    files
}

fn exist(files: Vec<(&str, &str)>, path: &Path) -> Result<()> {
    let missing =
        |(_, file): &(&str, &str)| *file != "fixture" && !file.starts_with("hf:") && !Path::new(file).exists();
    match files.into_iter().find(missing) {
        None => Ok(()),
        Some((key, file)) => Err(ConfigError::MissingFile { path: path.into(), key: key.into(), file: file.into() }),
    }
}
