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
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::Metadata;
use waterfill_codec::header::check_of;
use waterfill_codec::rans::{Decoder, Encoder};
use waterfill_codec::symbol::Coder;
use waterfill_codec::text::code_text;
use waterfill_codec::{CodedTensor, Dtype, Elements, encode_lossless};

use crate::Element;
use crate::decode::decode_parallel;
use crate::error::{CheckpointError, Result};
use crate::frame::{Frame, Framed};

const FRAME: Frame = Frame { magic: *b"WFPK", version: 1, what: "packed file" };
/// Largest safetensors header accepted, the limit of the reference implementation.
const MAX_PREFIX: u64 = 100_000_000;
/// Most records; a safetensors header of [`MAX_PREFIX`] names fewer tensors.
const MAX_RECORDS: u64 = 4_000_000;
/// Tensors shorter than this are not worth a coded tensor's header.
const LEAST_BYTES: usize = 256;

/// A piece of the file's data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Record {
    /// Whether it is a coded tensor.
    pub(crate) coded: bool,
    /// Bytes in the file.
    pub(crate) bytes: u64,
    /// Bytes in the packed file.
    pub(crate) stored: u64,
    /// Check of bytes stored as they are.
    pub(crate) check: u64,
}

/// What the packed file says of itself.
#[derive(Debug, Default)]
struct Head {
    /// The file's first bytes: header length and header.
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

/// Called with the bytes done so far.
pub type OnBytes<'a> = &'a (dyn Fn(u64) + Sync);

/// Packs the safetensors file `from` into `to`, which is created. Memory: one tensor for each thread.
///
/// # Errors
/// Files that cannot be read or written, and files that are not safetensors.
pub fn pack(from: &Path, to: &Path, on_bytes: OnBytes) -> Result<PackSummary> {
    let source = Source::open(from)?;
    write_whole(to, |out| {
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
                out.write_all(&bytes).map_err(CheckpointError::io(to))?;
                head.records.push(record);
                done += piece.bytes;
                on_bytes(done);
            }
        }
        head.digest = truncate(&digest);
        let mut encoder = Encoder::default();
        head.code(&mut encoder).expect("limits were checked on opening");
        FRAME.end(out, &encoder.finish(), to)
    })?;
    let packed = to.metadata().map_err(CheckpointError::io(to))?.len();
    Ok(PackSummary { original: source.size, packed, elements: source.elements })
}

/// Restores the file that `from` was packed from into `to`, which is created. Memory: one tensor,
/// coded and decoded.
///
/// # Errors
/// Damage, named by tensor and slice; files that cannot be read or written.
pub fn unpack(from: &Path, to: &Path, on_bytes: OnBytes) -> Result<PackSummary> {
    let packed = Packed::open(from)?;
    write_whole(to, |out| {
        packed.restore(on_bytes, &mut |bytes| out.write_all(bytes).map_err(CheckpointError::io(to)))
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

/// Writes a file that appears under its name only when it is whole.
pub(crate) fn write_whole(to: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    if to.exists() {
        return Err(CheckpointError::file(to, "exists already; choose another name or remove it"));
    }
    let parent = to.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".unfinished-").tempfile_in(parent).map_err(CheckpointError::io(to))?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    write(&mut out)?;
    out.flush().map_err(CheckpointError::io(to))?;
    drop(out);
    file.as_file().sync_all().map_err(CheckpointError::io(to))?;
    file.persist_noclobber(to).map_err(|e| CheckpointError::io(to)(e.error))?;
    // A temporary file is private; what is kept has the usual rights.
    let usual = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(to, usual).map_err(CheckpointError::io(to))
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
    path: &'a Path,
    file: File,
    pub(crate) size: u64,
    pub(crate) prefix: Vec<u8>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) elements: u64,
}

impl<'a> Source<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(CheckpointError::io(path))?;
        let size = file.metadata().map_err(CheckpointError::io(path))?.len();
        let mut prefix = vec![0; 8];
        let wrong = |reason: String| CheckpointError::file(path, reason);
        file.read_exact_at(&mut prefix, 0)
            .map_err(|_| wrong(format!("{size} bytes are too few for a safetensors file")))?;
        let length = u64::from_le_bytes(prefix[..8].try_into().expect("eight bytes"));
        if length > MAX_PREFIX || length + 8 > size {
            return Err(wrong(format!("truncated or not safetensors: header of {length} bytes in a file of {size}")));
        }
        prefix.resize(8 + length as usize, 0);
        file.read_exact_at(&mut prefix[8..], 8).map_err(CheckpointError::io(path))?;
        let metadata: Metadata =
            serde_json::from_slice(&prefix[8..]).map_err(|e| wrong(format!("malformed safetensors header: {e}")))?;
        let expected = prefix.len() as u64 + metadata.data_len() as u64;
        if expected != size {
            return Err(wrong(format!("{size} bytes, its header describes {expected}")));
        }
        let elements = metadata.tensors().values().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum();
        let pieces = pieces_of(&prefix).map_err(wrong)?;
        Ok(Self { path, file, size, prefix, pieces, elements })
    }

    /// Bytes of a piece.
    pub(crate) fn read(&self, piece: &Piece) -> Result<Vec<u8>> {
        let mut bytes = vec![0; piece.bytes as usize];
        self.file.read_exact_at(&mut bytes, piece.start).map_err(CheckpointError::io(self.path))?;
        Ok(bytes)
    }

    /// Record, stored bytes and original bytes of a piece.
    pub(crate) fn code(&self, piece: &Piece) -> Result<(Record, Vec<u8>, Vec<u8>)> {
        let bytes = self.read(piece)?;
        let failed = |source| CheckpointError::Codec { path: self.path.into(), tensor: piece.name.clone(), source };
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
        let (original, stored) = (piece.bytes, best.as_ref().map_or(piece.bytes, |b| b.len() as u64));
        match best.filter(|b| b.len() < bytes.len()) {
            Some(coded) => {
                // What is written is read back: the original may be deleted next.
                CodedTensor::parse(&coded).and_then(|c| c.verify()).map_err(failed)?;
                Ok((Record { coded: true, bytes: original, stored, check: 0 }, coded, bytes))
            }
            None => {
                let record = Record { coded: false, bytes: original, stored: original, check: check_of(&[&bytes]) };
                Ok((record, bytes.clone(), bytes))
            }
        }
    }
}

