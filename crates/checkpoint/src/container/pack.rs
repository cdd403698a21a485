//! Packing a safetensors file without loss, and back to the same bytes (section 11 of
//! `docs/BITSTREAM.md`).
//!
//! ```text
//! "WFPK"  4        magic
//! version 4        1
//! blobs            the records' data, one after the other
//! head             one rANS stream: what the file was, and a table of records
//! length  8        of the head
//! check   8        BLAKE3 of magic, version, head and length, truncated
//! ```
//!
//! Records cover the file's data in order; one is a coded tensor, or bytes as they are with a check
//! of their own. The table comes last, so that writing needs one pass.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::Metadata;
use waterfill_codec::CodedTensor;
use waterfill_codec::entropy::adaptive_rans::{Decoder, Encoder};
use waterfill_codec::entropy::models::Coder;
use waterfill_codec::syntax::header::check_of;
use waterfill_codec::syntax::text::code_text;

pub use crate::container::frame::OnBytes;
use crate::container::frame::{Frame, Framed};
use crate::container::source::{Record, Source};
use crate::error::{AtPath, CheckpointError, FileError, Result, TensorError};
use crate::parallel::decode_parallel;
use crate::safetensors_file::MAX_HEADER;
use crate::whole::{each_part, write_whole};

const FRAME: Frame = Frame { magic: *b"WFPK", version: 1, kind: "packed file" };
/// Most records; a safetensors header of [`MAX_HEADER`] names fewer tensors.
const MAX_RECORDS: u64 = 4_000_000;

/// Head of a packed file.
#[derive(Debug, Default)]
struct Head {
    /// First bytes of the file: header length and header.
    prefix: Vec<u8>,
    /// BLAKE3 of the whole file, truncated.
    digest: [u8; 16],
    records: Vec<Record>,
}

/// Sizes of a packed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackSummary {
    /// Bytes of the safetensors file.
    pub original: u64,
    /// Bytes of the packed file.
    pub packed: u64,
    /// Elements of all tensors; of packed four-bit types as stored.
    pub elements: u64,
}

/// Packs the safetensors file `from` into `to`, which is created when it has been read back. Memory: one tensor for each
/// thread. `on_bytes` counts every byte twice, packed and read back.
///
/// # Errors
/// Files that cannot be read or written, and files that are not safetensors.
pub fn pack(from: &Path, to: &Path, on_bytes: OnBytes) -> Result<PackSummary> {
    let source = Source::open(from)?;
    let write = |out: &mut dyn Write| {
        let mut head = Head { prefix: source.prefix.clone(), ..Head::default() };
        let mut digest = blake3::Hasher::new();
        digest.update(&source.prefix);
        FRAME.begin(out, to)?;
        let mut done = source.prefix.len() as u64;
        // As many at once as there are threads, written in order.
        for group in source.pieces.chunks(rayon::current_num_threads().max(1)) {
            let coded = group.par_iter().map(|piece| source.code(piece)).collect::<Result<Vec<_>>>()?;
            for (piece, (record, bytes, original)) in group.iter().zip(coded) {
                digest.update(&original);
                out.write_all(&bytes).at(to)?;
                head.records.push(record);
                done += piece.bytes;
                on_bytes(done);
            }
        }
        head.digest = truncate(&digest);
        let mut encoder = Encoder::default();
        head.code(&mut encoder).expect("limits were checked on opening");
        FRAME.end(out, &encoder.finish(), to)
    };
    write_whole(to, write, |place| {
        Packed::open(place)?.restore(&|bytes| on_bytes(source.size + bytes), &mut |_| Ok(()))
    })?;
    let packed = to.metadata().at(to)?.len();
    Ok(PackSummary { original: source.size, packed, elements: source.elements })
}

