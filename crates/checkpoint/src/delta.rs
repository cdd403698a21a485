//! What a fine-tune changed: a directory that gives, with its base, the fine-tune's files back byte for byte
//! (section 11.1 of `docs/BITSTREAM.md`).
//!
//! `delta.json` names every file with its digest, and the base's files that are needed with theirs. A file that the base
//! has too takes no room; a safetensors file is `NAME.wfd`; any other is stored as it is. In a `.wfd` a tensor is the
//! base's, a difference from it, coded without it, or as it is, whichever is shortest.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_codec::difference::{SLICE, decode_difference, encode_difference};
use waterfill_codec::header::check_of;
use waterfill_codec::rans::{Decoder, Encoder};
use waterfill_codec::symbol::Coder;
use waterfill_codec::text::code_text;
use waterfill_codec::{CodedTensor, Dtype};

use crate::decode::decode_parallel;
use crate::error::{CheckpointError, Result};
use crate::frame::{Frame, Framed};
use crate::pack::{OnBytes, Piece, Source, write_whole};

const VERSION: u32 = 1;
const FRAME: Frame = Frame { magic: *b"WFDL", version: VERSION, what: "delta" };
/// Largest head, before it is coded.
const MAX_HEAD: u32 = 400_000_000;
/// Name of the list of files.
const LIST: &str = "delta.json";
/// End of names of coded files.
const END: &str = ".wfd";

/// `delta.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    version: u32,
    /// Digests of the base's files that are needed.
    base: BTreeMap<String, String>,
    files: BTreeMap<String, Entry>,
}

/// A file of the fine-tune.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: Kind,
    bytes: u64,
    digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// The base has the same under the same name.
    Same,
    /// Stored as it is.
    Stored,
    /// A `.wfd`.
    Delta,
}

/// What a `.wfd` says of itself, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    /// The safetensors header.
    header: String,
    /// Tensors in the file's order.
    tensors: Vec<Tensor>,
}

/// How a tensor is stored, and in how many bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Tensor {
    /// The base's.
    Same,
    /// Streams of differences from the base's.
    Difference(Vec<u64>),
    /// A coded tensor.
    Coded(u64),
    /// A refinement of the base's values.
    Refined(u64),
    /// Its bytes, and their check.
    Plain(u64, u64),
}

/// A tensor coded with loss.
pub enum Lossy {
    /// As a refinement of the base's values.
    Refined(Vec<u8>),
    /// Without the base.
    Coded(Vec<u8>),
}

/// Gives what a tensor is coded as, or nothing where it is to be kept without loss. The bytes are those that the base
/// has in its place.
pub type CodeLossy<'a> = &'a (dyn Fn(&str, Option<Vec<u8>>) -> Result<Option<Lossy>> + Sync);

impl Tensor {
    fn stored(&self) -> Option<u64> {
        match self {
            Self::Same => Some(0),
            Self::Difference(streams) => streams.iter().try_fold(0u64, |sum, n| sum.checked_add(*n)),
            Self::Coded(n) | Self::Refined(n) | Self::Plain(n, _) => Some(*n),
        }
    }
}

/// Sizes of a delta.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DeltaSummary {
    /// Bytes of the fine-tune's files.
    pub tuned: u64,
    /// Bytes of the delta.
    pub delta: u64,
    /// Elements of its tensors.
    pub elements: u64,
    /// Tensors by how they are stored: same, difference or refinement, coded, plain.
    pub tensors: [usize; 4],
}

/// The base's tensors by name.
struct Base<'a> {
    sources: &'a [Source<'a>],
    tensors: BTreeMap<&'a str, (usize, &'a Piece)>,
}

