//! A `.wfd`: one safetensors file of a fine-tune, given the base's tensors.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_codec::entropy::adaptive_rans::{Decoder, Encoder};
use waterfill_codec::entropy::models::Coder;
use waterfill_codec::syntax::header::check_of;
use waterfill_codec::syntax::text::code_text;

use crate::container::delta::base::Beside;
use crate::container::delta::tensor::{Coders, Counts, Tensor};
use crate::container::frame::{Frame, Framed, OnBytes};
use crate::container::source::{Piece, Source, pieces_of};
use crate::error::{AtPath, CheckpointError, FileError, Result, TensorError};
use crate::whole::write_new;

const FRAME: Frame = Frame { magic: *b"WFDL", version: 1, oldest: 1, kind: "delta" };
/// Largest head, before it is coded.
const MAX_HEAD: u32 = 400_000_000;

/// Head of a `.wfd`, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    /// The safetensors header.
    header: String,
    /// Tensors in the file's order.
    tensors: Vec<Tensor>,
}

/// What was written.
pub(super) struct Written {
    /// Tensors by how they are stored.
    pub counts: Counts,
    /// Numbers of the base's files that are needed.
    pub needs: BTreeSet<usize>,
    /// True if something was coded with loss.
    pub loses: bool,
    /// Checks of the tensors to be restored; none for what was coded with loss.
    checks: Vec<Option<u64>>,
}

impl Written {
    /// Restores the file at `path` from what was written; returns the digest of the restored file.
    pub fn read_back(&self, base: &Beside, path: &Path, on_bytes: OnBytes) -> Result<String> {
        let mut digest = blake3::Hasher::new();
        let mut checks = self.checks.iter();
        restore(base, path, on_bytes, &mut |piece, bytes| {
            digest.update(bytes);
            match piece.and_then(|piece| Some((piece, checks.next().copied()??))) {
                Some((piece, check)) if check != check_of(&[bytes]) => {
                    Err(CheckpointError::tensor(path, &piece.name, TensorError::NotRestored))
                }
                _ => Ok(()),
            }
        })?;
        Ok(digest.finalize().to_hex().to_string())
    }
}

/// Writes the delta of a file.
pub(super) fn write(base: &Beside, source: &Source, to: &Path, coders: &Coders, on_bytes: OnBytes) -> Result<Written> {
    let header = String::from_utf8(source.prefix[8..].to_vec())
        .map_err(|_| CheckpointError::file(source.path, FileError::HeaderNotUtf8))?;
    let mut head = Head { header, tensors: Vec::new() };
    let mut written = Written { counts: Counts::default(), needs: BTreeSet::new(), loses: false, checks: Vec::new() };
    write_new(to, |out| {
        FRAME.begin(out, to)?;
        for group in source.pieces.chunks(rayon::current_num_threads().max(1)) {
            let coded =
                group.par_iter().map(|piece| Tensor::code(base, source, coders, piece)).collect::<Result<Vec<_>>>()?;
            for (piece, stored) in group.iter().zip(coded) {
                if stored.tensor.needs_base() {
                    written.needs.extend(base.find(piece).map(|(source, _)| source));
                }
                stored.tensor.count(&mut written.counts);
                stored.parts.iter().try_for_each(|part| out.write_all(part)).at(to)?;
                written.loses |= stored.check.is_none();
                written.checks.push(stored.check);
                head.tensors.push(stored.tensor);
                on_bytes(piece.bytes);
            }
        }
        let mut text = serde_json::to_vec(&head).expect("plain data");
        let length = text.len();
        if length as u64 > MAX_HEAD.into() {
            let reason = FileError::HeadLimit { field: "bytes of text", found: length as u64, most: MAX_HEAD.into() };
            return Err(CheckpointError::file(source.path, reason));
        }
        let mut encoder = Encoder::default();
        encoder.raw_wide(32, length as u32);
        code_text(&mut encoder, &mut text, length);
        FRAME.end(out, &encoder.finish(), to)
    })?;
    Ok(written)
}

/// Gets the begin of a restored file, which is no piece, and then each piece.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Option<&Piece>, &[u8]) -> Result<()>;

/// Restores a file from the `.wfd` at `from`. Memory: one tensor.
pub(super) fn restore(base: &Beside, from: &Path, on_bytes: OnBytes, sink: Sink) -> Result<()> {
    let wrong = |reason| CheckpointError::file(from, reason);
    let framed = FRAME.open(from)?;
    let blobs = framed.blobs();
    let Framed { file, head: coded, .. } = framed;
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
    sink(None, &prefix)?;
    let mut at = Frame::START;
    for (piece, tensor) in pieces.iter().zip(&head.tensors) {
        let bytes = read(&file, at, tensor.stored().unwrap_or(0)).at(from)?;
        at += bytes.len() as u64;
        sink(Some(piece), &tensor.restore(base, piece, bytes, from)?)?;
        on_bytes(piece.bytes);
    }
    Ok(())
}

fn read(file: &File, at: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, at).map(|()| bytes)
}
