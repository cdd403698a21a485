//! The files of a directory and of its folders.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{AtPath, CheckpointError, FileError, Result};

/// Something in a directory that is not kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its path in the directory.
    pub name: String,
    /// What it is.
    pub reason: String,
}

/// Names of files, sorted, and what is no file.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Paths in the directory, parts separated by `/`.
    pub names: Vec<String>,
    pub left_out: Vec<LeftOut>,
}

impl Tree {
    /// Walks a directory. Links to files are files, as in the hub's cache; links to directories are not followed, so
    /// that no walk is endless.
    pub fn walk(dir: &Path) -> Result<Self> {
        let mut this = Self::default();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let path = dir.join(&folder);
            for entry in std::fs::read_dir(&path).at(&path)? {
                let entry = entry.at(&path)?;
                let (own, kind) = (entry.file_name(), entry.file_type().at(entry.path())?);
                let target = std::fs::metadata(entry.path());
                let (is_file, is_dir) = (target.as_ref().is_ok_and(|m| m.is_file()), kind.is_dir());
                let name = format!("{folder}{}", own.to_string_lossy());
                let reason = match (kind.is_symlink(), target) {
                    _ if is_dir && own == ".git" => Some("records of git"),
                    _ if is_dir && name == ".cache/huggingface" => Some("records of downloads"),
                    _ if is_file || is_dir => None,
                    (true, Ok(target)) if target.is_dir() => Some("a link to a directory"),
                    (true, Err(_)) => Some("a link to nothing"),
                    _ => Some("neither a file nor a directory"),
                };
                match reason {
                    Some(reason) => this.left_out.push(LeftOut { name, reason: reason.into() }),
                    None if own.to_str().is_none() => {
                        return Err(CheckpointError::file(path, FileError::NameNotUtf8 { name: own }));
                    }
                    None if is_dir => folders.push(name + "/"),
                    None => this.names.push(name),
                }
            }
        }
        this.names.sort();
        this.left_out.sort();
        Ok(this)
    }

    /// Bytes of all files below `dir`, the directory that was walked.
    pub fn bytes(&self, dir: &Path) -> Result<u64> {
        let size = |name: &String| Ok(dir.join(name).metadata().at(dir.join(name))?.len());
        self.names.iter().map(size).sum()
    }
}