impl<'a> Base<'a> {
    fn new(sources: &'a [Source<'a>]) -> Self {
        let pieces = sources.iter().enumerate().flat_map(|(n, s)| s.pieces.iter().map(move |p| (n, p)));
        Self { sources, tensors: pieces.map(|(n, p)| (p.name.as_str(), (n, p))).collect() }
    }

    /// Bytes of the tensor that a piece is compared with: of the same name, type and size.
    fn read(&self, like: &Piece) -> Result<Option<Vec<u8>>> {
        match self.tensors.get(like.name.as_str()) {
            Some((n, piece)) if piece.bytes == like.bytes && kind(piece) == kind(like) => {
                self.sources[*n].read(piece).map(Some)
            }
            _ => Ok(None),
        }
    }
}

fn kind(piece: &Piece) -> Option<Dtype> {
    piece.elements.as_ref().map(|e| e.dtype)
}

fn digest_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(CheckpointError::io(path))?).map_err(CheckpointError::io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Names of the files directly in a directory, sorted.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(CheckpointError::io(dir))? {
        let entry = entry.map_err(CheckpointError::io(dir))?;
        if entry.path().is_file() {
            let name = entry.file_name().into_string();
            names.push(name.map_err(|name| CheckpointError::file(dir, format!("{name:?} is no UTF-8")))?);
        }
    }
    names.sort();
    Ok(names)
}

