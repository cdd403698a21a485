//! Artifacts that no run needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use waterfill_store::is_locked;

use crate::error::{ExperimentError, Result};
use crate::record::Record;

/// Stages whose artifacts users asked for, whether or not a run needs them.
const KEPT: [&str; 5] = ["gguf", "packed", "delta", "train", "tokenizer"];

/// Artifacts and records to remove.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Garbage {
    /// Folders of artifacts, finished or not.
    pub artifacts: Vec<PathBuf>,
    /// Bytes of all.
    pub bytes: u64,
    /// Artifacts and bytes by stage.
    pub stages: BTreeMap<String, (usize, u64)>,
    /// Records of runs to be forgotten.
    pub records: Vec<PathBuf>,
    /// Runs that stay.
    pub kept: usize,
}

/// Artifacts that no run needs but those to be forgotten. Only folders that are artifacts of the store count:
/// `MODEL/STAGE/KEY` with a manifest, or the beginnings of one.
///
/// # Errors
/// Runs that are not there, records that cannot be read, and a store in which a run is at work.
pub fn collect(store: &Path, forget: &[String]) -> Result<Garbage> {
    let forgotten = forget.iter().map(|id| Ok(Record::find(store, id)?.0)).collect::<Result<BTreeSet<PathBuf>>>()?;
    let records = Record::all(store)?;
    let kept = || records.iter().filter(|(path, _)| !forgotten.contains(path));
    let needed: BTreeSet<PathBuf> = kept().flat_map(|(_, r)| r.artifacts.iter().map(|a| store.join(a))).collect();
    let mut garbage = Garbage { kept: kept().count(), ..Garbage::default() };
    for model in folders(store)? {
        for stage in folders(&model)? {
            let name = stage.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for dir in folders(&stage)? {
                let own = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let key = own.strip_prefix(".unfinished-");
                if is_locked(&stage.join(format!(".lock-{}", key.unwrap_or(&own)))) {
                    return Err(ExperimentError::Busy { path: stage, key: own });
                }
                let is_artifact = key.is_some() || dir.join("manifest.json").is_file();
                if !is_artifact || needed.contains(&dir) || KEPT.contains(&name.as_str()) {
                    continue;
                }
                let bytes = size(&dir)?;
                garbage.bytes += bytes;
                let entry = garbage.stages.entry(name.clone()).or_default();
                *entry = (entry.0 + 1, entry.1 + bytes);
                garbage.artifacts.push(dir);
            }
        }
    }
    garbage.records = forgotten.into_iter().collect();
    Ok(garbage)
}

impl Garbage {
    /// Removes it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn remove(&self) -> Result<()> {
        // Records first: one without its artifacts would be a run that cannot be looked at.
        self.records.iter().try_for_each(|path| std::fs::remove_file(path).map_err(ExperimentError::io(path)))?;
        self.artifacts.iter().try_for_each(|dir| std::fs::remove_dir_all(dir).map_err(ExperimentError::io(dir)))
    }
}

/// Folders in a folder, sorted; links are not followed.
fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(ExperimentError::io(dir))? {
        let entry = entry.map_err(ExperimentError::io(dir))?;
        if entry.file_type().map_err(ExperimentError::io(dir))?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).map_err(ExperimentError::io(dir))?.flatten() {
        let info = entry.metadata().map_err(ExperimentError::io(entry.path()))?;
        bytes += if info.is_dir() { size(&entry.path())? } else { info.len() };
    }
    Ok(bytes)
}
