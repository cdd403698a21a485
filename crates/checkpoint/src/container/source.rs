//! A safetensors file as pieces that are coded one by one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::tensor::Metadata;
use waterfill_codec::syntax::header::check_of;
use waterfill_codec::{Dtype, Elements, encode_lossless};

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::safetensors_file::header_length;
use crate::types::Element;

/// Tensors shorter than this are not worth a coded tensor's header.
const LEAST_BYTES: usize = 256;

/// A piece of a file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Record {
    /// Bytes in the file.
    pub(crate) bytes: u64,
    pub(crate) stored: Stored,
}

/// What a packed file has of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Its bytes, and their check.
    Plain { check: u64 },
    /// A coded tensor of `bytes` bytes.
    Coded { bytes: u64 },
    /// Nothing: it is equal to an earlier record.
    Equal { to: usize },
}

impl Default for Stored {
    fn default() -> Self {
        Self::Plain { check: 0 }
    }
}

impl Record {
    /// Bytes in the packed file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        match self.stored {
            Stored::Plain { .. } => self.bytes,
            Stored::Coded { bytes } => bytes,
            Stored::Equal { .. } => 0,
        }
    }
}

/// A tensor, or the bytes between tensors.
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) elements: Option<Elements>,
    /// For integers: also try them as nibbles.
    nibbles: bool,
}

impl Piece {
    /// Rows and columns as it is coded, where it is more than a vector.
    pub(crate) fn matrix(&self) -> Option<[usize; 2]> {
        let elements = self.elements.as_ref()?;
        (elements.rows > 1 && elements.cols > 1).then_some([elements.rows, elements.cols])
    }
}

pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    file: File,
    pub(crate) size: u64,
    pub(crate) prefix: Vec<u8>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) elements: u64,
}

impl<'a> Source<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).at(path)?;
        let size = file.metadata().at(path)?.len();
        let mut first = [0; 8];
        let wrong = |reason| CheckpointError::file(path, reason);
        file.read_exact_at(&mut first, 0).map_err(|_| wrong(FileError::TooShort { size, kind: "safetensors file" }))?;
        let length = header_length(first, size).map_err(wrong)?;
        let mut prefix = first.to_vec();
        prefix.resize(8 + length as usize, 0);
        file.read_exact_at(&mut prefix[8..], 8).at(path)?;
        let metadata: Metadata =
            serde_json::from_slice(&prefix[8..]).map_err(|error| wrong(FileError::Header { error }))?;
        let expected = prefix.len() as u64 + metadata.data_len() as u64;
        if expected != size {
            return Err(wrong(FileError::Size { found: size, expected }));
        }
        let elements = metadata.tensors().values().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum();
        let pieces = pieces_of(&prefix).map_err(wrong)?;
        Ok(Self { path, file, size, prefix, pieces, elements })
    }

    /// Bytes of a piece.
    pub(crate) fn read(&self, piece: &Piece) -> Result<Vec<u8>> {
        let mut bytes = vec![0; piece.bytes as usize];
        self.file.read_exact_at(&mut bytes, piece.start).at(self.path)?;
        Ok(bytes)
    }

    /// Record, stored bytes and original bytes of a piece.
    pub(crate) fn code(&self, piece: &Piece) -> Result<(Record, Vec<u8>, Vec<u8>)> {
        let bytes = self.read(piece)?;
        let failed = |source| CheckpointError::Codec {
            path: self.path.into(),
            tensor: piece.name.clone(),
            source: Box::new(source),
        };
        let mut best: Option<Vec<u8>> = None;
        if let Some(elements) = piece.elements.filter(|_| bytes.len() >= LEAST_BYTES) {
            best = Some(encode_lossless(&elements, &bytes).map_err(failed)?);
            if piece.nibbles {
                let as_nibbles =
                    Elements { dtype: Dtype::Nibble, cols: elements.cols * 2, period: 2 * elements.period, ..elements };
                let coded = encode_lossless(&as_nibbles, &bytes).map_err(failed)?;
                best = best.filter(|b| b.len() < coded.len()).or(Some(coded));
            }
        }
        match best.filter(|b| b.len() < bytes.len()) {
            Some(coded) => {
                let stored = Stored::Coded { bytes: coded.len() as u64 };
                Ok((Record { bytes: piece.bytes, stored }, coded, bytes))
            }
            None => {
                let stored = Stored::Plain { check: check_of(&[&bytes]) };
                Ok((Record { bytes: piece.bytes, stored }, bytes.clone(), bytes))
            }
        }
    }

    /// A file of any kind, in pieces of bytes, of which `prefix` are not coded.
    pub(crate) fn of_bytes(path: &'a Path, prefix: Vec<u8>) -> Result<Self> {
        let file = File::open(path).at(path)?;
        let size = file.metadata().at(path)?.len();
        let piece = |start: u64| {
            let bytes = (size - start).min(ROW as u64 * PIECE_ROWS);
            let (elements, _) = layout(Element::U8, &[bytes as usize / ROW, ROW], bytes as usize);
            Piece { name: format!("bytes from {start} on"), start, bytes, elements, nibbles: false }
        };
        let pieces = (prefix.len() as u64..size).step_by(ROW * PIECE_ROWS as usize).map(piece).collect();
        Ok(Self { path, file, size, prefix, pieces, elements: 0 })
    }
}