/// Restores the file that `from` was packed from into `to`, which is created. Memory: one tensor,
/// coded and decoded.
///
/// # Errors
/// Damage, named by tensor and slice; files that cannot be read or written.
pub fn unpack(from: &Path, to: &Path, on_bytes: OnBytes) -> Result<PackSummary> {
    let packed = Packed::open(from)?;
    let write = |out: &mut dyn Write| packed.restore(on_bytes, &mut |bytes| out.write_all(bytes).at(to));
    write_whole(to, write, |place| {
        let mut digest = blake3::Hasher::new();
        each_part(place, &mut |bytes| {
            digest.update(bytes);
            Ok(())
        })?;
        match truncate(&digest) == packed.head.digest {
            true => Ok(()),
            false => Err(CheckpointError::file(place, FileError::Written)),
        }
    })?;
    Ok(packed.summary())
}

/// Checks everything in a packed file, the restored file's digest included.
///
/// # Errors
/// The first damage found.
pub fn verify_packed(path: &Path) -> Result<PackSummary> {
    let packed = Packed::open(path)?;
    packed.restore(&|_| {}, &mut |_| Ok(()))?;
    Ok(packed.summary())
}

/// True when a file begins as packed files do.
pub fn is_packed(path: &Path) -> bool {
    FRAME.is(path)
}

impl Head {
    fn code<C: Coder>(&mut self, coder: &mut C) -> std::result::Result<(), FileError> {
        let prefix = code_u64(coder, self.prefix.len() as u64);
        if prefix > MAX_HEADER + 8 {
            let (field, most) = ("bytes of header", MAX_HEADER + 8);
            return Err(FileError::HeadLimit { field, found: prefix, most });
        }
        code_text(coder, &mut self.prefix, prefix as usize);
        self.digest.iter_mut().for_each(|b| *b = coder.raw(8, (*b).into()) as u8);
        let count = code_u64(coder, self.records.len() as u64);
        if count > MAX_RECORDS {
            return Err(FileError::HeadLimit { field: "records", found: count, most: MAX_RECORDS });
        }
        for n in 0..count as usize {
            if coder.exhausted() {
                return Err(FileError::HeadEnds { record: n, records: count });
            }
            if self.records.len() <= n {
                self.records.push(Record::default());
            }
            let record = &mut self.records[n];
            record.coded = coder.raw(1, record.coded.into()) == 1;
            record.bytes = code_u64(coder, record.bytes);
            record.stored = if record.coded { code_u64(coder, record.stored) } else { record.bytes };
            if !record.coded {
                record.check = u64::from(coder.raw_wide(32, record.check as u32))
                    | u64::from(coder.raw_wide(32, (record.check >> 32) as u32)) << 32;
            }
        }
        Ok(())
    }
}

/// A number: its length in bits, then its bits below the first.
fn code_u64<C: Coder>(coder: &mut C, value: u64) -> u64 {
    let bits = coder.raw(7, (u64::BITS - value.leading_zeros()).min(64)).min(64);
    if bits < 2 {
        return bits.into();
    }
    let low = bits - 1;
    let rest = value & ((1 << low) - 1);
    let (first, second) = (low.min(32), low.saturating_sub(32));
    let first_part = coder.raw_wide(first, (rest & u64::from(u32::MAX) & ((1u64 << first) - 1)) as u32);
    let second_part = coder.raw_wide(second, (rest >> 32) as u32);
    1 << low | u64::from(second_part) << 32 | u64::from(first_part)
}

fn truncate(digest: &blake3::Hasher) -> [u8; 16] {
    digest.finalize().as_bytes()[..16].try_into().expect("32 bytes")
}

/// An open packed file with a checked head.
struct Packed<'a> {
    path: &'a Path,
    file: File,
    size: u64,
    head: Head,
}

