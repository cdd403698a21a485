//! What has been run: a record for every run, of its configuration, figures and artifacts.

mod agreement;
mod collect;
mod differences;
mod figures;
mod list;
mod page;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use agreement::{agreements, write as write_agreements};
pub use collect::{Garbage, collect};
pub(crate) use differences::accuracy_change;
pub use differences::{Differences, differences};
pub(crate) use figures::{by_model, figures, short};
pub use list::{Filter, list};
pub(crate) use page::write_page;
pub(crate) use tables::write_targets;
pub use tables::{export_notebook, write_tables, write_tile_table};

use crate::config::Config;
use crate::error::{PipelineError, Result};
use crate::results::{TensorSummary, read_json, write_json};
use crate::run::RunOutput;
use crate::session::Session;
use crate::stages::Until;

const VERSION: u32 = 1;
/// Folder of a model's records.
const FOLDER: &str = "runs";

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Name by which commands take it: the model's, and a digest of the configuration.
    pub id: String,
    /// When it ended last, RFC 3339.
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
    /// What it printed with `--json`.
    pub output: RunOutput,
    /// Coded tensors of every point as allocated.
    pub tensors: Vec<Vec<TensorSummary>>,
    /// Artifacts that it used, as folders in the store.
    pub artifacts: BTreeSet<PathBuf>,
}

fn last() -> Until {
    Until::Report
}

/// Which run of a sweep it is.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The sweep's name.
    pub sweep: Option<String>,
    /// The run's label.
    pub label: Option<String>,
}

impl Record {
    /// Keeps what a session's run came to; the record of one that went further stays.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub(crate) fn keep(
        session: &Session,
        until: Until,
        output: &RunOutput,
        tensors: Vec<Vec<TensorSummary>>,
    ) -> Result<()> {
        let place = &session.place;
        let config = serde_json::to_value(session.config).expect("configurations are plain data");
        let id = Self::id_of(session.config, place);
        let root = session.store.root();
        let path = Self::path_of(root, session.config, place);
        let dir = root.join(&session.config.name).join(FOLDER);
        let further = |old: Self| old.until > until && old.model == session.model_digest();
        if read_json(&path).is_ok_and(further) {
            return Ok(());
        }
        let inside = |dir: &PathBuf| dir.strip_prefix(root).ok().map(PathBuf::from);
        let mut artifacts: BTreeSet<PathBuf> = session.used().iter().filter_map(inside).collect();
        // A generated model is an artifact too.
        artifacts.extend(inside(&session.source.dir).map(|dir| dir.components().take(3).collect::<PathBuf>()));
        let record = Self {
            version: VERSION,
            date: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            program: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("WATERFILL_COMMIT")),
            sweep: place.sweep.clone(),
            label: place.label.clone(),
            tags: session.config.tags.clone(),
            until,
            config,
            device: session.device.clone(),
            model: session.model_digest().into(),
            output: output.clone(),
            tensors,
            artifacts,
            id,
        };
        std::fs::create_dir_all(&dir).map_err(|source| PipelineError::Io { path: dir.clone(), source })?;
        // Whole or not at all.
        let part = dir.join(format!(".{}.part", record.id));
        write_json(&part, &record)?;
        std::fs::rename(&part, &path).map_err(|source| PipelineError::Io { path, source })
    }

    /// The same configuration in the same place is the same run.
    fn id_of(config: &Config, place: &Place) -> String {
        let key = blake3::hash(serde_json::json!([config, place.sweep, place.label]).to_string().as_bytes());
        format!("{}-{}", config.name, &key.to_hex()[..8])
    }

    fn path_of(store: &Path, config: &Config, place: &Place) -> PathBuf {
        store.join(&config.name).join(FOLDER).join(format!("{}.json", Self::id_of(config, place)))
    }

    /// The record of a configuration's run, if it ended well once.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub(crate) fn of(store: &Path, config: &Config, place: &Place) -> Result<Option<Self>> {
        let path = Self::path_of(store, config, place);
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    fn read(path: &Path) -> Result<Self> {
        let failed = |reason: String| {
            let reason = format!("{reason}; a run again makes a new one, and without this file the run is forgotten");
            PipelineError::Artifact { path: path.into(), reason }
        };
        let record: Self = read_json(path).map_err(|e| match e {
            PipelineError::Artifact { reason, .. } => failed(reason),
            other => other,
        })?;
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
        let failed = |reason: String| PipelineError::Artifact { path: store.into(), reason };
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
