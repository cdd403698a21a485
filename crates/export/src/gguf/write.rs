//! Writing a GGUF file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use waterfill_codec::syntax::header::check_of;

use crate::error::{ExportError, Result};
use crate::gguf::read::GgufFile;
use crate::gguf::value::{ALIGNMENT, MAGIC, VERSION, Value, put_text};
use crate::types::GgufType;

/// Where a tensor's bytes come from.
pub enum Data {
    /// A file with them.
    File(PathBuf),
    /// Themselves.
    Bytes(Vec<u8>),
}

/// A tensor to write.
pub struct GgufTensor {
    /// Name in GGUF.
    pub name: String,
    /// Shape with the rows first, as Hugging Face has it.
    pub shape: Vec<usize>,
    /// Type.
    pub kind: GgufType,
    /// Bytes.
    pub data: Data,
}

/// Bytes of a file before the data, about: tables of tensors have offsets of one width.
pub fn head_bytes(metadata: &[(String, Value)], names: impl Iterator<Item = usize>) -> u64 {
    let mut head = Vec::new();
    for (key, value) in metadata {
        put_text(&mut head, key);
        value.put(&mut head);
    }
    // Name, number of dimensions, two of them, type, offset.
    let table: usize = names.map(|length| 8 + length + 4 + 16 + 4 + 8).sum();
    (24 + head.len() + table) as u64 + ALIGNMENT
}

/// Writes a file, and reads it back: metadata, the table of tensors, and every tensor's bytes.
///
/// # Errors
/// Bytes that cannot be read or are not as many as shape and type say, files that cannot be written, names that are given
/// twice, and whatever does not come back.
pub fn write_gguf(path: &Path, metadata: &[(String, Value)], tensors: &[GgufTensor]) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ExportError::Io { path, source }
    };
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut head, key);
        value.put(&mut head);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut head, &tensor.name);
        head.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&side| head.extend_from_slice(&(side as u64).to_le_bytes()));
        head.extend_from_slice(&tensor.kind.code().to_le_bytes());
        head.extend_from_slice(&offset.to_le_bytes());
        offset += (tensor.kind.bytes(tensor.shape.iter().product()) as u64).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    let mut checks = Vec::with_capacity(tensors.len());
    let mut out = BufWriter::new(File::create(path).map_err(io(path))?);
    out.write_all(&head).map_err(io(path))?;
    for tensor in tensors {
        let bytes = match &tensor.data {
            Data::File(from) => std::fs::read(from).map_err(io(from))?,
            Data::Bytes(bytes) => bytes.clone(),
        };
        let expected = tensor.kind.bytes(tensor.shape.iter().product());
        if bytes.len() != expected {
            let reason = format!("tensor {} has {} bytes, expected {expected}", tensor.name, bytes.len());
            return Err(ExportError::File { path: path.into(), reason });
        }
        out.write_all(&bytes).map_err(io(path))?;
        checks.push(check_of(&[&bytes]));
        let filling = expected.next_multiple_of(ALIGNMENT as usize) - expected;
        out.write_all(&[0; ALIGNMENT as usize][..filling]).map_err(io(path))?;
    }
    let file = out.into_inner().map_err(|e| io(path)(e.into_error()))?;
    file.sync_all().map_err(io(path))?;
    compare(path, metadata, tensors, &checks)
}

/// Compares a file with what was meant to be written; `checks` are of the tensors' bytes.
fn compare(path: &Path, metadata: &[(String, Value)], tensors: &[GgufTensor], checks: &[u64]) -> Result<()> {
    let wrong = |reason| ExportError::File { path: path.into(), reason };
    let written = GgufFile::open(path)?;
    // As bytes: numbers that are not finite equal nothing.
    let pairs = |all: &[(String, Value)]| {
        let mut out = Vec::new();
        for (key, value) in all {
            put_text(&mut out, key);
            value.put(&mut out);
        }
        out
    };
    if pairs(written.metadata()) != pairs(metadata) {
        return Err(wrong("the metadata does not come back as it was written".into()));
    }
    let (found, expected) = (written.tensors().count(), tensors.len());
    if found != expected {
        return Err(wrong(format!("{found} tensors come back, {expected} were written")));
    }
    let all: BTreeMap<&str, (&[usize], GgufType)> = written.tensors().map(|(name, s, k)| (name, (s, k))).collect();
    for (GgufTensor { name, shape, kind, .. }, check) in tensors.iter().zip(checks) {
        let found = all.get(name.as_str());
        if found != Some(&(shape.as_slice(), *kind)) {
            return Err(wrong(format!("tensor {name} comes back as {found:?}, it was {shape:?} of {kind:?}")));
        }
        if check_of(&[&written.bytes(name)?]) != *check {
            return Err(wrong(format!("tensor {name} has other bytes than were written; the disk may be faulty")));
        }
    }
    Ok(())
}