/// Tensors of a file that begins with `prefix`, in their order; or what is wrong with it.
pub(crate) fn pieces_of(prefix: &[u8]) -> std::result::Result<Vec<Piece>, String> {
    let metadata: Metadata = serde_json::from_slice(prefix.get(8..).unwrap_or_default())
        .map_err(|e| format!("malformed safetensors header: {e}"))?;
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

/// How a tensor's bytes are looked at, and whether as nibbles too; `None` where no shape fits.
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

impl Head {
    fn code<C: Coder>(&mut self, coder: &mut C) -> std::result::Result<(), String> {
        let prefix = code_u64(coder, self.prefix.len() as u64);
        if prefix > MAX_PREFIX + 8 {
            return Err(format!("head: {prefix} bytes of header, expected at most {}", MAX_PREFIX + 8));
        }
        code_text(coder, &mut self.prefix, prefix as usize);
        self.digest.iter_mut().for_each(|b| *b = coder.raw(8, (*b).into()) as u8);
        let count = code_u64(coder, self.records.len() as u64);
        if count > MAX_RECORDS {
            return Err(format!("head: {count} records, expected at most {MAX_RECORDS}"));
        }
        for n in 0..count as usize {
            if coder.exhausted() {
                return Err(format!("head: ends before record {n} of {count}"));
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

/// An opened packed file whose head has been checked.
struct Packed<'a> {
    path: &'a Path,
    file: File,
    size: u64,
    head: Head,
}

impl<'a> Packed<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let wrong = |reason: String| CheckpointError::file(path, reason);
        let framed = FRAME.open(path)?;
        let blobs = framed.blobs();
        let Framed { file, size, head: coded } = framed;
        let mut head = Head::default();
        let mut decoder = Decoder::new(&coded);
        head.code(&mut decoder).map_err(&wrong)?;
        let stored = head.records.iter().try_fold(0u64, |sum, r| sum.checked_add(r.stored));
        if !decoder.finish() || stored != Some(blobs) {
            return Err(wrong("the head does not describe the file".into()));
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
            self.file.read_exact_at(&mut stored, at).map_err(CheckpointError::io(self.path))?;
            at += record.stored;
            let bytes = self.decode(n, record, stored)?;
            digest.update(&bytes);
            write(&bytes)?;
            done += record.bytes;
            on_bytes(done);
        }
        match truncate(&digest) == self.head.digest {
            true => Ok(()),
            false => Err(CheckpointError::file(self.path, "the restored file does not match its digest")),
        }
    }

    fn decode(&self, n: usize, record: &Record, stored: Vec<u8>) -> Result<Vec<u8>> {
        let wrong = |reason: String| CheckpointError::Tensor { path: self.path.into(), tensor: self.name(n), reason };
        if !record.coded {
            return match check_of(&[&stored]) {
                computed if computed == record.check => Ok(stored),
                computed => {
                    let found = record.check;
                    Err(wrong(format!("damaged: its check is {found:016x}, the bytes give {computed:016x}")))
                }
            };
        }
        let failed = |source| CheckpointError::Codec { path: self.path.into(), tensor: self.name(n), source };
        let coded = CodedTensor::parse(&stored).map_err(failed)?;
        let length = coded.bytes(coded.header().rows) as u64;
        if length != record.bytes {
            return Err(wrong(format!("{length} bytes in the coded tensor, the head says {}", record.bytes)));
        }
        Ok(decode_parallel(&coded).map_err(failed)?.0)
    }
}
