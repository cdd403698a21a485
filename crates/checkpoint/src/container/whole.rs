//! Files and directories that appear under their names only when they are whole.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::read_back::read_back;

/// Bytes in memory while a file is copied or written.
const BUFFER: usize = 1 << 20;
/// Begin of the names of what is not whole.
const PREFIX: &str = ".unfinished-";

/// Digest of a file, hexadecimal.
pub(crate) fn digest_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).at(path)?).at(path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Writes a file that appears under its name when `check`, which gets its place until then, has read it back.
pub(crate) fn write_whole(
    to: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    refuse_existing(to)?;
    // The rights of a temporary file would be its owner's alone; these are as for any other file.
    let rights = Permissions::from_mode(0o666);
    let file = tempfile::Builder::new().prefix(PREFIX).permissions(rights).tempfile_in(parent(to)).at(to)?;
    write_file(file.as_file(), to, write)?;
    read_back(to, file.path(), || check(file.path()))?;
    file.persist_noclobber(to).map(drop).map_err(|e| e.error).at(to)
}

/// Writes a file of a directory that is not whole.
pub(crate) fn write_new(to: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = parent(to);
    std::fs::create_dir_all(folder).at(folder)?;
    write_file(&File::create_new(to).at(to)?, to, write)
}

fn write_file(file: &File, to: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, file);
    write(&mut out)?;
    out.flush().at(to)?;
    file.sync_all().at(to)
}

/// Gives the bytes of a file to `sink`, part by part.
pub(crate) fn each_part(path: &Path, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut file = File::open(path).at(path)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer).at(path)? {
            0 => return Ok(()),
            count => sink(&buffer[..count])?,
        }
    }
}

/// Makes a directory that appears under its name when `make`, which gets its place until then, has filled it; of a
/// failure nothing is left.
pub(crate) fn write_directory<T>(to: &Path, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    refuse_existing(to)?;
    let folder = parent(to);
    std::fs::create_dir_all(folder).at(folder)?;
    let rights = Permissions::from_mode(0o777);
    let place = tempfile::Builder::new().prefix(PREFIX).permissions(rights).tempdir_in(folder).at(to)?;
    let made = make(place.path())?;
    sync_folders(place.path())?;
    // A rename would replace an empty directory.
    refuse_existing(to)?;
    std::fs::rename(place.path(), to).at(to)?;
    let _ = place.keep();
    sync(folder)?;
    Ok(made)
}

fn refuse_existing(to: &Path) -> Result<()> {
    match to.symlink_metadata() {
        Ok(_) => Err(CheckpointError::file(to, FileError::Exists)),
        Err(_) => Ok(()),
    }
}

fn parent(of: &Path) -> &Path {
    of.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."))
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|f| f.sync_all()).at(dir)
}

/// Syncs a directory and its folders; files are synced as they are written.
fn sync_folders(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        if entry.file_type().at(entry.path())?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync(dir)
}
