//! Applying a delta.

use std::path::{Path, PathBuf};

use crate::container::delta::base::Base;
use crate::container::delta::coded;
use crate::container::delta::files::{DeltaSummary, open, paths};
use crate::container::delta::list::{Entry, FileKind, List, NAME};
use crate::container::frame::OnBytes;
use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::read_back::read_back;
use crate::whole::{digest_of, each_part, write_directory, write_new};

/// True if a directory is a delta.
pub fn is_delta(dir: &Path) -> bool {
    dir.join(NAME).is_file()
}

/// Restores a fine-tune from its base and the delta in `dir` into `out`, which appears when all digests match.
///
/// # Errors
/// Another base, named by its file; damage, named by file and tensor; files that cannot be read or written.
pub fn apply(base: &Path, dir: &Path, out: &Path, on_bytes: OnBytes) -> Result<DeltaSummary> {
    each_file(base, dir, |files| {
        write_directory(out, |place| {
            files.list.files.iter().try_for_each(|(name, entry)| {
                let to = place.join(name);
                write_new(&to, |file| files.restore(name, entry, on_bytes, &mut |part| file.write_all(part).at(&to)))?;
                // Of the written file, not of what was to be written.
                let digest = read_back(&out.join(name), &to, || digest_of(&to))?;
                files.check(name, entry, &digest)
            })
        })
    })
}

/// Restores every file of a delta in memory and compares its digest.
///
/// # Errors
/// As [`apply`].
pub fn verify(base: &Path, dir: &Path, on_bytes: OnBytes) -> Result<DeltaSummary> {
    each_file(base, dir, |files| {
        // The base's digests are known to be right.
        let known = |name: &String, entry: &Entry| {
            entry.kind == FileKind::Same && files.list.base.get(name) == Some(&entry.digest)
        };
        files.list.files.iter().filter(|(name, entry)| !known(name, entry)).try_for_each(|(name, entry)| {
            let mut hasher = blake3::Hasher::new();
            files.restore(name, entry, on_bytes, &mut |part| {
                hasher.update(part);
                Ok(())
            })?;
            files.check(name, entry, hasher.finalize().to_hex().as_str())
        })
    })
}

/// An open delta and its base.
struct Files<'a> {
    list: &'a List,
    dir: &'a Path,
    base: &'a Path,
    known: &'a Base<'a>,
}

/// Opens a delta and its base, checks the base's digests, and works on the files.
fn each_file(base: &Path, dir: &Path, work: impl FnOnce(&Files) -> Result<()>) -> Result<DeltaSummary> {
    let list = List::read(dir)?;
    for (name, expected) in &list.base {
        let file = base.join(name);
        let found = if file.is_file() { Some(digest_of(&file)?) } else { None };
        if found.as_ref() != Some(expected) {
            let reason = FileError::OtherBase { found, expected: expected.clone() };
            return Err(CheckpointError::file(file, reason));
        }
    }
    let names = list.shards();
    let shards: Vec<PathBuf> = paths(base, &names);
    let sources = open(&shards)?;
    let known = Base::new(&names, &sources, list.version);
    let files = Files { list: &list, dir, base, known: &known };
    work(&files)?;
    let mut summary = DeltaSummary::default();
    for (name, entry) in &list.files {
        summary.fine_tune += entry.bytes;
        if entry.kind != FileKind::Same {
            let path = list.path(dir, entry.kind, name);
            summary.delta += path.metadata().at(&path)?.len();
        }
    }
    Ok(summary)
}

impl Files<'_> {
    /// Gives the bytes of a restored file to `sink`.
    fn restore(
        &self,
        name: &str,
        entry: &Entry,
        on_bytes: OnBytes,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let path = self.path(name, entry);
        match entry.kind {
            FileKind::Same | FileKind::Stored => each_part(&path, sink),
            FileKind::Delta => coded::restore(&self.known.beside(name), &path, on_bytes, &mut |_, bytes| sink(bytes)),
        }
    }

    fn check(&self, name: &str, entry: &Entry, digest: &str) -> Result<()> {
        match digest == entry.digest {
            true => Ok(()),
            false => Err(CheckpointError::file(self.path(name, entry), FileError::Restored)),
        }
    }

    /// The file that a file is restored from.
    fn path(&self, name: &str, entry: &Entry) -> PathBuf {
        match entry.kind {
            FileKind::Same => self.base.join(name),
            kind => self.list.path(self.dir, kind, name),
        }
    }
}
