//! The GGUF file, version 3 (ggml's `docs/gguf.md`): key-value pairs, a table of tensors, then their data, 32-byte aligned.
//! candle's own writer holds all tensors at once; this one asks for them one after the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{ExportError, Result};
use crate::types::GgufType;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT: u64 = 32;
/// Most bytes of everything before the data that are read: tokenizers take some megabytes.
const MAX_HEAD: u64 = 1 << 28;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Texts(Vec<String>),
}

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

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Value {
    fn put(&self, out: &mut Vec<u8>) {
        let code = |out: &mut Vec<u8>, code: u32| out.extend_from_slice(&code.to_le_bytes());
        let array = |out: &mut Vec<u8>, element: u32, count: usize| {
            code(out, 9);
            code(out, element);
            out.extend_from_slice(&(count as u64).to_le_bytes());
        };
        match self {
            Self::U32(v) => {
                code(out, 4);
                out.extend_from_slice(&v.to_le_bytes());
            }
            Self::F32(v) => {
                code(out, 6);
                out.extend_from_slice(&v.to_le_bytes());
            }
            Self::Bool(v) => {
                code(out, 7);
                out.push((*v).into());
            }
            Self::Text(v) => {
                code(out, 8);
                put_text(out, v);
            }
            Self::I32s(all) => {
                array(out, 5, all.len());
                all.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
            }
            Self::F32s(all) => {
                array(out, 6, all.len());
                all.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
            }
            Self::Texts(all) => {
                array(out, 8, all.len());
                all.iter().for_each(|v| put_text(out, v));
            }
        }
    }
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

/// Writes a file.
///
/// # Errors
/// Bytes that cannot be read or are not as many as shape and type say, files that cannot be written.
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
        let filling = expected.next_multiple_of(ALIGNMENT as usize) - expected;
        out.write_all(&[0; ALIGNMENT as usize][..filling]).map_err(io(path))?;
    }
    let file = out.into_inner().map_err(|e| io(path)(e.into_error()))?;
    file.sync_all().map_err(io(path))
}

/// A tensor of an open file.
#[derive(Debug, Clone)]
struct Place {
    shape: Vec<usize>,
    kind: GgufType,
    offset: u64,
}

/// An open file, to read back what was written.
pub struct GgufFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, Place>,
}

/// Reads a head part by part.
struct Head<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
    at: usize,
}

impl Head<'_> {
    fn wrong(&self, reason: String) -> ExportError {
        ExportError::File { path: self.path.into(), reason }
    }

    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let left = (self.bytes.len() - self.at) as u64;
        if count > left {
            return Err(self.wrong(format!("truncated: {count} bytes are needed at {}, {left} are left", self.at)));
        }
        let start = self.at;
        self.at += count as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    /// Passes over a value of a type; an array's elements are no arrays in any file that exists.
    fn skip(&mut self, kind: u32, nested: bool) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.take(1).map(drop),
            2 | 3 => self.take(2).map(drop),
            4..=6 => self.take(4).map(drop),
            10..=12 => self.take(8).map(drop),
            8 => self.text().map(drop),
            9 if !nested => {
                let (element, count) = (self.u32()?, self.u64()?);
                (0..count).try_for_each(|_| self.skip(element, true))
            }
            other => Err(self.wrong(format!("a metadata value of type {other}, expected 0..=12"))),
        }
    }
}

