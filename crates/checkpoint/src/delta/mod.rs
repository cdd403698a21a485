//! What a fine-tune changed: a directory that gives, with its base, the fine-tune's files back byte for byte
//! (section 11.1 of `docs/BITSTREAM.md`).
//!
//! `delta.json` names every file with its digest, and the base's files that are needed with theirs. A file that the base
//! has too takes no room; a safetensors file is `NAME.wfd`; any other is stored as it is. In a `.wfd` a tensor is the
//! base's, a difference from it, coded without it, or as it is, whichever is shortest.

mod factors;
mod tensor;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_codec::Dtype;
use waterfill_codec::rans::{Decoder, Encoder};
use waterfill_codec::symbol::Coder;
use waterfill_codec::text::code_text;

use crate::error::{CheckpointError, Result};
use crate::frame::{Frame, Framed};
use crate::pack::{OnBytes, Piece, Source, write_whole};

pub use factors::Factors;
use tensor::Tensor;
pub use tensor::{Coders, Lossy};

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

/// Tensors by how they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The base's.
    pub same: usize,
    /// Differences from the base's, or refinements of it.
    pub given: usize,
    /// The base's with a change of low rank.
    pub low_rank: usize,
    /// Without the base.
    pub alone: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { same, given, low_rank, alone } = self;
        write!(f, "{same} tensors are the base's, {given} coded given its, ")?;
        if *low_rank > 0 {
            write!(f, "{low_rank} changed by low rank, ")?;
        }
        write!(f, "{alone} without it")
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
    /// Its tensors by how they are stored.
    pub tensors: Counts,
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
    delta_with(base, tuned, out, &Coders::default(), on_bytes)
}

/// As [`delta`], with more ways to code tensors, some of them with loss: what is restored has their decoded values then.
///
/// # Errors
/// As [`delta`], and those of `coders`.
pub fn delta_with(base: &Path, tuned: &Path, out: &Path, coders: &Coders, on_bytes: OnBytes) -> Result<DeltaSummary> {
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
                if write_delta(&known, &source, &to, coders, &mut summary, on_bytes)? {
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
    coders: &Coders,
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
            let coded =
                group.par_iter().map(|piece| Tensor::code(base, source, coders, piece)).collect::<Result<Vec<_>>>()?;
            for (piece, (tensor, stored, lost)) in group.iter().zip(coded) {
                loses |= lost;
                tensor.count(&mut summary.tensors);
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

/// Whether a directory is a delta.
pub fn is_delta(dir: &Path) -> bool {
    dir.join(LIST).is_file()
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
            let restored = tensor.restore(base, piece, bytes, from)?;
            out.write_all(&restored).map_err(CheckpointError::io(to))?;
            on_bytes(piece.bytes);
        }
        Ok(())
    })?;
    summary.delta += size;
    Ok(())
}
