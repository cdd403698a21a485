//! Reading a packed file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::tensor::Metadata;
use waterfill_codec::CodedTensor;
use waterfill_codec::entropy::adaptive_rans::Decoder;
use waterfill_codec::syntax::header::check_of;

use super::head::{Entry, Head};
use crate::container::frame::{Frame, OnBytes};
use crate::container::source::{Record, Stored};
use crate::container::tree::LeftOut;
use crate::error::{AtPath, CheckpointError, FileError, Result, TensorError};
use crate::parallel::decode_parallel;

pub(super) const FRAME: Frame = Frame { magic: *b"WFPK", version: 2, oldest: 1, kind: "packed file" };

/// Sizes of a packed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackSummary {
    /// Bytes of the files.
    pub original: u64,
    /// Bytes of the packed file.
    pub packed: u64,
    /// Elements of all tensors; of packed four-bit types as stored.
    pub elements: u64,
    /// Files of a directory; `None` for a file alone.
    pub files: Option<usize>,
    /// Bytes of tensors that are equal to another.
    pub equal: u64,
    /// What is in the directory and is not kept.
    pub left_out: Vec<LeftOut>,
}

/// A tensor of a packed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRecord {
    /// Its file, empty for a file alone.
    pub file: String,
    /// Its name.
    pub tensor: String,
    /// Bytes in the file, and in the packed file.
    pub bytes: [u64; 2],
    /// What its coding found out about its elements, in words.
    pub found: Option<String>,
}

/// The tensors of a packed file, with what was found out about them.
///
/// # Errors
/// Files that cannot be read, and damaged heads.
pub fn packed_records(path: &Path) -> Result<Vec<PackedRecord>> {
    let packed = Packed::open(path)?;
    let mut all = Vec::new();
    for (file, entry) in packed.files().iter().zip(&packed.head.files) {
        let names = packed.names(file);
        for n in file.records.clone() {
            let record = &packed.head.records[n];
            let found = match record.stored {
                Stored::Plain { .. } => None,
                Stored::Equal { to } => Some(format!("equal to {}", packed.name(to))),
                Stored::Coded { .. } => {
                    let stored = packed.stored(n)?;
                    CodedTensor::parse(&stored).map_err(|e| packed.codec(n, e))?.structure()
                }
            };
            all.push(PackedRecord {
                file: entry.name.clone(),
                tensor: names.get(n - file.records.start).cloned().unwrap_or_else(|| "bytes".into()),
                bytes: [record.bytes, record.stored_bytes()],
                found,
            });
        }
    }
    Ok(all)
}

pub(super) fn truncate(digest: &blake3::Hasher) -> [u8; 16] {
    digest.finalize().as_bytes()[..16].try_into().expect("32 bytes")
}

/// An open packed file with a checked head.
pub(super) struct Packed<'a> {
    path: &'a Path,
    file: File,
    size: u64,
    pub head: Head,
    /// Where each record's bytes begin.
    places: Vec<u64>,
}

/// A file in a packed file.
pub(super) struct PackedEntry {
    number: usize,
    records: std::ops::Range<usize>,
}

impl<'a> Packed<'a> {
    pub fn open(path: &'a Path) -> Result<Self> {
        let wrong = |reason| CheckpointError::file(path, reason);
        let framed = FRAME.open(path)?;
        let mut head = Head::default();
        let mut decoder = Decoder::new(&framed.head);
        head.code(&mut decoder, framed.version).map_err(wrong)?;
        let mut places = Vec::with_capacity(head.records.len());
        let mut at = Some(Frame::START);
        for record in &head.records {
            places.push(at.unwrap_or(0));
            at = at.and_then(|at| at.checked_add(record.stored_bytes()));
        }
        if !decoder.finish() || at != Some(Frame::START + framed.blobs()) {
            return Err(wrong(FileError::HeadMismatch));
        }
        Ok(Self { path, size: framed.size, file: framed.file, head, places })
    }

    pub fn summary(&self) -> PackSummary {
        let (files, records) = (&self.head.files, &self.head.records);
        let sum = |records: &mut dyn Iterator<Item = &Record>| records.map(|r| r.bytes).sum::<u64>();
        let count = |m: Metadata| -> u64 {
            m.tensors().values().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
        };
        PackSummary {
            original: files.iter().map(|f| f.prefix.len() as u64).sum::<u64>() + sum(&mut records.iter()),
            packed: self.size,
            elements: files.iter().filter_map(metadata).map(count).sum(),
            files: self.head.directory.then_some(files.len()),
            equal: sum(&mut records.iter().filter(|r| matches!(r.stored, Stored::Equal { .. }))),
            left_out: Vec::new(),
        }
    }

