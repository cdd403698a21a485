//! The `sweep` section of a file, and the runs that it stands for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Note;
use crate::claims::Claim;
use crate::config::Config;
use crate::error::{ConfigError, Problem, Result, RunError};
use crate::keys::checked;
use crate::load::config_of;
use crate::merge::{merge, merged};

/// Most runs of a sweep.
const MAX_RUNS: usize = 10_000;

/// The `sweep` section of a file.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepSection {
    /// Values by dotted key, such as `allocate.policy: [free, safe]`; every combination is a run.
    #[serde(default)]
    pub grid: BTreeMap<String, Vec<Value>>,
    /// Settings by dotted key; each entry is a run, or a whole grid when there is one. The key `label` names it.
    #[serde(default)]
    pub runs: Vec<BTreeMap<String, Value>>,
    /// Configurations, relative to this file, each of which gets every run; values of this file go before theirs.
    #[serde(default)]
    pub configs: Vec<String>,
    /// File with results of other quantizers on the evaluation's tokens, relative to the working directory.
    #[serde(default)]
    pub peers: Option<String>,
    /// Figures that are checked when all runs have ended.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// Memory that runs at the same time may take together, 10^9 bytes; three quarters of what is free if absent.
    #[serde(default)]
    pub memory_gb: Option<f64>,
    /// Most runs at the same time; one for each core if absent.
    #[serde(default)]
    pub parallel: Option<usize>,
}

/// One run of a sweep.
#[derive(Debug, Clone)]
pub struct SweepRun {
    /// Its settings in words, such as `policy=safe`.
    pub label: String,
    /// Settings by dotted key.
    pub settings: BTreeMap<String, Value>,
    /// The whole configuration.
    pub config: Config,
}

/// A file's runs.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// The file's name without its ending.
    pub name: String,
    /// All runs.
    pub runs: Vec<SweepRun>,
    /// Bytes that runs at the same time may take together; three quarters of what is free if absent.
    pub memory: Option<u64>,
    /// Most runs at the same time.
    pub parallel: usize,
    /// File with results of other quantizers.
    pub peers: Option<PathBuf>,
    /// Figures that are checked when all runs have ended.
    pub claims: Vec<Claim>,
}

