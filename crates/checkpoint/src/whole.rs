//! Files and directories that appear under their names only when they are whole.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

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
    let file = unfinished(to)?;
    write_file(file.as_file(), to, write)?;
    read_back(to, file.path(), || check(file.path()))?;
    file.persist_noclobber(to).map(drop).map_err(|e| e.error).at(to)?;
    // The original may be deleted next: the name must survive a power failure too.
    sync(parent(to))
}

/// A file next to `to`, with the rights of any other file: a temporary file's would be its owner's alone.
fn unfinished(to: &Path) -> Result<NamedTempFile> {
    let rights = Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(PREFIX).permissions(rights).tempfile_in(parent(to)).at(to)
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

/// Copies a file, which appears when it has been read back, in the place of an older one.
///
/// # Errors
/// Files that cannot be read or written, and bytes that do not come back.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let (file, mut digest) = (unfinished(to)?, blake3::Hasher::new());
    write_file(file.as_file(), to, |out| {
        each_part(from, &mut |part| {
            digest.update(part);
            out.write_all(part).at(to)
        })
    })?;
    read_back(to, file.path(), || match digest_of(file.path())? == digest.finalize().to_hex().as_str() {
        true => Ok(()),
        false => Err(CheckpointError::file(file.path(), FileError::Written)),
    })?;
    file.persist(to).map(drop).map_err(|e| e.error).at(to)?;
    sync(parent(to))
}

/// Copies a directory with its folders, which appears when all files have been read back.
///
/// # Errors
/// As [`copy_file`], and as [`write_directory`].
pub fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    write_directory(to, |place| copy_files(from, place))
}

/// Copies the files of a directory and of its folders into another one.
///
/// # Errors
/// As [`copy_file`].
pub fn copy_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).at(to)?;
    for entry in std::fs::read_dir(from).at(from)? {
        let path = entry.at(from)?.path();
        let to = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() { copy_files(&path, &to)? } else { copy_file(&path, &to)? }
    }
    Ok(())
}

/// Makes a directory that appears under its name when `make`, which gets its place until then, has filled it; of a
/// failure nothing is left.
///
/// # Errors
/// A name that is taken; those of `make` and of the file system.
pub fn write_directory<T, E: From<CheckpointError>>(
    to: &Path,
    make: impl FnOnce(&Path) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
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
