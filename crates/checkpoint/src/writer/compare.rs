//! Comparing what was written with what was meant. Memory: one tensor, coded and decoded.

use std::collections::BTreeSet;
use std::path::Path;

use waterfill_codec::CodedTensor;
use waterfill_codec::syntax::header::check_of;

use crate::error::{CheckpointError, FileError, Result, TensorError};
use crate::open::Checkpoint;
use crate::parallel::decode_parallel;
use crate::types::{Element, Storage, TensorInfo};
use crate::writer::entry::Entry;

/// Refuses tensors for `dir` whose names collide with each other or with the format's own.
pub(super) fn check_tensor_names(dir: &Path, entries: &[Entry]) -> Result<()> {
    let mut names = BTreeSet::new();
    for Entry { name, .. } in entries {
        let wrong = |reason| CheckpointError::tensor(dir, name, reason);
        if name == "__metadata__" {
            return Err(wrong(TensorError::ReservedName));
        }
        if !names.insert(name) {
            return Err(wrong(TensorError::Duplicate));
        }
    }
    Ok(())
}

/// Reads the shards in `dir` and compares them with the entries that they were written from, and with checks of the
/// bytes. Coded tensors are decoded.
pub(super) fn compare_shards(dir: &Path, entries: &[Entry], checks: &[u64], compressed: bool) -> Result<()> {
    let written = Checkpoint::open_base(dir)?;
    let found = written.tensors.len();
    if found != entries.len() {
        return Err(CheckpointError::file(dir, FileError::TensorCount { found, expected: entries.len() }));
    }
    written.shards.iter().try_for_each(|shard| written.verify_files(shard))?;
    for (entry, check) in entries.iter().zip(checks) {
        let info = written.tensor(&entry.name)?;
        compare_kind(&written, info, entry, compressed)?;
        let raw = written.read_raw(&entry.name)?;
        if check_of(&[&raw]) != *check {
            return Err(written.wrong(info, TensorError::Written));
        }
        if info.storage == Storage::Coded {
            CodedTensor::parse(&raw).and_then(|coded| decode_parallel(&coded)).map_err(written.codec_error(info))?;
        }
    }
    Ok(())
}

/// Compares how a tensor is stored, its type and its shape.
fn compare_kind(written: &Checkpoint, info: &TensorInfo, entry: &Entry, compressed: bool) -> Result<()> {
    let coded = compressed && entry.plain.is_none();
    let storage = if coded { Storage::Coded } else { Storage::Plain };
    if info.storage != storage {
        let reason = TensorError::Storage { found: info.storage, expected: storage };
        return Err(written.wrong(info, reason));
    }
    let element = entry.plain.unwrap_or(Element::U8);
    if info.element != element {
        let (tensor, found) = (info.name.clone(), info.element);
        let reason = FileError::ElementType { tensor, found, expected: element };
        return Err(CheckpointError::file(written.dir(), reason));
    }
    // What is coded, but not in a compressed checkpoint, is a vector of bytes.
    let bytes = vec![entry.bytes as usize];
    let expected = if coded || entry.plain.is_some() { &entry.shape } else { &bytes };
    match info.shape == *expected {
        true => Ok(()),
        false => {
            let (found, expected) = (info.shape.clone(), expected.clone());
            Err(written.wrong(info, TensorError::Shape { found, expected }))
        }
    }
}

/// Reads quality layers and compares them with checks of the bytes of their entries. All layers are decoded.
pub(super) fn compare_layers(dir: &Path, layers: &[Vec<Entry>], checks: &[Vec<u64>]) -> Result<()> {
    let written = Checkpoint::open(dir)?;
    let (found, expected) = (written.quality_layers(), 1 + layers.len());
    if found != expected {
        return Err(CheckpointError::file(dir, FileError::LayerCount { found, expected }));
    }
    let first = written.shards.len() - layers.len();
    for (n, (entries, checks)) in layers.iter().zip(checks).enumerate() {
        for (entry, check) in entries.iter().zip(checks) {
            let info = written.tensor(&entry.name)?;
            let missing = || written.wrong(info, TensorError::Missing);
            let part = info.refinements.iter().find(|part| part.shard == first + n).ok_or_else(missing)?;
            if check_of(&[&written.read_refinement(part)?]) != *check {
                let path = &written.shards[part.shard].path;
                return Err(CheckpointError::tensor(path, &entry.name, TensorError::Written));
            }
        }
    }
    // Each tensor once, with all its layers.
    let refined = written.tensors.values().filter(|info| !info.refinements.is_empty());
    refined.map(|info| written.layered(info)?.decode(true)).try_for_each(|decoded| decoded.map(drop))
}