/// Rows of a piece of a file that is no safetensors file.
const PIECE_ROWS: u64 = 4096;

/// Tensors, in order, of a file that begins with `prefix`.
pub(crate) fn pieces_of(prefix: &[u8]) -> std::result::Result<Vec<Piece>, FileError> {
    let metadata: Metadata =
        serde_json::from_slice(prefix.get(8..).unwrap_or_default()).map_err(|error| FileError::Header { error })?;
    let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
    tensors.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then_with(|| a.0.cmp(&b.0)));
    let start = prefix.len() as u64;
    let piece = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (begin, end) = info.data_offsets;
        let (elements, nibbles) = layout(info.dtype, &info.shape, end - begin);
        Piece { name, start: start + begin as u64, bytes: (end - begin) as u64, elements, nibbles }
    };
    Ok(tensors.into_iter().map(piece).collect())
}

/// Longest row that tensors of one row are given.
const ROW: usize = 4096;
/// Longest row that a coded tensor may have in a slice of 16.
const MAX_ROW: usize = 1 << 18;

/// Shape in which a tensor's bytes are coded (`None` where there is none), and true if they are tried as nibbles too.
fn layout(dtype: Element, shape: &[usize], bytes: usize) -> (Option<Elements>, bool) {
    let (kind, width, nibbles) = match dtype {
        Element::BF16 => (Dtype::Bf16, 2, false),
        Element::F16 => (Dtype::F16, 2, false),
        Element::F32 => (Dtype::F32, 4, false),
        Element::F8_E4M3 => (Dtype::E4M3, 1, false),
        Element::F8_E5M2 => (Dtype::E5M2, 1, false),
        // Quantised checkpoints keep four-bit values in these.
        Element::U8 | Element::I8 => (Dtype::Byte, 1, true),
        Element::I32 | Element::U32 => (Dtype::Byte, 4, true),
        Element::I16 | Element::U16 => (Dtype::Byte, 2, false),
        Element::I64 | Element::U64 | Element::F64 => (Dtype::Byte, 8, false),
        _ => (Dtype::Byte, 1, false),
    };
    // Bytes are columns of their own; other elements are whole.
    let cells = if kind == Dtype::Byte { bytes } else { bytes / width };
    let unit = if kind == Dtype::Byte { width } else { 1 };
    let last = shape.last().map_or(0, |&n| n * unit);
    let cols = match (last, cells.checked_div(last).unwrap_or(0)) {
        (64..=MAX_ROW, rows @ 2..) if rows * last == cells => Some(last),
        _ if cells <= ROW => Some(cells),
        _ => (unit..=ROW)
            .rev()
            .find(|c| c % unit == 0 && cells % c == 0 && *c >= 64)
            .or((cells <= MAX_ROW).then_some(cells)),
    };
    let elements = cols.filter(|&c| c > 0).map(|cols| Elements { dtype: kind, rows: cells / cols, cols, period: unit });
    (elements, nibbles)
}