/// Reads a file with a `sweep` section, or one without, which is a sweep of one run.
///
/// # Errors
/// As [`crate::load`]; the run is named whose settings are at fault.
pub fn load_sweep(path: &Path, note: Note) -> Result<Sweep> {
    let failed = |problem: Problem| ConfigError::Limits { path: path.into(), problems: vec![problem] };
    let mut value = merged(path, note)?;
    let section = value.as_object_mut().and_then(|m| m.remove("sweep"));
    let is_sweep = section.is_some();
    let section = match section {
        Some(section) => checked(section, &schemars::schema_for!(SweepSection).to_value(), "sweep", path)?,
        None => SweepSection::default(),
    };
    if let Some(gb) = section.memory_gb.filter(|gb| !(0.01..=1e6).contains(gb)) {
        let key = "sweep.memory_gb".into();
        return Err(failed(Problem::OutOfRange { key, value: gb, low: 0.01, high: 1e6 }));
    }
    if let Some(parallel) = section.parallel.filter(|p| !(1..=1024).contains(p)) {
        let key = "sweep.parallel".into();
        return Err(failed(Problem::OutOfRange { key, value: parallel as f64, low: 1.0, high: 1024.0 }));
    }
    if let Some((key, _)) = section.grid.iter().find(|(_, values)| values.is_empty()) {
        return Err(failed(Problem::Unmet(format!("sweep.grid.{key} has no values, expected at least one"))));
    }
    let mut all = if section.runs.is_empty() { vec![BTreeMap::new()] } else { section.runs.clone() };
    for (key, values) in &section.grid {
        if all.len().saturating_mul(values.len()) > MAX_RUNS {
            return Err(ConfigError::TooManyRuns { path: path.into(), most: MAX_RUNS });
        }
        let with = |settings: &BTreeMap<String, Value>, value: &Value| {
            let mut settings = settings.clone();
            settings.insert(key.clone(), value.clone());
            settings
        };
        all = all.iter().flat_map(|s| values.iter().map(move |v| with(s, v))).collect();
    }
    let of_run = |label: &str, source| ConfigError::Run { path: path.into(), label: label.into(), source };
    let mut bases = Vec::new();
    for over in &section.configs {
        let mut base = merged(&path.parent().unwrap_or(Path::new(".")).join(over), note)?;
        merge(&mut base, value.clone());
        bases.push(base);
    }
    let named = bases.len() > 1;
    if bases.is_empty() {
        bases.push(value);
    }
    let mut runs: Vec<SweepRun> = Vec::new();
    for (base, settings) in bases.iter().flat_map(|b| all.iter().map(move |s| (b, s))) {
        let mut settings = settings.clone();
        let own = settings.remove("label");
        let mut label = own.as_ref().and_then(Value::as_str).map_or_else(|| label(&settings), String::from);
        if let Some(name) = base.get("name").and_then(Value::as_str).filter(|_| named) {
            label = format!("{name}: {label}");
        }
        let mut value = base.clone();
        for (key, setting) in &settings {
            set(&mut value, key, setting.clone()).map_err(|e| of_run(&label, e))?;
        }
        let config = config_of(value, path).map_err(|e| match is_sweep {
            true => of_run(&label, RunError::Config(Box::new(e))),
            false => e,
        })?;
        if let Some(twin) = runs.iter().find(|r| r.label == label && r.settings == settings) {
            return Err(ConfigError::Twins { path: path.into(), label: twin.label.clone() });
        }
        runs.push(SweepRun { label, settings, config });
    }
    let labels: Vec<String> = runs.iter().map(|r| r.label.clone()).collect();
    if let Some(problem) = section.claims.iter().find_map(|t| t.problem(&labels)) {
        return Err(failed(Problem::Unmet(format!("sweep.claims: {problem}"))));
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    Ok(Sweep {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        runs,
        memory: section.memory_gb.map(|gb| (gb * 1e9) as u64),
        parallel: section.parallel.unwrap_or(cores),
        peers: section.peers.map(PathBuf::from),
        claims: section.claims,
    })
}

/// `policy=safe, sequences=64`: the last part of every key.
fn label(settings: &BTreeMap<String, Value>) -> String {
    if settings.is_empty() {
        return "base".into();
    }
    let short = |value: &Value| match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let part = |(key, value): (&String, &Value)| format!("{}={}", key.rsplit('.').next().unwrap_or(key), short(value));
    settings.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// Sets a value by dotted key.
fn set(value: &mut Value, key: &str, setting: Value) -> std::result::Result<(), RunError> {
    let mut at = value;
    for part in key.split('.') {
        if at.is_null() {
            *at = Value::Object(Default::default());
        }
        let Some(map) = at.as_object_mut() else {
            return Err(RunError::NoSection { key: key.into(), part: part.into() });
        };
        at = map.entry(part).or_insert(Value::Null);
    }
    *at = setting;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "name: a\nmodel: fixture:1\ncalibrate: {text: fixture}\nallocate: {lambdas: [1e-8]}\nevaluate: {text: fixture}\n";

    fn load_text(sweep: &str) -> std::result::Result<Sweep, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.yaml");
        std::fs::write(&path, format!("{BASE}sweep: {sweep}\n")).unwrap();
        load_sweep(&path, &|_| {}).map_err(|e| e.to_string())
    }

    #[test]
    fn grids_multiply_and_lists_do_not() {
        let sweep = load_text("{grid: {allocate.policy: [free, safe], calibrate.sequences: [4, 8, 16]}}").unwrap();
        assert_eq!(sweep.runs.len(), 6);
        assert_eq!(sweep.runs[5].label, "policy=safe, sequences=16");
        assert_eq!(sweep.runs[5].config.calibrate.sequences, 16);
        let sweep = load_text("{runs: [{model: 'fixture:2'}, {allocate.formats: [int8]}], parallel: 1}").unwrap();
        assert_eq!((sweep.runs.len(), sweep.parallel), (2, 1));
        assert_eq!(sweep.runs[0].config.model, "fixture:2");
        assert_eq!(load_text("{}").unwrap().runs[0].label, "base");
    }

    #[test]
    fn bad_sweeps_name_the_run_and_the_key() {
        let message = load_text("{grid: {allocate.polici: [free]}}").unwrap_err();
        assert!(message.contains("run polici=free") && message.contains("did you mean policy"), "{message}");
        let message = load_text("{grid: {allocate.margin: [0, -1]}}").unwrap_err();
        assert!(message.contains("run margin=-1") && message.contains("allocate.margin is -1"), "{message}");
        assert!(load_text("{gird: {}}").unwrap_err().contains("did you mean grid"));
        assert!(load_text("{grid: {name.x: [1]}}").unwrap_err().contains("no section"));
        assert!(load_text("{grid: {allocate.margin: []}}").unwrap_err().contains("no values"));
        assert!(load_text("{runs: [{allocate.margin: 1}, {allocate.margin: 1}]}").unwrap_err().contains("twice"));
    }
}
