//! Making and applying the directory of a delta.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_codec::entropy::adaptive_rans::{Decoder, Encoder};
use waterfill_codec::entropy::models::Coder;
use waterfill_codec::syntax::text::code_text;

use crate::container::delta::base::Base;
use crate::container::delta::tensor::{Coders, Counts, Tensor};
use crate::container::frame::{Frame, Framed, OnBytes, write_whole};
use crate::container::source::{Source, pieces_of};
use crate::error::{AtPath, CheckpointError, FileError, Result};

const VERSION: u32 = 1;
const FRAME: Frame = Frame { magic: *b"WFDL", version: VERSION, kind: "delta" };
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
    kind: FileKind,
    bytes: u64,
    digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileKind {
    /// The base has the same under the same name.
    Same,
    /// Stored as it is.
    Stored,
    /// A `.wfd`.
    Delta,
}

/// Head of a `.wfd`, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    /// The safetensors header.
    header: String,
    /// Tensors in the file's order.
    tensors: Vec<Tensor>,
}

/// Sizes of a delta.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DeltaSummary {
    /// Bytes of the fine-tune's files.
    #[serde(rename = "tuned")]
    pub fine_tune: u64,
    /// Bytes of the delta.
    pub delta: u64,
    /// Elements of its tensors.
    pub elements: u64,
    /// Its tensors by how they are stored.
    pub tensors: Counts,
}

fn digest_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).at(path)?).at(path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Names of the files directly in a directory, sorted.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        if entry.path().is_file() {
            let name = entry.file_name().into_string();
            names.push(name.map_err(|name| CheckpointError::file(dir, FileError::NameNotUtf8 { name }))?);
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
        return Err(CheckpointError::file(dir, FileError::Exists));
    }
    std::fs::create_dir_all(dir).at(dir)
}

/// Writes the delta of the directory `fine_tune` from the directory `base` into `out`, which is created.
///
/// # Errors
/// Files that cannot be read or written; safetensors files that are malformed.
pub fn delta(base: &Path, fine_tune: &Path, out: &Path, on_bytes: OnBytes) -> Result<DeltaSummary> {
    delta_with(base, fine_tune, out, &Coders::default(), on_bytes)
}

/// As [`delta`], with further coders. Tensors that they code with loss are restored to their decoded values.
///
/// # Errors
/// As [`delta`], and those of `coders`.
pub fn delta_with(
    base: &Path,
    fine_tune: &Path,
    out: &Path,
    coders: &Coders,
    on_bytes: OnBytes,
) -> Result<DeltaSummary> {
    let (base_files, fine_tune_files) = (files(base)?, files(fine_tune)?);
    if !fine_tune_files.iter().any(|name| is_safetensors(name)) {
        return Err(CheckpointError::file(fine_tune, FileError::NoSafetensors));
    }
    create(out)?;
    let shards: Vec<PathBuf> = base_files.iter().filter(|n| is_safetensors(n)).map(|n| base.join(n)).collect();
    let sources = shards.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>>>()?;
    let known = Base::new(&sources);
    // Checkpoints are large: each of the base's files is read for its digest once.
    let mut digests: BTreeMap<&str, String> = BTreeMap::new();
    for name in base_files.iter().filter(|n| is_safetensors(n) || fine_tune_files.contains(n)) {
        digests.insert(name, digest_of(&base.join(name))?);
    }
    let mut list = List { version: VERSION, base: BTreeMap::new(), files: BTreeMap::new() };
    let mut summary = DeltaSummary::default();
    for name in &fine_tune_files {
        let path = fine_tune.join(name);
        let mut digest = digest_of(&path)?;
        let bytes = path.metadata().at(&path)?.len();
        let same = digests.get(name.as_str()) == Some(&digest);
        let kind = match same {
            true => FileKind::Same,
            false if is_safetensors(name) => {
                let source = Source::open(&path)?;
                let to = out.join(format!("{name}{END}"));
                if write_delta(&known, &source, &to, coders, &mut summary, on_bytes)? {
                    // The restored file will differ from the fine-tune's.
                    let place = tempfile::tempdir_in(out).at(out)?;
                    let restored = place.path().join(name);
                    restore(&known, &to, &restored, &mut DeltaSummary::default(), &|_| {})?;
                    digest = digest_of(&restored)?;
                }
                FileKind::Delta
            }
            false => {
                std::fs::copy(&path, out.join(name)).at(&path)?;
                FileKind::Stored
            }
        };
        if kind == FileKind::Same {
            list.base.insert(name.clone(), digest.clone());
        }
        summary.fine_tune += bytes;
        list.files.insert(name.clone(), Entry { kind, bytes, digest });
    }
    if list.files.values().any(|e| e.kind == FileKind::Delta) {
        for name in base_files.iter().filter(|n| is_safetensors(n)) {
            list.base.insert(name.clone(), digests[name.as_str()].clone());
        }
    }
    let text = serde_json::to_string_pretty(&list).expect("plain data") + "\n";
    let path = out.join(LIST);
    std::fs::write(&path, text).at(&path)?;
    for name in files(out)? {
        summary.delta += out.join(&name).metadata().at(out.join(&name))?.len();
    }
    Ok(summary)
}

