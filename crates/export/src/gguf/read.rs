//! Reading a GGUF file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{ExportError, Result};
use crate::gguf::value::{ALIGNMENT, MAGIC, Value};
use crate::types::GgufType;

/// Most bytes of everything before the data that are read: tokenizers take some megabytes.
const MAX_HEAD: u64 = 1 << 28;

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
    metadata: Vec<(String, Value)>,
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

    fn word(&mut self) -> Result<[u8; 4]> {
        Ok(self.take(4)?.try_into().expect("four bytes"))
    }

    /// A value of a type; `None` for types that are never written here, which are passed over.
    fn value(&mut self, kind: u32) -> Result<Option<Value>> {
        Ok(match kind {
            4 => Some(Value::U32(self.u32()?)),
            6 => Some(Value::F32(f32::from_le_bytes(self.word()?))),
            7 => Some(Value::Bool(self.take(1)? != [0])),
            8 => Some(Value::Text(self.text()?)),
            9 => {
                let (element, count) = (self.u32()?, self.u64()?);
                match element {
                    5 => Some(Value::I32s(self.all(count, |head| Ok(i32::from_le_bytes(head.word()?)))?)),
                    6 => Some(Value::F32s(self.all(count, |head| Ok(f32::from_le_bytes(head.word()?)))?)),
                    8 => Some(Value::Texts(self.all(count, Self::text)?)),
                    _ => {
                        (0..count).try_for_each(|_| self.skip(element))?;
                        None
                    }
                }
            }
            other => {
                self.skip(other)?;
                None
            }
        })
    }

    fn all<T>(&mut self, count: u64, one: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        (0..count).map(|_| one(self)).collect()
    }

    /// Passes over a number; an array's elements are no arrays in any file that exists.
    fn skip(&mut self, kind: u32) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.take(1).map(drop),
            2 | 3 => self.take(2).map(drop),
            4..=6 => self.take(4).map(drop),
            10..=12 => self.take(8).map(drop),
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
        let mut metadata = Vec::new();
        for _ in 0..pairs {
            let (key, kind) = (head.text()?, head.u32()?);
            metadata.extend(head.value(kind)?.map(|value| (key, value)));
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
        Ok(Self { path: path.into(), file, metadata, tensors })
    }

    /// Key-value pairs in the file's order, without those of types that [`Value`] does not have.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
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
        let place = self.place(name)?;
        place.kind.values(name, self.bytes(name)?, &place.shape)
    }

    /// Bytes of a tensor.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let place = self.place(name)?;
        let mut bytes = vec![0; place.kind.bytes(place.shape.iter().product())];
        let io = |source| ExportError::Io { path: self.path.clone(), source };
        self.file.read_exact_at(&mut bytes, place.offset).map_err(io)?;
        Ok(bytes)
    }

    fn place(&self, name: &str) -> Result<&Place> {
        let missing = || ExportError::File { path: self.path.clone(), reason: format!("has no tensor {name}") };
        self.tensors.get(name).ok_or_else(missing)
    }
}
