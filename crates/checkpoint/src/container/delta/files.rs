//! The files of a base and of a fine-tune.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::container::delta::tensor::Counts;
use crate::container::source::Source;
use crate::container::tree::{LeftOut, Tree};
use crate::error::Result;
use crate::whole::digest_of;

/// Sizes of a delta.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DeltaSummary {
    /// Bytes of the fine-tune's files.
    #[serde(rename = "tuned")]
    pub fine_tune: u64,
    /// Bytes of the delta.
    pub delta: u64,
    /// Elements of its tensors.
    pub elements: u64,
    /// Its tensors by how they are stored.
    pub tensors: Counts,
    /// What the fine-tune's directory has and the delta does not.
    pub left_out: Vec<LeftOut>,
}

/// Bytes of all files that a delta of the directory `dir` would keep.
///
/// # Errors
/// Directories that cannot be read, and names that are not UTF-8.
pub fn bytes_of(dir: &Path) -> Result<u64> {
    Tree::walk(dir)?.bytes(dir)
}

/// Digest of names and bytes of all files that a delta of the directory `dir` would keep.
///
/// # Errors
/// As [`bytes_of`], and files that cannot be read.
pub fn digest_of_files(dir: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for name in Tree::walk(dir)?.names {
        hasher.update(format!("{name}\n{}\n", digest_of(&dir.join(&name))?).as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

pub(super) fn paths(dir: &Path, names: &[String]) -> Vec<PathBuf> {
    names.iter().map(|name| dir.join(name)).collect()
}

pub(super) fn open(paths: &[PathBuf]) -> Result<Vec<Source<'_>>> {
    paths.iter().map(|path| Source::open(path)).collect()
}
