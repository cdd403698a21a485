//! `delta.json`, the list of the files of a fine-tune.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::names::{check_names, is_safetensors};
use crate::error::{AtPath, CheckpointError, FileError, Result};

/// Version that is written; 1 is read too.
pub(super) const VERSION: u32 = 2;
/// Name of the list.
pub(super) const NAME: &str = "delta.json";

/// `delta.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    pub version: u32,
    /// Digests of the base's files that are needed.
    pub base: BTreeMap<String, String>,
    pub files: BTreeMap<String, Entry>,
}

/// A file of the fine-tune.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub kind: FileKind,
    pub bytes: u64,
    pub digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileKind {
    /// The base has the same under the same name.
    Same,
    /// Stored as it is.
    Stored,
    /// A `.wfd`.
    Delta,
}

impl List {
    /// Reads and checks the list of the delta in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        let wrong = |reason| CheckpointError::file(&path, reason);
        let text = std::fs::read(&path).at(&path)?;
        let list: Self = serde_json::from_slice(&text).map_err(|error| wrong(FileError::Json { error }))?;
        if !(1..=VERSION).contains(&list.version) {
            let (found, expected) = (list.version.to_string(), format!("1 and {VERSION}"));
            return Err(wrong(FileError::Version { kind: "delta", found, expected }));
        }
        check_names(list.base.keys()).and_then(|()| check_names(list.files.keys())).map_err(wrong)?;
        Ok(list)
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        crate::writer::write_file(&dir.join(NAME), text.as_bytes())
    }

    /// Path of a file of the fine-tune in the delta in `dir`. Folders of their own keep its names from those of the
    /// format; version 1 had none.
    pub fn path(&self, dir: &Path, kind: FileKind, name: &str) -> PathBuf {
        match (self.version, kind) {
            (1, FileKind::Delta) => dir.join(format!("{name}.wfd")),
            (1, _) => dir.join(name),
            (_, FileKind::Delta) => dir.join("coded").join(format!("{name}.wfd")),
            _ => dir.join("stored").join(name),
        }
    }

    /// Names of the base's safetensors files that are needed.
    pub fn shards(&self) -> Vec<String> {
        self.base.keys().filter(|name| is_safetensors(name)).cloned().collect()
    }
}
