//! One process at a time makes an artifact.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::io;
use crate::progress::Progress;
use crate::{ArtifactError, Result};

/// Interval at which a waiting process tries again.
const PATIENCE: Duration = Duration::from_millis(100);

/// An advisory lock on a file; the system drops it with the process, however that ends.
pub(crate) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock at `path`; waits for the process that holds it and reports that process to `progress`.
    pub fn take(path: &Path, progress: &dyn Progress) -> Result<Self> {
        let mut reported = false;
        loop {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io(path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = holder(&mut file);
                    if !reported && !holder.is_empty() && !holder.starts_with(&format!("{} ", std::process::id())) {
                        progress.note(&format!("waiting for process {holder}, which is making the same artifact"));
                        reported = true;
                    }
                    std::thread::sleep(PATIENCE);
                    continue;
                }
                // A file system without locks: the rename at the end still keeps artifacts whole.
                Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(source)) => {
                    return Err(ArtifactError::Io { path: path.to_path_buf(), source });
                }
            }
            // Whoever held it before may have removed the file: then this lock guards nothing.
            let ours = file.metadata().map_err(io(path))?.ino();
            if std::fs::metadata(path).is_ok_and(|m| m.ino() == ours) {
                let command = std::env::args().collect::<Vec<_>>().join(" ");
                let text = format!("{} ({command})", std::process::id());
                file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(io(path))?;
                return Ok(Self { path: path.to_path_buf(), file });
            }
        }
    }
}

/// True if a process holds the lock at `path`.
pub fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.rewind();
    let _ = file.take(1000).read_to_string(&mut text);
    text
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}
