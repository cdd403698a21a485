//! Files that fit into memory.

use std::fs::File;
use std::path::Path;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::read_back::read_back;

/// Writes, syncs and reads back a small file.
///
/// # Errors
/// As the file system says, and bytes that do not come back.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut file = File::create(path).at(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).at(path)?;
    read_back(path, path, || match std::fs::read(path).at(path)? == bytes {
        true => Ok(()),
        false => Err(CheckpointError::file(path, FileError::Written)),
    })
}