/// Writes the delta of a file; returns true if something was coded with loss.
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
        .map_err(|_| CheckpointError::file(to, FileError::HeaderNotUtf8))?;
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
                stored.iter().try_for_each(|part| out.write_all(part)).at(to)?;
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

/// True if a directory is a delta.
pub fn is_delta(dir: &Path) -> bool {
    dir.join(LIST).is_file()
}

/// Restores a fine-tune from its base and the delta in `dir` into `out`, which is created.
///
/// # Errors
/// Another base, named by its file; damage, named by file and tensor; files that cannot be read or written.
pub fn apply(base: &Path, dir: &Path, out: &Path, on_bytes: OnBytes) -> Result<DeltaSummary> {
    let path = dir.join(LIST);
    let text = std::fs::read(&path).at(&path)?;
    let list: List =
        serde_json::from_slice(&text).map_err(|error| CheckpointError::file(&path, FileError::Json { error }))?;
    if list.version != VERSION {
        let (found, expected) = (list.version.to_string(), VERSION.to_string());
        return Err(CheckpointError::file(&path, FileError::Version { kind: "delta", found, expected }));
    }
    let leaves = |name: &&String| name.contains(['/', '\\']) || name.starts_with('.') || name.is_empty();
    if let Some(name) = list.base.keys().chain(list.files.keys()).find(leaves) {
        return Err(CheckpointError::file(&path, FileError::LeavesDirectory { name: name.clone() }));
    }
    for (name, expected) in &list.base {
        let file = base.join(name);
        let found = if file.is_file() { Some(digest_of(&file)?) } else { None };
        if found.as_ref() != Some(expected) {
            let reason = FileError::OtherBase { found, expected: expected.clone() };
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
            FileKind::Same => drop(std::fs::copy(base.join(name), &to).at(&to)?),
            FileKind::Stored => drop(std::fs::copy(dir.join(name), &to).at(dir.join(name))?),
            FileKind::Delta => restore(&known, &dir.join(format!("{name}{END}")), &to, &mut summary, on_bytes)?,
        }
        if digest_of(&to)? != entry.digest {
            return Err(CheckpointError::file(to, FileError::Restored));
        }
        summary.fine_tune += entry.bytes;
    }
    Ok(summary)
}

fn restore(base: &Base, from: &Path, to: &Path, summary: &mut DeltaSummary, on_bytes: OnBytes) -> Result<()> {
    let wrong = |reason| CheckpointError::file(from, reason);
    let framed = FRAME.open(from)?;
    let blobs = framed.blobs();
    let Framed { file, size, head: coded } = framed;
    let read = |at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, at).map(|()| bytes).at(from)
    };
    let mut decoder = Decoder::new(&coded);
    let bytes = decoder.raw_wide(32, 0);
    // Text takes a hundredth of a bit a byte at the least.
    let most = (coded.len() as u64).saturating_mul(1000).min(MAX_HEAD.into());
    if u64::from(bytes) > most {
        return Err(wrong(FileError::HeadLimit { field: "bytes of text", found: bytes.into(), most }));
    }
    let mut text = Vec::new();
    code_text(&mut decoder, &mut text, bytes as usize);
    let head: Head = serde_json::from_slice(&text).map_err(|error| wrong(FileError::HeadJson { error }))?;
    let prefix = [&(head.header.len() as u64).to_le_bytes()[..], head.header.as_bytes()].concat();
    // The header as a file of its own size would have it.
    let pieces = pieces_of(&prefix).map_err(wrong)?;
    let stored = head.tensors.iter().try_fold(0u64, |sum, t| sum.checked_add(t.stored()?));
    if pieces.len() != head.tensors.len() || stored != Some(blobs) || !decoder.finish() {
        return Err(wrong(FileError::HeadMismatch));
    }
    write_whole(to, |out| {
        out.write_all(&prefix).at(to)?;
        let mut at = Frame::START;
        for (piece, tensor) in pieces.iter().zip(&head.tensors) {
            let bytes = read(at, tensor.stored().unwrap_or(0))?;
            at += bytes.len() as u64;
            let restored = tensor.restore(base, piece, bytes, from)?;
            out.write_all(&restored).at(to)?;
            on_bytes(piece.bytes);
        }
        Ok(())
    })?;
    summary.delta += size;
    Ok(())
}
