//! Tensors to be written, one in memory at a time.

use std::path::PathBuf;

use waterfill_codec::syntax::header::check_of;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::types::Element;

/// Source of a tensor's bytes, read for one tensor at a time.
pub enum Data<'a> {
    /// A file with them.
    File(PathBuf),
    /// A file with them, and their check.
    Checked(PathBuf, u64),
    /// A function that makes them.
    Made(Box<dyn Fn() -> Vec<u8> + Send + Sync + 'a>),
}

/// One tensor to write.
pub struct Entry<'a> {
    /// Name of the tensor.
    pub name: String,
    /// Shape of the decoded tensor.
    pub shape: Vec<usize>,
    /// Element type of a plain tensor, `None` for a coded one.
    pub plain: Option<Element>,
    /// The tensor's bytes.
    pub data: Data<'a>,
    /// Number of the tensor's bytes.
    pub bytes: u64,
}

impl Data<'_> {
    /// Keeps bytes in a file until they are needed; they must then be the same.
    ///
    /// # Errors
    /// As the file system says.
    pub fn keep(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        std::fs::write(&path, bytes).at(&path)?;
        Ok(Self::checked(path, bytes))
    }

    /// A file that must have these bytes when it is read.
    pub fn checked(path: PathBuf, bytes: &[u8]) -> Self {
        Self::Checked(path, check_of(&[bytes]))
    }
}

impl Entry<'_> {
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        match &self.data {
            Data::File(path) => std::fs::read(path).at(path),
            Data::Checked(path, check) => {
                let bytes = std::fs::read(path).at(path)?;
                match check_of(&[&bytes]) == *check {
                    true => Ok(bytes),
                    false => Err(CheckpointError::file(path, FileError::Written)),
                }
            }
            Data::Made(make) => Ok(make()),
        }
    }
}
