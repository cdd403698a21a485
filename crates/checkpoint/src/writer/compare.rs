//! Comparing what was written with what was meant. Memory: one tensor, coded and decoded.

use std::collections::BTreeSet;
use std::path::Path;

use waterfill_codec::CodedTensor;
use waterfill_codec::syntax::header::check_of;

use crate::error::{CheckpointError, FileError, Result, TensorError};
use crate::open::{Checkpoint, looks_coded};
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

/// Refuses plain bytes for a compressed shard that readers would take for a coded tensor.
pub(super) fn check_plain(path: &Path, entry: &Entry, bytes: &[u8]) -> Result<()> {
    match entry.plain == Some(Element::U8) && looks_coded(bytes) {
        true => {
            let reason = TensorError::Storage { found: Storage::Coded, expected: Storage::Plain };
            Err(CheckpointError::tensor(path, &entry.name, reason))
        }
        false => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use waterfill_codec::{Dtype, Elements, encode_lossless};

    use super::*;
    use crate::read_back::tests::{damaging, flip};
    use crate::writer::{Data, write_checkpoint, write_file, write_shards};

    fn entry(name: &str, plain: Option<Element>, shape: &[usize], bytes: Vec<u8>) -> Entry<'static> {
        let length = bytes.len() as u64;
        let data = Data::Made(Box::new(move || bytes.clone()));
        Entry { name: name.into(), shape: shape.to_vec(), plain, data, bytes: length }
    }

    /// A coded matrix of 40 x 100 f32.
    fn coded() -> Vec<u8> {
        let values: Vec<u8> = (0..4000).flat_map(|i| ((i % 77) as f32).to_le_bytes()).collect();
        encode_lossless(&Elements { dtype: Dtype::F32, rows: 40, cols: 100, period: 1 }, &values).unwrap()
    }

    fn written(entries: &[Entry], compressed: bool) -> Result<tempfile::TempDir> {
        let [from, to] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::write(from.path().join("config.json"), "{}").unwrap();
        write_checkpoint(from.path(), to.path(), entries, compressed).map(|()| to)
    }

    #[test]
    fn shards_that_are_damaged_while_they_are_written_are_refused() {
        let entries = || [entry("a", None, &[40, 100], coded()), entry("b", Some(Element::F32), &[2], vec![1; 8])];
        written(&entries(), true).unwrap();
        for share in [0.05, 0.6, 0.999] {
            let damage = move |path: &Path| {
                if path.is_dir() {
                    flip(&path.join("model.safetensors"), share)
                }
            };
            let message = damaging(damage, || written(&entries(), true)).unwrap_err().to_string();
            assert!(message.contains("not written, since it does not come back"), "{message}");
        }
        // A plain shard has no digests of its own.
        let dir = tempfile::tempdir().unwrap();
        let damage = |path: &Path| {
            if path.is_dir() {
                flip(&path.join("model.safetensors"), 0.999)
            }
        };
        let message = damaging(damage, || write_shards(dir.path(), &entries()[1..])).unwrap_err().to_string();
        assert!(message.contains("tensor b: has other bytes than were written"), "{message}");
        let path = dir.path().join("x.json");
        let message = damaging(|path| flip(path, 0.0), || write_file(&path, b"{}")).unwrap_err().to_string();
        assert!(message.contains("x.json: not written"), "{message}");
        // Bytes that wait in a file.
        let waiting = Data::keep(path.clone(), &[1; 8]).unwrap();
        flip(&path, 0.5);
        let late = Entry { data: waiting, ..entry("b", Some(Element::F32), &[2], vec![]) };
        let message = write_shards(dir.path(), &[Entry { bytes: 8, ..late }]).unwrap_err().to_string();
        assert!(message.contains("x.json: has other bytes"), "{message}");
    }

    #[test]
    fn tensors_that_a_reader_would_take_for_others_are_refused() {
        let plain = |name: &str| entry(name, Some(Element::U8), &[40], vec![7; 40]);
        let refused = |entries: &[Entry], expected: &str| {
            let message = written(entries, true).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        refused(&[plain("x"), plain("y"), plain("x")], "tensor x: is given twice");
        refused(&[plain("__metadata__")], "tensor __metadata__: has the name of the safetensors header");
        let disguised = entry("x", Some(Element::U8), &[coded().len()], coded());
        refused(&[disguised], "tensor x: is read as Coded, Plain was written");
        refused(&[entry("x", None, &[40], vec![7; 40])], "does not");
        refused(&[entry("x", None, &[4, 1000], coded())], "tensor x: shape [40, 100]");
        let mut damaged = coded();
        *damaged.last_mut().unwrap() ^= 1;
        refused(&[entry("x", None, &[40, 100], damaged)], "tensor x");
        for name in ["", "..", "/", "a/b", "\u{fc}\u{0}\n\"\\", "\u{1f984}"] {
            let dir = written(&[plain(name), entry("coded", None, &[40, 100], coded())], true).unwrap();
            assert_eq!(Checkpoint::open(dir.path()).unwrap().read_raw(name).unwrap(), [7; 40], "{name:?}");
        }
    }
}
