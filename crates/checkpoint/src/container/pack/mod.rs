//! Packing a safetensors file, or a directory, without loss, and back to the same bytes (section 11 of
//! `docs/BITSTREAM.md`).
//!
//! ```text
//! "WFPK"  4        magic
//! version 4        2; 1 has one file and no equal records
//! blobs            the records' data, one after the other
//! head             one rANS stream: what the files were, and a table of records
//! length  8        of the head
//! check   8        BLAKE3 of magic, version, head and length, truncated
//! ```
//!
//! Records cover the files' data in order; one is a coded tensor, bytes as they are with a check of their own, or equal to an
//! earlier one. The table comes last, so that writing needs one pass.

mod head;
mod opened;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use waterfill_codec::entropy::adaptive_rans::Encoder;

pub use crate::container::frame::OnBytes;
use crate::container::names::{check_names, is_safetensors};
use crate::container::source::{Piece, Record, Source, Stored};
use crate::container::tree::Tree;
use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::read_back::read_back;
use crate::whole::{each_part, write_directory, write_new, write_whole};
use head::{Entry, Head, MAX_TEXT};
use opened::{FRAME, Packed, truncate};
pub use opened::{PackSummary, PackedRecord, packed_records};

/// Longest file that is kept as text.
const MAX_TEXT_FILE: u64 = 16 << 20;
/// Most bytes of all such files.
const MAX_TEXT_FILES: u64 = 64 << 20;
/// Shortest record that may be equal to another.
const LEAST_EQUAL: u64 = 64;

/// Packs the safetensors file or the directory `from` into `to`, which is created when it has been read back. Memory: one tensor for
/// each thread. `on_bytes` counts every byte twice, packed and read back.
///
/// # Errors
/// Files that cannot be read or written, a file alone that is not safetensors, and names that cannot be restored.
pub fn pack(from: &Path, to: &Path, on_bytes: OnBytes) -> Result<PackSummary> {
    let directory = from.is_dir();
    let tree = if directory { Tree::walk(from)? } else { Tree { names: vec![String::new()], ..Tree::default() } };
    if directory {
        check_names(tree.names.iter()).map_err(|reason| CheckpointError::file(from, reason))?;
    }
    let path = |name: &String| if directory { from.join(name) } else { from.into() };
    let paths: Vec<PathBuf> = tree.names.iter().map(path).collect();
    let sources = if directory { sources(&paths)? } else { vec![Source::open(from)?] };
    let size: u64 = sources.iter().map(|source| source.size).sum();
    let write = |out: &mut dyn Write| {
        let mut head = Head { directory, ..Head::default() };
        FRAME.begin(out, to)?;
        let mut equal = Equal::new(&sources)?;
        let mut done = 0;
        for (name, source) in tree.names.iter().zip(&sources) {
            let mut digest = blake3::Hasher::new();
            digest.update(&source.prefix);
            done += source.prefix.len() as u64;
            // As many at once as there are threads, written in order.
            for group in source.pieces.chunks(rayon::current_num_threads().max(1)) {
                let first = head.records.len();
                let known = group.iter().enumerate().map(|(n, piece)| equal.find(source, piece, first + n));
                let known = known.collect::<Vec<_>>();
                let coded = group.par_iter().zip(known).map(|(piece, to)| match to {
                    Some(to) => {
                        let record = Record { bytes: piece.bytes, stored: Stored::Equal { to } };
                        Ok((record, Vec::new(), source.read(piece)?))
                    }
                    None => source.code(piece),
                });
                for (record, bytes, original) in coded.collect::<Result<Vec<_>>>()? {
                    digest.update(&original);
                    out.write_all(&bytes).at(to)?;
                    done += record.bytes;
                    head.records.push(record);
                    on_bytes(done);
                }
            }
            let (prefix, digest) = (source.prefix.clone(), truncate(&digest));
            head.files.push(Entry { name: name.clone(), prefix, digest, records: source.pieces.len() });
        }
        let mut encoder = Encoder::default();
        head.code(&mut encoder, FRAME.version).map_err(|reason| CheckpointError::file(from, reason))?;
        FRAME.end(out, &encoder.finish(), to)
    };
    write_whole(to, write, |place| Packed::open(place)?.restore_all(&|bytes| on_bytes(size + bytes)))?;
    Ok(PackSummary { left_out: tree.left_out, ..Packed::open(to)?.summary() })
}

