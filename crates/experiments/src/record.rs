//! Records of runs: configuration, figures and artifacts of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use waterfill_config::{Config, renamed};
use waterfill_pipeline::{
    Context, PipelineError, RunArtifacts, RunOutput, TensorSummary, Until, read_json, write_json,
};

use crate::error::{ExperimentError, Result};

const VERSION: u32 = 1;
/// Folder of a model's records.
const FOLDER: &str = "runs";

/// The record of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Name by which commands take it: the model's, and a digest of the configuration.
    pub id: String,
    /// End of its last run, RFC 3339.
    pub date: String,
    /// Version and commit of the program.
    pub program: String,
    /// The sweep it was part of.
    pub sweep: Option<String>,
    /// Its settings in words, in a sweep.
    pub label: Option<String>,
    /// Words of the configuration to find it by.
    pub tags: Vec<String>,
    /// The last stage that it ran; the last of all in records from before that was kept.
    #[serde(default = "last")]
    pub until: Until,
    /// The whole configuration.
    pub config: Value,
    /// The device.
    pub device: String,
    /// Digest of the model's files.
    pub model: String,
    /// The object that it printed with `--json`.
    pub output: RunOutput,
    /// Coded tensors of every point as allocated.
    pub tensors: Vec<Vec<TensorSummary>>,
    /// Artifacts that it used, as folders in the store.
    pub artifacts: BTreeSet<PathBuf>,
}

fn last() -> Until {
    Until::Report
}

/// The place of a run in a sweep; empty outside of one.
#[derive(Debug, Clone, Default)]
pub struct SweepSlot {
    /// The sweep's name.
    pub sweep: Option<String>,
    /// The run's label.
    pub label: Option<String>,
}

impl Record {
    /// Keeps the results of a run; the record of one that went further stays.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub(crate) fn keep(context: &Context, slot: &SweepSlot, until: Until, run: &RunArtifacts) -> Result<()> {
        let config = serde_json::to_value(context.config).expect("configurations are plain data");
        let id = Self::id_of(context.config, slot);
        let root = context.store.root();
        let path = Self::path_of(root, context.config, slot);
        let dir = root.join(&context.config.name).join(FOLDER);
        let further = |old: Self| old.until > until && old.model == context.model_digest();
        if read_json(&path).is_ok_and(further) {
            return Ok(());
        }
        let inside = |dir: &PathBuf| dir.strip_prefix(root).ok().map(PathBuf::from);
        let mut artifacts: BTreeSet<PathBuf> = run.used.iter().filter_map(inside).collect();
        // A generated model is an artifact too.
        artifacts.extend(inside(&context.source.dir).map(|dir| dir.components().take(3).collect::<PathBuf>()));
        let record = Self {
            version: VERSION,
            date: now(),
            program: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("WATERFILL_COMMIT")),
            sweep: slot.sweep.clone(),
            label: slot.label.clone(),
            tags: context.config.tags.clone(),
            until,
            config,
            device: context.device_kind.clone(),
            model: context.model_digest().into(),
            output: run.output.clone(),
            tensors: run.points.iter().map(|point| point.summary.tensors.clone()).collect(),
            artifacts,
            id,
        };
        std::fs::create_dir_all(&dir).map_err(ExperimentError::io(&dir))?;
        // Whole or not at all.
        let part = dir.join(format!(".{}.part", record.id));
        write_json(&part, &record)?;
        std::fs::rename(&part, &path).map_err(ExperimentError::io(&path))
    }

    /// The record as `runs --json` prints it, with the names of schema 1 too.
    ///
    /// # Panics
    /// Never: a record is plain data.
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("plain data");
        value["output"] = self.output.to_json();
        value
    }

    /// The same configuration in the same place is the same run.
    fn id_of(config: &Config, slot: &SweepSlot) -> String {
        let key = blake3::hash(serde_json::json!([config, slot.sweep, slot.label]).to_string().as_bytes());
        format!("{}-{}", config.name, &key.to_hex()[..8])
    }

    fn path_of(store: &Path, config: &Config, slot: &SweepSlot) -> PathBuf {
        store.join(&config.name).join(FOLDER).join(format!("{}.json", Self::id_of(config, slot)))
    }

    /// The record of a configuration's run, if it ended well once.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub(crate) fn of(store: &Path, config: &Config, slot: &SweepSlot) -> Result<Option<Self>> {
        let path = Self::path_of(store, config, slot);
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    fn read(path: &Path) -> Result<Self> {
        let failed = |reason: String| ExperimentError::Record { path: path.into(), reason };
        let mut record: Self = read_json(path).map_err(|e| match e {
            PipelineError::Json { source, .. } => failed(source.to_string()),
            other => other.into(),
        })?;
        // Records of the last version have its names of keys.
        renamed::rename(&mut record.config, path)?;
        match record.version {
            VERSION => Ok(record),
            version => Err(failed(format!("version {version}, this build reads {VERSION}"))),
        }
    }

    /// All records of a store with their files, by date.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn all(store: &Path) -> Result<Vec<(PathBuf, Self)>> {
        let folders = |dir: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.path()).collect()
        };
        let mut all = Vec::new();
        for model in folders(store) {
            for path in folders(&model.join(FOLDER)) {
                if path.extension().is_some_and(|e| e == "json") {
                    let record = Self::read(&path)?;
                    all.push((path, record));
                }
            }
        }
        all.sort_by(|a, b| (&a.1.date, &a.1.id).cmp(&(&b.1.date, &b.1.id)));
        Ok(all)
    }

    /// The record with this id, or the only one whose id begins so.
    ///
    /// # Errors
    /// None or several.
    pub fn find(store: &Path, id: &str) -> Result<(PathBuf, Self)> {
        let failed = |reason: String| ExperimentError::NoRun { store: store.into(), reason };
        let mut all = Self::all(store)?;
        if let Some(n) = all.iter().position(|(_, r)| r.id == id) {
            return Ok(all.swap_remove(n));
        }
        let fits = |r: &Self| r.id.starts_with(id) || r.id.ends_with(id) || r.label.as_deref() == Some(id);
        let mut found: Vec<_> = all.into_iter().filter(|(_, r)| fits(r)).collect();
        match found.len() {
            1 => Ok(found.swap_remove(0)),
            0 => Err(failed(format!("no run {id:?}; `waterfill runs` lists them"))),
            _ => {
                let ids: Vec<&str> = found.iter().map(|(_, r)| r.id.as_str()).collect();
                Err(failed(format!("{id:?} could be {}", ids.join(", "))))
            }
        }
    }
}

/// The time now in whole seconds, RFC 3339.
fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string()
}

/// Name of a run in figures.
pub(crate) fn label(r: &Record) -> String {
    r.label.clone().unwrap_or_else(|| r.id.clone())
}

/// Name of a run among runs of the same model.
pub(crate) fn short(r: &Record) -> String {
    let label = label(r);
    label.strip_prefix(&format!("{}: ", r.output.model)).map(String::from).unwrap_or(label)
}

/// Runs by the name of their pipeline.
pub(crate) fn by_model(records: &[Record]) -> BTreeMap<&str, Vec<&Record>> {
    let mut models: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for r in records {
        models.entry(&r.output.model).or_default().push(r);
    }
    models
}
