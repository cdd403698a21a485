//! One safetensors file with a checked header; tensors are read one at a time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Metadata;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::types::Element;

/// Largest safetensors header accepted, the limit of the reference implementation.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// Length of the header of a safetensors file of `size` bytes, from its first eight.
pub(crate) fn header_length(prefix: [u8; 8], size: u64) -> std::result::Result<u64, FileError> {
    let length = u64::from_le_bytes(prefix);
    match length {
        _ if length.saturating_add(8) > size => Err(FileError::HeaderLength { length, size }),
        _ if length > MAX_HEADER => Err(FileError::HeaderLimit { length, most: MAX_HEADER }),
        _ => Ok(length),
    }
}

/// Source of a file's bytes.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    File(Arc<File>),
    Memory(Arc<[u8]>),
}

impl Source {
    /// Reads bytes from `offset` on, all of them or none.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, offset),
            Self::Memory(memory) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let there = start.checked_add(bytes.len()).and_then(|end| memory.get(start..end));
                bytes.copy_from_slice(there.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// An open file; its header fits its size.
#[derive(Debug)]
pub struct SafetensorsFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Source,
    /// Bytes of the whole file.
    pub(crate) size: u64,
    /// The header with its length before it.
    pub(crate) header: Vec<u8>,
    pub(crate) metadata: Metadata,
}

impl SafetensorsFile {
    /// # Errors
    /// A file that cannot be read, is no safetensors file, or has another size than its header says.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).at(path)?;
        let size = file.metadata().at(path)?.len();
        Self::of(path, Source::File(Arc::new(file)), size, false)
    }

    /// As [`SafetensorsFile::open`], but the file may end anywhere behind its header.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub(crate) fn open_part(path: &Path) -> Result<Self> {
        let file = File::open(path).at(path)?;
        let size = file.metadata().at(path)?.len();
        Self::of(path, Source::File(Arc::new(file)), size, true)
    }

    /// As [`SafetensorsFile::open`] with the file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn of_bytes(path: &Path, bytes: Arc<[u8]>) -> Result<Self> {
        let size = bytes.len() as u64;
        Self::of(path, Source::Memory(bytes), size, false)
    }

    fn of(path: &Path, file: Source, size: u64, partial: bool) -> Result<Self> {
        let mut prefix = [0; 8];
        let wrong = |reason| CheckpointError::file(path, reason);
        file.read_exact_at(&mut prefix, 0)
            .map_err(|_| wrong(FileError::TooShort { size, kind: "safetensors file" }))?;
        let length = header_length(prefix, size).map_err(wrong)?;
        let mut header = prefix.to_vec();
        header.resize(8 + length as usize, 0);
        file.read_exact_at(&mut header[8..], 8).at(path)?;
        // Deserialising checks that offsets are contiguous and fit shapes and types.
        let metadata: Metadata =
            serde_json::from_slice(&header[8..]).map_err(|error| wrong(FileError::Header { error }))?;
        let expected = 8 + length + metadata.data_len() as u64;
        if size != expected && !(partial && size < expected) {
            return Err(wrong(FileError::Size { found: size, expected }));
        }
        Ok(Self { path: path.to_path_buf(), file, size, header, metadata })
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    /// True if there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// Shape and bytes of a tensor of type `element`.
    ///
    /// # Errors
    /// A tensor that is missing or of another type, and bytes that cannot be read.
    pub fn read(&self, name: &str, element: Element) -> Result<(&[usize], Vec<u8>)> {
        let failed = |reason| CheckpointError::file(&self.path, reason);
        let info = self.metadata.info(name).ok_or_else(|| failed(FileError::MissingTensor { tensor: name.into() }))?;
        if info.dtype != element {
            let (tensor, found) = (name.into(), info.dtype);
            return Err(failed(FileError::ElementType { tensor, found, expected: element }));
        }
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let offset = self.header.len() as u64 + start as u64;
        self.file.read_exact_at(&mut bytes, offset).at(&self.path)?;
        Ok((&info.shape, bytes))
    }

    /// Shape and values of a tensor of type F32.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read`].
    pub fn read_f32(&self, name: &str) -> Result<(&[usize], Vec<f32>)> {
        let (shape, bytes) = self.read(name, Element::F32)?;
        Ok((shape, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }
}