impl<'a> Packed<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let wrong = |reason| CheckpointError::file(path, reason);
        let framed = FRAME.open(path)?;
        let blobs = framed.blobs();
        let Framed { file, size, head: coded } = framed;
        let mut head = Head::default();
        let mut decoder = Decoder::new(&coded);
        head.code(&mut decoder).map_err(wrong)?;
        let stored = head.records.iter().try_fold(0u64, |sum, r| sum.checked_add(r.stored));
        if !decoder.finish() || stored != Some(blobs) {
            return Err(wrong(FileError::HeadMismatch));
        }
        Ok(Self { path, file, size, head })
    }

    fn summary(&self) -> PackSummary {
        let original = self.head.prefix.len() as u64 + self.head.records.iter().map(|r| r.bytes).sum::<u64>();
        let metadata: Option<Metadata> = self.metadata();
        let count =
            |m: Metadata| m.tensors().values().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum();
        PackSummary { original, packed: self.size, elements: metadata.map_or(0, count) }
    }

    fn metadata(&self) -> Option<Metadata> {
        serde_json::from_slice(self.head.prefix.get(8..)?).ok()
    }

    /// Name of the tensor that record `n` holds.
    fn name(&self, n: usize) -> String {
        let Some(metadata) = self.metadata() else { return format!("record {n}") };
        let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
        tensors.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then_with(|| a.0.cmp(&b.0)));
        tensors.get(n).map_or(format!("record {n}"), |t| t.0.clone())
    }

    fn restore(&self, on_bytes: OnBytes, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut digest = blake3::Hasher::new();
        digest.update(&self.head.prefix);
        write(&self.head.prefix)?;
        let mut at = 8;
        let mut done = self.head.prefix.len() as u64;
        for (n, record) in self.head.records.iter().enumerate() {
            let mut stored = vec![0; record.stored as usize];
            self.file.read_exact_at(&mut stored, at).at(self.path)?;
            at += record.stored;
            let bytes = self.decode(n, record, stored)?;
            digest.update(&bytes);
            write(&bytes)?;
            done += record.bytes;
            on_bytes(done);
        }
        match truncate(&digest) == self.head.digest {
            true => Ok(()),
            false => Err(CheckpointError::file(self.path, FileError::Restored)),
        }
    }

    fn decode(&self, n: usize, record: &Record, stored: Vec<u8>) -> Result<Vec<u8>> {
        let wrong = |reason| CheckpointError::tensor(self.path, self.name(n), reason);
        if !record.coded {
            return match check_of(&[&stored]) {
                computed if computed == record.check => Ok(stored),
                computed => Err(wrong(TensorError::StoredCheck { found: record.check, computed })),
            };
        }
        let failed =
            |source| CheckpointError::Codec { path: self.path.into(), tensor: self.name(n), source: Box::new(source) };
        let coded = CodedTensor::parse(&stored).map_err(failed)?;
        let length = coded.bytes(coded.header().rows) as u64;
        if length != record.bytes {
            return Err(wrong(TensorError::DecodedSize { found: length, expected: record.bytes }));
        }
        Ok(decode_parallel(&coded).map_err(failed)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_back::tests::{damaging, flip};

    #[test]
    fn a_file_that_is_damaged_while_it_is_written_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let [plain, packed, back] = ["a.safetensors", "a.wfp", "b.safetensors"].map(|name| dir.path().join(name));
        let values: Vec<u8> = (0..4000).flat_map(|i| ((i % 77) as f32).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![40, 100], &values).unwrap();
        safetensors::serialize_to_file([("w", view)], None, &plain).unwrap();
        for share in [0.0, 0.3, 0.99] {
            let found = damaging(move |place| flip(place, share), || pack(&plain, &packed, &|_| {}));
            let message = found.unwrap_err().to_string();
            assert!(message.contains("a.wfp: not written"), "{message}");
        }
        pack(&plain, &packed, &|_| {}).unwrap();
        let found = damaging(|place| flip(place, 0.5), || unpack(&packed, &back, &|_| {}));
        let message = found.unwrap_err().to_string();
        assert!(message.contains("b.safetensors: not written") && message.contains("other bytes"), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing unfinished is left");
    }
}
