//! An unfinished artifact, whose finished units survive the process.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Result;
use crate::files::{io, sync};

const DIGEST: usize = blake3::OUT_LEN;
/// Ending of a unit that is being written.
pub(crate) const PARTIAL: &str = ".partial";

/// A stage's workplace: an empty directory that becomes the artifact, and units that are kept until
/// then. A unit is there whole or not at all.
pub struct Work {
    out: PathBuf,
    units: PathBuf,
}

impl Work {
    /// Resumes the work in `dir`, or begins it; the artifact is made in `dir/out`.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn begin(dir: &Path) -> Result<Self> {
        let work = Self { out: dir.join("out"), units: dir.join("units") };
        if work.out.exists() {
            std::fs::remove_dir_all(&work.out).map_err(io(&work.out))?;
        }
        for dir in [&work.units, &work.out] {
            std::fs::create_dir_all(dir).map_err(io(dir))?;
        }
        for entry in std::fs::read_dir(&work.units).map_err(io(&work.units))?.flatten() {
            if entry.file_name().to_string_lossy().ends_with(PARTIAL) {
                std::fs::remove_file(entry.path()).map_err(io(&entry.path()))?;
            }
        }
        Ok(work)
    }

    /// True when nothing is finished yet.
    pub(crate) fn is_fresh(&self) -> bool {
        std::fs::read_dir(&self.units).map_or(true, |mut d| d.next().is_none())
    }

    /// The directory that becomes the artifact; empty when the stage begins.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Path of a file in [`Work::out`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Bytes of a unit, if it is there and undamaged.
    pub fn unit(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(self.units.join(name)).ok()?;
        let body = bytes.len().checked_sub(DIGEST)?;
        let whole = blake3::hash(&bytes[..body]).as_bytes() == &bytes[body..];
        bytes.truncate(body);
        whole.then_some(bytes)
    }

    /// True when a unit is there, damaged or not.
    pub fn has_unit(&self, name: &str) -> bool {
        self.units.join(name).exists()
    }

    /// Keeps a unit for this process or the next.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.keep_parts(name, |sink| sink(bytes))
    }

    /// Like [`Work::keep`], for bytes that are passed part by part and not held in memory.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn keep_parts(
        &self,
        name: &str,
        parts: impl FnOnce(&mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()>,
    ) -> Result<()> {
        let (path, partial) = (self.units.join(name), self.units.join(format!("{name}{PARTIAL}")));
        let write = || {
            let mut file = BufWriter::new(File::create(&partial)?);
            let mut hasher = blake3::Hasher::new();
            parts(&mut |bytes| {
                hasher.update(bytes);
                file.write_all(bytes)
            })?;
            file.write_all(hasher.finalize().as_bytes())?;
            file.flush()?;
            std::fs::rename(&partial, &path)
        };
        write().map_err(io(&path))
    }

    /// Drops a unit that is no longer needed.
    pub fn forget(&self, name: &str) {
        let _ = std::fs::remove_file(self.units.join(name));
    }

    /// Makes a unit that is a file of its own: unless it exists, `write` fills the path that it is given. Returns the
    /// finished file's path.
    ///
    /// # Errors
    /// Errors of `write` and of the file system.
    pub fn file<E: From<crate::ArtifactError>>(
        &self,
        name: &str,
        write: impl FnOnce(&Path) -> std::result::Result<(), E>,
    ) -> std::result::Result<PathBuf, E> {
        let (path, partial) = (self.units.join(name), self.units.join(format!("{name}{PARTIAL}")));
        if !path.exists() {
            write(&partial)?;
            sync(&partial)?;
            std::fs::rename(&partial, &path).map_err(io(&path))?;
        }
        Ok(path)
    }

    /// True when [`Work::file`] has finished this file.
    pub fn has_file(&self, name: &str) -> bool {
        self.units.join(name).exists()
    }

    /// Puts a file made by [`Work::file`] into the artifact.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn adopt(&self, name: &str) -> Result<()> {
        let (from, to) = (self.units.join(name), self.out.join(name));
        // A link, so that a process killed here finds the unit again.
        std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(|_| ())).map_err(io(&to))
    }
}

/// Decides how often a unit is kept, so that keeping takes at most one part in twenty of the time.
pub struct Pace {
    last: Instant,
    cost: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last: Instant::now(), cost: Duration::ZERO }
    }
}

impl Pace {
    /// Runs `keep` if the time since the last call is at least twenty times that call's duration.
    ///
    /// # Errors
    /// Errors of `keep`.
    pub fn offer<E>(&mut self, keep: impl FnOnce() -> std::result::Result<(), E>) -> std::result::Result<(), E> {
        if self.last.elapsed() >= 20 * self.cost {
            let start = Instant::now();
            keep()?;
            self.last = Instant::now();
            self.cost = self.last - start;
        }
        Ok(())
    }
}