/// Sources of the files of a directory: safetensors files by tensor, text as text, other files as bytes.
fn sources(paths: &[PathBuf]) -> Result<Vec<Source<'_>>> {
    let mut text = 0;
    let mut all = Vec::new();
    for path in paths {
        let tensors = if is_safetensors(&path.to_string_lossy()) { Source::open(path).ok() } else { None };
        let source = match tensors {
            Some(source) => source,
            None => {
                let size = path.metadata().at(path)?.len();
                let short = size <= MAX_TEXT_FILE && text + size <= MAX_TEXT_FILES;
                let bytes = if short { std::fs::read(path).at(path)? } else { Vec::new() };
                Source::of_bytes(path, if std::str::from_utf8(&bytes).is_ok() { bytes } else { Vec::new() })?
            }
        };
        text += source.prefix.len() as u64;
        all.push(source);
    }
    match text <= MAX_TEXT {
        true => Ok(all),
        false => {
            let reason = FileError::HeadLimit { field: "bytes of headers", found: text, most: MAX_TEXT };
            Err(CheckpointError::file(paths.first().map_or(Path::new(""), PathBuf::as_path), reason))
        }
    }
}

/// Pieces that are equal to an earlier one.
#[derive(Default)]
struct Equal<'a> {
    /// Digests of the pieces whose length another has, by source and start.
    digests: HashMap<(&'a Path, u64), [u8; 32]>,
    /// Record of the first piece with a digest.
    first: HashMap<[u8; 32], usize>,
}

impl<'a> Equal<'a> {
    fn new(sources: &[Source<'a>]) -> Result<Self> {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        let pieces = || sources.iter().flat_map(|source| source.pieces.iter().map(move |piece| (source, piece)));
        pieces().for_each(|(_, piece)| *counts.entry(piece.bytes).or_default() += 1);
        let several: Vec<_> =
            pieces().filter(|(_, piece)| piece.bytes >= LEAST_EQUAL && counts[&piece.bytes] > 1).collect();
        let digest = |(source, piece): &(&Source<'a>, &Piece)| -> Result<_> {
            let bytes: Vec<u8> = source.read(piece)?;
            Ok(((source.path, piece.start), blake3::hash(&bytes).into()))
        };
        Ok(Self { digests: several.par_iter().map(digest).collect::<Result<_>>()?, ..Self::default() })
    }

    /// The record that a piece is equal to; else it becomes record `n`.
    fn find(&mut self, source: &Source<'a>, piece: &Piece, n: usize) -> Option<usize> {
        // Pieces without bytes begin where another does.
        let digest = self.digests.get(&(source.path, piece.start)).filter(|_| piece.bytes >= LEAST_EQUAL)?;
        match self.first.entry(*digest) {
            std::collections::hash_map::Entry::Occupied(known) => Some(*known.get()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(n);
                None
            }
        }
    }
}

/// Restores the file or directory that `from` was packed from into `to`, which is created. Memory: one tensor,
/// coded and decoded.
///
/// # Errors
/// Damage, named by file, tensor and slice; files that cannot be read or written.
pub fn unpack(from: &Path, to: &Path, on_bytes: OnBytes) -> Result<PackSummary> {
    let packed = Packed::open(from)?;
    let files = packed.files();
    let write = |n: usize, out: &mut dyn Write, to: &Path| {
        let done: u64 = files[..n].iter().map(|file| packed.bytes(file)).sum();
        packed.restore(&files[n], &|bytes| on_bytes(done + bytes), &mut |bytes| out.write_all(bytes).at(to))
    };
    let check = |n: usize, place: &Path| {
        let mut digest = blake3::Hasher::new();
        each_part(place, &mut |bytes| {
            digest.update(bytes);
            Ok(())
        })?;
        match truncate(&digest) == packed.head.files[n].digest {
            true => Ok(()),
            false => Err(CheckpointError::file(place, FileError::Written)),
        }
    };
    if packed.head.directory {
        write_directory(to, |place| {
            packed.head.files.iter().enumerate().try_for_each(|(n, entry)| {
                let path = place.join(&entry.name);
                write_new(&path, |out| write(n, out, &path))?;
                read_back(&to.join(&entry.name), &path, || check(n, &path))
            })
        })?;
    } else {
        write_whole(to, |out| write(0, out, to), |place| check(0, place))?;
    }
    Ok(packed.summary())
}

/// Checks everything in a packed file, the restored files' digests included.
///
/// # Errors
/// The first damage found.
pub fn verify_packed(path: &Path) -> Result<PackSummary> {
    let packed = Packed::open(path)?;
    packed.restore_all(&|_| {})?;
    Ok(packed.summary())
}

/// True when a file begins as packed files do.
pub fn is_packed(path: &Path) -> bool {
    FRAME.is(path)
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
