//! Deltas: a directory that restores, with a base checkpoint, the files of a fine-tune byte for byte (section 11.1 of
//! `docs/BITSTREAM.md`).
//!
//! `delta.json` names every file with its digest, and the files of the base that are needed with theirs. A file that
//! the base has too takes no room, a safetensors file becomes `coded/NAME.wfd`, any other is copied to `stored/NAME`. A
//! tensor in a `.wfd` is the base's, a difference from it, coded without it, or raw, whichever is shortest.

mod apply;
mod base;
mod coded;
mod factors;
mod list;
mod make;
mod tensor;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use apply::{apply, is_delta, verify};
pub use factors::Factors;
pub use make::{delta, delta_with};
pub use tensor::{Coders, Counts, Lossy};

use crate::container::source::Source;
pub use crate::container::tree::LeftOut;
use crate::container::tree::Tree;
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

fn is_safetensors(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn paths(dir: &Path, names: &[String]) -> Vec<PathBuf> {
    names.iter().map(|name| dir.join(name)).collect()
}

fn open(paths: &[PathBuf]) -> Result<Vec<Source<'_>>> {
    paths.iter().map(|path| Source::open(path)).collect()
}