    pub fn files(&self) -> Vec<PackedEntry> {
        let mut first = 0;
        let range = |(number, entry): (usize, &Entry)| {
            let records = first..first + entry.records;
            first = records.end;
            PackedEntry { number, records }
        };
        self.head.files.iter().enumerate().map(range).collect()
    }

    /// Bytes of a restored file.
    pub fn bytes(&self, file: &PackedEntry) -> u64 {
        let records = &self.head.records[file.records.clone()];
        self.head.files[file.number].prefix.len() as u64 + records.iter().map(|r| r.bytes).sum::<u64>()
    }

    /// Names of the tensors of a file's records, in order; none of a file without any.
    fn names(&self, file: &PackedEntry) -> Vec<String> {
        let Some(metadata) = metadata(&self.head.files[file.number]) else { return Vec::new() };
        let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
        tensors.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then_with(|| a.0.cmp(&b.0)));
        tensors.into_iter().map(|t| t.0).collect()
    }

    /// Name of the tensor that record `n` holds, after its file's where there are several.
    fn name(&self, n: usize) -> String {
        let files = self.files();
        let Some(file) = files.iter().find(|file| file.records.contains(&n)) else { return format!("record {n}") };
        let tensor = self.names(file).get(n - file.records.start).cloned().unwrap_or(format!("record {n}"));
        match self.head.directory {
            true => format!("{tensor} of {}", self.head.files[file.number].name),
            false => tensor,
        }
    }

    pub fn restore_all(&self, on_bytes: OnBytes) -> Result<()> {
        let mut done = 0;
        for file in self.files() {
            self.restore(&file, &|bytes| on_bytes(done + bytes), &mut |_| Ok(()))?;
            done += self.bytes(&file);
        }
        Ok(())
    }

    pub fn restore(
        &self,
        file: &PackedEntry,
        on_bytes: OnBytes,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let entry = &self.head.files[file.number];
        let mut digest = blake3::Hasher::new();
        digest.update(&entry.prefix);
        write(&entry.prefix)?;
        let mut done = entry.prefix.len() as u64;
        for n in file.records.clone() {
            let bytes = self.decode(n)?;
            digest.update(&bytes);
            write(&bytes)?;
            done += bytes.len() as u64;
            on_bytes(done);
        }
        match truncate(&digest) == entry.digest {
            true => Ok(()),
            false => Err(CheckpointError::file(self.path, FileError::Restored)),
        }
    }

    fn stored(&self, n: usize) -> Result<Vec<u8>> {
        let mut stored = vec![0; self.head.records[n].stored_bytes() as usize];
        self.file.read_exact_at(&mut stored, self.places[n]).at(self.path)?;
        Ok(stored)
    }

    fn codec(&self, n: usize, source: waterfill_codec::CodecError) -> CheckpointError {
        CheckpointError::Codec { path: self.path.into(), tensor: self.name(n), source: Box::new(source) }
    }

    fn decode(&self, n: usize) -> Result<Vec<u8>> {
        let record = &self.head.records[n];
        let wrong = |reason| CheckpointError::tensor(self.path, self.name(n), reason);
        match record.stored {
            // The head refuses others than those with bytes of their own.
            Stored::Equal { to } => self.decode(to),
            Stored::Plain { check } => {
                let stored = self.stored(n)?;
                match check_of(&[&stored]) {
                    computed if computed == check => Ok(stored),
                    computed => Err(wrong(TensorError::StoredCheck { found: check, computed })),
                }
            }
            Stored::Coded { .. } => {
                let stored = self.stored(n)?;
                let coded = CodedTensor::parse(&stored).map_err(|e| self.codec(n, e))?;
                let length = coded.bytes(coded.header().rows) as u64;
                if length != record.bytes {
                    return Err(wrong(TensorError::DecodedSize { found: length, expected: record.bytes }));
                }
                Ok(decode_parallel(&coded).map_err(|e| self.codec(n, e))?.0)
            }
        }
    }
}

/// The safetensors header of a file; `None` of other files.
fn metadata(entry: &Entry) -> Option<Metadata> {
    serde_json::from_slice(entry.prefix.get(8..)?).ok()
}