fn is_safetensors(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Creates a directory that is not there.
fn create(dir: &Path) -> Result<()> {
    if dir.exists() {
        return Err(CheckpointError::file(dir, "exists already; choose another name or remove it"));
    }
    std::fs::create_dir_all(dir).map_err(CheckpointError::io(dir))
}

/// Writes what the directory `tuned` has changed from the directory `base` into `out`, which is created.
///
/// # Errors
/// Files that cannot be read or written, and safetensors files that are none.
pub fn delta(base: &Path, tuned: &Path, out: &Path, on_bytes: OnBytes) -> Result<DeltaSummary> {
    delta_with(base, tuned, out, &|_, _| Ok(None), on_bytes)
}

/// As [`delta`], with some tensors coded with loss: what is restored has their decoded values.
///
/// # Errors
/// As [`delta`], and those of `lossy`.
pub fn delta_with(base: &Path, tuned: &Path, out: &Path, lossy: CodeLossy, on_bytes: OnBytes) -> Result<DeltaSummary> {
    let (base_files, tuned_files) = (files(base)?, files(tuned)?);
    if !tuned_files.iter().any(|name| is_safetensors(name)) {
        return Err(CheckpointError::file(tuned, "has no safetensors files"));
    }
    create(out)?;
    let shards: Vec<PathBuf> = base_files.iter().filter(|n| is_safetensors(n)).map(|n| base.join(n)).collect();
    let sources = shards.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>>>()?;
    let known = Base::new(&sources);
    // Checkpoints are large: each of the base's files is read for its digest once.
    let mut digests: BTreeMap<&str, String> = BTreeMap::new();
    for name in base_files.iter().filter(|n| is_safetensors(n) || tuned_files.contains(n)) {
        digests.insert(name, digest_of(&base.join(name))?);
    }
    let mut list = List { version: VERSION, base: BTreeMap::new(), files: BTreeMap::new() };
    let mut summary = DeltaSummary::default();
    for name in &tuned_files {
        let path = tuned.join(name);
        let mut digest = digest_of(&path)?;
        let bytes = path.metadata().map_err(CheckpointError::io(&path))?.len();
        let same = digests.get(name.as_str()) == Some(&digest);
        let kind = match same {
            true => Kind::Same,
            false if is_safetensors(name) => {
                let source = Source::open(&path)?;
                let to = out.join(format!("{name}{END}"));
                if write_delta(&known, &source, &to, lossy, &mut summary, on_bytes)? {
                    // What will be restored is another file.
                    let place = tempfile::tempdir_in(out).map_err(CheckpointError::io(out))?;
                    let restored = place.path().join(name);
                    restore(&known, &to, &restored, &mut DeltaSummary::default(), &|_| {})?;
                    digest = digest_of(&restored)?;
                }
                Kind::Delta
            }
            false => {
                std::fs::copy(&path, out.join(name)).map_err(CheckpointError::io(&path))?;
                Kind::Stored
            }
        };
        if kind == Kind::Same {
            list.base.insert(name.clone(), digest.clone());
        }
        summary.tuned += bytes;
        list.files.insert(name.clone(), Entry { kind, bytes, digest });
    }
    if list.files.values().any(|e| e.kind == Kind::Delta) {
        for name in base_files.iter().filter(|n| is_safetensors(n)) {
            list.base.insert(name.clone(), digests[name.as_str()].clone());
        }
    }
    let text = serde_json::to_string_pretty(&list).expect("plain data") + "\n";
    let path = out.join(LIST);
    std::fs::write(&path, text).map_err(CheckpointError::io(&path))?;
    for name in files(out)? {
        summary.delta += out.join(&name).metadata().map_err(CheckpointError::io(out.join(&name)))?.len();
    }
    Ok(summary)
}

/// Writes the delta of a file; whether something of it was coded with loss.
fn write_delta(
    base: &Base,
    source: &Source,
    to: &Path,
    lossy: CodeLossy,
    summary: &mut DeltaSummary,
    on_bytes: OnBytes,
) -> Result<bool> {
    let mut loses = false;
    let header = String::from_utf8(source.prefix[8..].to_vec())
        .map_err(|_| CheckpointError::file(to, "the safetensors header is no UTF-8"))?;
    let mut head = Head { header, tensors: Vec::new() };
    summary.elements += source.elements;
    write_whole(to, |out| {
        FRAME.begin(out, to)?;
        for group in source.pieces.chunks(rayon::current_num_threads().max(1)) {
            let coded = group.par_iter().map(|piece| code(base, source, lossy, piece)).collect::<Result<Vec<_>>>()?;
            for (piece, (tensor, stored, lost)) in group.iter().zip(coded) {
                loses |= lost;
                let kind = match &tensor {
                    Tensor::Same => 0,
                    Tensor::Difference(_) | Tensor::Refined(_) => 1,
                    Tensor::Coded(_) => 2,
                    Tensor::Plain(..) => 3,
                };
                summary.tensors[kind] += 1;
                head.tensors.push(tensor);
                stored.iter().try_for_each(|part| out.write_all(part)).map_err(CheckpointError::io(to))?;
                on_bytes(piece.bytes);
            }
        }
        let mut text = serde_json::to_vec(&head).expect("plain data");
        let mut encoder = Encoder::default();
        encoder.raw_wide(32, text.len() as u32);
        let length = text.len();
        code_text(&mut encoder, &mut text, length);
        FRAME.end(out, &encoder.finish(), to)
    })?;
    Ok(loses)
}

/// How a tensor is stored, its bytes, and whether with loss.
fn code(base: &Base, source: &Source, lossy: CodeLossy, piece: &Piece) -> Result<(Tensor, Vec<Vec<u8>>, bool)> {
    let before = base.read(piece)?;
    let bytes = source.read(piece)?;
    if before.as_ref() == Some(&bytes) {
        return Ok((Tensor::Same, vec![], false));
    }
    match lossy(&piece.name, before.clone())? {
        Some(Lossy::Refined(coded)) => return Ok((Tensor::Refined(coded.len() as u64), vec![coded], true)),
        Some(Lossy::Coded(coded)) => return Ok((Tensor::Coded(coded.len() as u64), vec![coded], true)),
        None => {}
    }
    let (record, stored, _) = source.code(piece)?;
    let alone = match record.coded {
        true => Tensor::Coded(stored.len() as u64),
        false => Tensor::Plain(stored.len() as u64, record.check),
    };
    if let (Some(before), Some(dtype)) = (before, kind(piece).filter(|d| d.is_weight())) {
        let failed = |error: waterfill_codec::CodecError| CheckpointError::file(&piece.name, error.to_string());
        let streams = encode_difference(dtype, &before, &bytes).map_err(failed)?;
        let lengths: Vec<u64> = streams.iter().map(|s| s.len() as u64).collect();
        if lengths.iter().sum::<u64>() < stored.len() as u64 {
            // What is written is read back: the fine-tune may be deleted next.
            if decode_streams(dtype, &before, &streams.iter().map(Vec::as_slice).collect::<Vec<_>>()).map_err(failed)?
                != bytes
            {
                return Err(CheckpointError::file(
                    &piece.name,
                    "does not come back from its difference; please report it",
                ));
            }
            return Ok((Tensor::Difference(lengths), streams, false));
        }
    }
    Ok((alone, vec![stored], false))
}

fn decode_streams(
    dtype: Dtype,
    base: &[u8],
    streams: &[&[u8]],
) -> std::result::Result<Vec<u8>, waterfill_codec::CodecError> {
    let mut out = vec![0; base.len()];
    let part = SLICE * dtype.bytes();
    if base.len().div_ceil(part) != streams.len() {
        let (found, expected) = (streams.len(), base.len().div_ceil(part));
        return Err(waterfill_codec::CodecError::Shape { what: "streams", found, expected });
    }
    out.par_chunks_mut(part)
        .zip(base.par_chunks(part))
        .zip(streams)
        .try_for_each(|((out, base), stream)| decode_difference(dtype, base, stream, out))?;
    Ok(out)
}

/// Restores the fine-tune from its base and the delta in `dir` into `out`, which is created.
///
/// # Errors
/// Another base, named by its file; damage, named by file and tensor; files that cannot be read or written.
pub fn apply(base: &Path, dir: &Path, out: &Path, on_bytes: OnBytes) -> Result<DeltaSummary> {
    let path = dir.join(LIST);
    let text = std::fs::read(&path).map_err(CheckpointError::io(&path))?;
    let list: List = serde_json::from_slice(&text).map_err(|e| CheckpointError::file(&path, e.to_string()))?;
    if list.version != VERSION {
        return Err(CheckpointError::file(&path, format!("version {}, this build reads {VERSION}", list.version)));
    }
    let leaves = |name: &&String| name.contains(['/', '\\']) || name.starts_with('.') || name.is_empty();
    if let Some(name) = list.base.keys().chain(list.files.keys()).find(leaves) {
        return Err(CheckpointError::file(&path, format!("file name {name:?} leaves the directory")));
    }
    for (name, expected) in &list.base {
        let file = base.join(name);
        let found = if file.is_file() { Some(digest_of(&file)?) } else { None };
        if found.as_ref() != Some(expected) {
            let found = found.map_or("is not there".to_string(), |d| format!("has digest {}", &d[..16]));
            let reason = format!(
                "{found}, the delta is from a base with {}: another base",
                expected.get(..16).unwrap_or_default()
            );
            return Err(CheckpointError::file(file, reason));
        }
    }
    create(out)?;
    let shards: Vec<PathBuf> = list.base.keys().filter(|n| is_safetensors(n)).map(|n| base.join(n)).collect();
    let sources = shards.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>>>()?;
    let known = Base::new(&sources);
    let mut summary = DeltaSummary::default();
    for (name, entry) in &list.files {
        let to = out.join(name);
        match entry.kind {
            Kind::Same => drop(std::fs::copy(base.join(name), &to).map_err(CheckpointError::io(&to))?),
            Kind::Stored => drop(std::fs::copy(dir.join(name), &to).map_err(CheckpointError::io(dir.join(name)))?),
            Kind::Delta => restore(&known, &dir.join(format!("{name}{END}")), &to, &mut summary, on_bytes)?,
        }
        if digest_of(&to)? != entry.digest {
            return Err(CheckpointError::file(to, "is not what the delta was made from: it or the delta is damaged"));
        }
        summary.tuned += entry.bytes;
    }
    Ok(summary)
}

fn restore(base: &Base, from: &Path, to: &Path, summary: &mut DeltaSummary, on_bytes: OnBytes) -> Result<()> {
    let wrong = |reason: String| CheckpointError::file(from, reason);
    let framed = FRAME.open(from)?;
    let blobs = framed.blobs();
    let Framed { file, size, head: coded } = framed;
    let read = |at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, at).map(|()| bytes).map_err(CheckpointError::io(from))
    };
    let mut decoder = Decoder::new(&coded);
    let bytes = decoder.raw_wide(32, 0);
    // Text takes a hundredth of a bit a byte at the least.
    if bytes > MAX_HEAD || u64::from(bytes) > (coded.len() as u64).saturating_mul(1000) {
        return Err(wrong(format!("a head of {bytes} bytes in {}", coded.len())));
    }
    let mut text = Vec::new();
    code_text(&mut decoder, &mut text, bytes as usize);
    let head: Head = serde_json::from_slice(&text).map_err(|e| wrong(format!("head: {e}")))?;
    let prefix = [&(head.header.len() as u64).to_le_bytes()[..], head.header.as_bytes()].concat();
    // The header as a file of its own size would have it.
    let pieces = crate::pack::pieces_of(&prefix).map_err(|e| wrong(format!("head: {e}")))?;
    let stored = head.tensors.iter().try_fold(0u64, |sum, t| sum.checked_add(t.stored()?));
    if pieces.len() != head.tensors.len() || stored != Some(blobs) || !decoder.finish() {
        return Err(wrong("the head does not describe the file".into()));
    }
    write_whole(to, |out| {
        out.write_all(&prefix).map_err(CheckpointError::io(to))?;
        let mut at = Frame::START;
        for (piece, tensor) in pieces.iter().zip(&head.tensors) {
            let bytes = read(at, tensor.stored().unwrap_or(0))?;
            at += bytes.len() as u64;
            let failed = |source| CheckpointError::Codec { path: from.into(), tensor: piece.name.clone(), source };
            let damaged = |reason: &str| CheckpointError::Tensor {
                path: from.into(),
                tensor: piece.name.clone(),
                reason: reason.into(),
            };
            let before = || base.read(piece)?.ok_or_else(|| damaged("has no counterpart in the base"));
            let restored = match tensor {
                Tensor::Same => before()?,
                Tensor::Difference(lengths) => {
                    let mut rest = bytes.as_slice();
                    let mut streams = Vec::new();
                    for &length in lengths {
                        let (stream, after) = rest.split_at(length as usize);
                        streams.push(stream);
                        rest = after;
                    }
                    let dtype =
                        kind(piece).filter(|d| d.is_weight()).ok_or_else(|| damaged("is of no type of weights"))?;
                    decode_streams(dtype, &before()?, &streams).map_err(failed)?
                }
                Tensor::Coded(_) => {
                    let coded = CodedTensor::parse(&bytes).map_err(failed)?;
                    if coded.bytes(coded.header().rows) as u64 != piece.bytes {
                        return Err(damaged("has another size than its header says"));
                    }
                    decode_parallel(&coded).map_err(failed)?.0
                }
                Tensor::Refined(_) => {
                    let coded = CodedTensor::parse(&bytes).and_then(CodedTensor::refining_plain).map_err(failed)?;
                    let mut values = before()?;
                    coded.refine(&mut values).map_err(failed)?;
                    values
                }
                Tensor::Plain(_, check) if check_of(&[&bytes]) != *check => return Err(damaged("is damaged")),
                Tensor::Plain(..) => bytes,
            };
            if restored.len() as u64 != piece.bytes {
                return Err(damaged("has another size than its header says"));
            }
            out.write_all(&restored).map_err(CheckpointError::io(to))?;
            on_bytes(piece.bytes);
        }
        Ok(())
    })?;
    summary.delta += size;
    Ok(())
}
