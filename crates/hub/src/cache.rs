//! The cache on disk: where a checkpoint's and a dataset's files lie, and whether they are complete.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};
use waterfill_store::Progress;

use crate::error::{HubError, Result};
use crate::id::{HubId, Kind};

/// Index of sharded weights.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Files without which a checkpoint is of no use.
pub(crate) const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// A checkpoint or a dataset in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Directory with its files.
    pub dir: PathBuf,
    /// Commit that the files are of.
    pub commit: String,
}

/// A complete copy is better than none where the hub cannot be reached; the commit tells which one it is.
pub(crate) fn or_cached(
    downloaded: Result<Snapshot>,
    cached: impl FnOnce() -> Result<Snapshot>,
    progress: &dyn Progress,
) -> Result<Snapshot> {
    match downloaded {
        Err(error @ HubError::Unreachable { .. }) => match cached() {
            Ok(snapshot) => {
                progress.note(&format!("{error}; going on with the cached commit {}", snapshot.commit));
                Ok(snapshot)
            }
            Err(_) => Err(error),
        },
        other => other,
    }
}

pub(crate) fn repo_type(id: &HubId) -> RepoType {
    match id.kind() {
        Kind::Model => RepoType::Model,
        Kind::Dataset => RepoType::Dataset,
    }
}

/// Directory and commit that the revision of an id has in the cache.
pub(crate) fn cached_dir(id: &HubId, cache: &Cache) -> Result<Snapshot> {
    let revision = id.revision();
    let folder = cache.path().join(Repo::new(id.name().into(), repo_type(id)).folder_name());
    let commit = match std::fs::read_to_string(folder.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_string(),
        Err(_) => revision.to_string(),
    };
    let dir = folder.join("snapshots").join(&commit);
    match dir.is_dir() {
        true => Ok(Snapshot { dir, commit }),
        false => Err(not_cached(id, cache, format!("revision {revision} is not there"))),
    }
}

pub(crate) fn not_cached(id: &HubId, cache: &Cache, reason: String) -> HubError {
    HubError::NotCached { id: id.clone(), cache: cache.path().clone(), reason }
}

/// A complete checkpoint in the cache.
pub(crate) fn cached(id: &HubId, cache: &Cache) -> Result<Snapshot> {
    let missing = |reason| not_cached(id, cache, reason);
    let Snapshot { dir, commit } = cached_dir(id, cache)?;
    let absent = |name: &str| !dir.join(name).exists();
    if let Some(name) = NEEDED.into_iter().find(|n| absent(n)) {
        return Err(missing(format!("{name} is not there")));
    }
    for name in weights_of(id, &dir)? {
        if absent(&name) {
            return Err(missing(format!("{name} is not there")));
        }
    }
    Ok(Snapshot { dir, commit })
}

/// Names of the files with weights, of a directory with an index or without.
pub(crate) fn weights_of(id: &HubId, dir: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let path = dir.join(INDEX);
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(vec![SINGLE.into()]);
    };
    let wrong = |reason: String| HubError::Malformed { id: id.clone(), file: INDEX.into(), reason };
    let index: Index = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|n| n.contains('/') || n.contains('\\') || n.contains("..")) {
        Some(name) => Err(wrong(format!("names shard {name:?}, which leaves the directory"))),
        None => Ok(names),
    }
}