impl GgufFile {
    /// Opens a file of versions 2 or 3.
    ///
    /// # Errors
    /// Files that cannot be read, are no GGUF, or have tensors of other types than [`GgufType`].
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| ExportError::Io { path: path.into(), source };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(MAX_HEAD).read_to_end(&mut bytes).map_err(io)?;
        let mut head = Head { path, bytes, at: 0 };
        if head.take(4)? != MAGIC {
            return Err(head.wrong("no GGUF file".into()));
        }
        let version = head.u32()?;
        if !(2..=3).contains(&version) {
            return Err(head.wrong(format!("GGUF version {version}, expected 2 or 3")));
        }
        let (count, pairs) = (head.u64()?, head.u64()?);
        for _ in 0..pairs {
            head.text()?;
            let kind = head.u32()?;
            head.skip(kind, false)?;
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..count {
            let name = head.text()?;
            let sides = head.u32()?;
            if sides > 4 {
                return Err(head.wrong(format!("tensor {name} has {sides} dimensions, expected 4 at most")));
            }
            let mut shape = (0..sides).map(|_| Ok(head.u64()? as usize)).collect::<Result<Vec<usize>>>()?;
            shape.reverse();
            let code = head.u32()?;
            let Some(kind) = GgufType::from_code(code) else {
                return Err(head.wrong(format!("tensor {name} has type {code}, which is not known here")));
            };
            let offset = head.u64()?;
            tensors.insert(name, Place { shape, kind, offset });
        }
        let start = (head.at as u64).next_multiple_of(ALIGNMENT);
        for (name, place) in &mut tensors {
            let weights = place.shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
            let bytes = weights.filter(|w| w.is_multiple_of(place.kind.block())).map(|w| place.kind.bytes(w) as u64);
            let end = bytes.and_then(|b| start.checked_add(place.offset)?.checked_add(b));
            if end.is_none_or(|end| end > size) {
                let reason = format!("tensor {name} of {:?} does not fit {size} bytes", place.shape);
                return Err(ExportError::File { path: path.into(), reason });
            }
            place.offset += start;
        }
        Ok(Self { path: path.into(), file, tensors })
    }

    /// Names of tensors with shape and type.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], GgufType)> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), place.shape.as_slice(), place.kind))
    }

    /// Values of a tensor as runtimes see them.
    ///
    /// # Errors
    /// Names that are not there, and read errors.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || ExportError::File { path: self.path.clone(), reason: format!("has no tensor {name}") };
        let place = self.tensors.get(name).ok_or_else(missing)?;
        let mut bytes = vec![0; place.kind.bytes(place.shape.iter().product())];
        let io = |source| ExportError::Io { path: self.path.clone(), source };
        self.file.read_exact_at(&mut bytes, place.offset).map_err(io)?;
        place.kind.values(name, bytes, &place.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let values: Vec<f32> = (0..3 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
        let (flat, weighted) = (vec![1.0; 256], (0..256).map(|i| 1.0 + i as f32).collect::<Vec<_>>());
        let mut tensors = Vec::new();
        let mut expected = Vec::new();
        for kind in GgufType::MATRICES {
            let quantized = kind.quantize("x", &values, if kind == GgufType::Q2K { &weighted } else { &flat }).unwrap();
            assert_eq!(quantized.bytes.len(), kind.bytes(values.len()));
            let error: f32 = quantized.values.iter().zip(&values).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(error / values.len() as f32 <= 0.03, "{kind:?} {error}");
            let data = Data::Bytes(quantized.bytes);
            tensors.push(GgufTensor { name: kind.name().into(), shape: vec![3, 256], kind, data });
            expected.push(quantized.values);
        }
        let metadata = [
            ("general.architecture".to_string(), Value::Text("llama".into())),
            ("tokens".to_string(), Value::Texts(vec!["a".into(), "bc".into()])),
            ("scores".to_string(), Value::F32s(vec![0.5, -1.0])),
            ("kinds".to_string(), Value::I32s(vec![1, -3])),
            ("flag".to_string(), Value::Bool(true)),
        ];
        write_gguf(&path, &metadata, &tensors).unwrap();
        let file = GgufFile::open(&path).unwrap();
        for (tensor, values) in tensors.iter().zip(&expected) {
            assert_eq!(file.values(&tensor.name).unwrap(), *values, "{}", tensor.name);
        }
        // candle's reader agrees.
        let mut reader = std::io::BufReader::new(File::open(&path).unwrap());
        let content = candle_core::quantized::gguf_file::Content::read(&mut reader).unwrap();
        assert_eq!(content.metadata.len(), metadata.len());
        let theirs = content.tensor(&mut reader, "q4_K", &candle_core::Device::Cpu).unwrap();
        let theirs: Vec<f32> =
            theirs.dequantize(&candle_core::Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(theirs, expected[3]);

        let bytes = std::fs::read(&path).unwrap();
        for length in (0..bytes.len()).step_by(67) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(GgufFile::open(&path).is_err(), "{length}");
        }
        for at in 0..600 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x81;
            std::fs::write(&path, damaged).unwrap();
            // An error or other values, but no panic.
            if let Ok(file) = GgufFile::open(&path) {
                let names: Vec<String> = file.tensors().map(|(name, ..)| name.to_string()).collect();
                names.iter().for_each(|name| drop(file.values(name)));
            }
        }
    }
}
