//! Writing shards from tensors on disk, or made on the way: one is in memory at a time.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::View;
use waterfill_codec::syntax::header::check_of;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::read_back::read_back;
use crate::shard_mark::{ShardMark, file_check, hex_check};
use crate::types::{Element, INDEX, MARK_KEY};
use crate::writer::companions::{companions, write_companions};
use crate::writer::compare::{check_plain, check_tensor_names, compare_shards};
use crate::writer::entry::Entry;
use crate::writer::small_file::write_file;

/// Largest shard, as transformers writes them; a tensor is never split.
pub const SHARD_BYTES: u64 = 5_000_000_000;

struct Blob<'a> {
    entry: &'a Entry<'a>,
    /// Shape as stored: a coded tensor is a vector of bytes.
    shape: Vec<usize>,
    /// The interface below cannot fail: a read error is kept here and returned afterwards.
    failed: RefCell<Option<CheckpointError>>,
    /// Check of the bytes that were given to be written.
    check: Cell<u64>,
}

impl View for &Blob<'_> {
    fn dtype(&self) -> Element {
        self.entry.plain.unwrap_or(Element::U8)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.entry.read().unwrap_or_else(|error| {
            *self.failed.borrow_mut() = Some(error);
            vec![0; self.data_len()]
        });
        self.check.set(check_of(&[&bytes]));
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.entry.bytes as usize
    }
}

/// Writes the shards (and an index when there are several) of a plain checkpoint into `dir`, and reads them back.
///
/// # Errors
/// Bytes that cannot be read, files that cannot be written, names that are given twice.
pub fn write_shards(dir: &Path, entries: &[Entry]) -> Result<()> {
    write_shards_of(dir, entries, false, SHARD_BYTES)
}

/// Writes a whole checkpoint into `dir`: shards, and the files of `from` that other software needs next to them. Everything
/// is read back, coded tensors are decoded. Compressed shards carry a [`ShardMark`], others `format: pt` as other software expects.
///
/// # Errors
/// As [`write_shards`] and [`write_companions`].
pub fn write_checkpoint(from: &Path, dir: &Path, entries: &[Entry], compressed: bool) -> Result<()> {
    // Marks have checks of the files next to the shards.
    write_companions(from, dir, compressed)?;
    write_shards_of(dir, entries, compressed, SHARD_BYTES)
}

fn write_shards_of(dir: &Path, entries: &[Entry], compressed: bool, limit: u64) -> Result<()> {
    check_tensor_names(dir, entries)?;
    let mut groups: Vec<Vec<&Entry>> = Vec::new();
    let mut filled = u64::MAX;
    for entry in entries {
        if filled.saturating_add(entry.bytes) > limit {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += entry.bytes;
        groups.last_mut().expect("a group was just pushed").push(entry);
    }
    let single = groups.len() == 1;
    let name = |i: usize| match single {
        true => "model.safetensors".to_string(),
        false => format!("model-{:05}-of-{:05}.safetensors", i + 1, groups.len()),
    };
    if !single {
        let of = |i: usize| groups[i].iter().map(move |e| (e.name.clone(), i));
        let weight_map: BTreeMap<_, _> = (0..groups.len()).flat_map(of).map(|(tensor, i)| (tensor, name(i))).collect();
        let total: u64 = entries.iter().map(|e| e.bytes).sum();
        let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_file(&dir.join(INDEX), index.to_string().as_bytes())?;
    }
    let mut files = BTreeMap::new();
    if compressed {
        let own = ["config.json", INDEX].into_iter().filter(|name| dir.join(name).exists()).map(String::from);
        for name in companions(dir)?.into_iter().chain(own) {
            let check = file_check(&dir.join(&name))?;
            files.insert(name, check);
        }
    }
    let mut checks = Vec::with_capacity(entries.len());
    for (i, group) in groups.iter().enumerate() {
        checks.extend(write_shard(&dir.join(name(i)), group, compressed.then_some(&files))?);
    }
    read_back(dir, dir, || compare_shards(dir, entries, &checks, compressed))
}

/// Writes a shard, a compressed one with checks of the directory's other files; returns checks of what is in it.
fn write_shard(path: &Path, entries: &[&Entry], files: Option<&BTreeMap<String, String>>) -> Result<Vec<u64>> {
    let mut blobs = Vec::new();
    for entry in entries {
        let shape = if entry.plain.is_some() { entry.shape.clone() } else { vec![entry.bytes as usize] };
        blobs.push(Blob { entry, shape, failed: RefCell::default(), check: Cell::default() });
    }
    // One key only: the safetensors crate keeps metadata in a hash map, whose order would vary.
    let metadata = match files {
        Some(files) => {
            let plain = entries.iter().filter(|e| e.plain.is_some());
            let check = |e: &&Entry| {
                let bytes = e.read()?;
                check_plain(path, e, &bytes)?;
                Ok((e.name.clone(), hex_check(&bytes)))
            };
            let plain = plain.map(check).collect::<Result<BTreeMap<String, String>>>()?;
            let mark = ShardMark::blank(plain.into_values().collect(), files);
            HashMap::from([(MARK_KEY.to_string(), serde_json::to_string(&mark).expect("plain data"))])
        }
        None => HashMap::from([("format".to_string(), "pt".to_string())]),
    };
    let views = blobs.iter().map(|b| (b.entry.name.as_str(), b));
    write_tensors(path, views, Some(metadata))?;
    if let Some(error) = blobs.iter().find_map(|b| b.failed.take()) {
        return Err(error);
    }
    if files.is_some() {
        ShardMark::seal(path)?;
    }
    File::open(path).and_then(|f| f.sync_all()).at(path)?;
    Ok(blobs.iter().map(|b| b.check.get()).collect())
}

/// Writes a safetensors file.
///
/// # Errors
/// As the file system and the safetensors library say.
pub fn write_tensors<N: AsRef<str> + Ord + Display, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, V)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    // The library makes files for their owner alone; these are for whoever may read the others.
    let permissions = File::create(path).and_then(|f| Ok(f.metadata()?.permissions())).at(path)?;
    safetensors::serialize_to_file(tensors, metadata, path).map_err(|e| match e {
        SafeTensorError::IoError(source) => CheckpointError::Io { path: path.to_path_buf(), source },
        error => CheckpointError::file(path, FileError::Write { error }),
    })?;
    std::fs::set_permissions(path, permissions).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use crate::types::QUANT_METHOD;
    use crate::writer::Data;

    /// Three plain tensors of 8, 12 and 16 bytes in shards of at most 20.
    fn sharded(compressed: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let method = if compressed { QUANT_METHOD } else { "none" };
        let config = format!("{{\"quantization_config\": {{\"quant_method\": \"{method}\"}}}}");
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let entries: Vec<Entry> = (2..5)
            .map(|n| {
                let blob = dir.path().join(format!("blob{n}"));
                let values: Vec<u8> = (0..n).flat_map(|i| (i as f32 + 0.5).to_le_bytes()).collect();
                std::fs::write(&blob, &values).unwrap();
                let bytes = values.len() as u64;
                Entry {
                    name: format!("t{n}"),
                    shape: vec![n],
                    plain: Some(Element::F32),
                    data: Data::File(blob),
                    bytes,
                }
            })
            .collect();
        write_shards_of(dir.path(), &entries, compressed, 20).unwrap();
        dir
    }

    #[test]
    fn shards_are_split_by_size_and_found_through_the_index() {
        let dir = sharded(false);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let shards = (1..=2).map(|i| dir.path().join(format!("model-{i:05}-of-00002.safetensors")));
        assert_eq!(checkpoint.bytes(), shards.map(|p| p.metadata().unwrap().len()).sum::<u64>());
        assert_eq!(checkpoint.weights(), 9);
        assert_eq!(checkpoint.read_f32("t4", &[4]).unwrap(), [0.5, 1.5, 2.5, 3.5]);
        let message = checkpoint.read_f32("t4", &[2, 2]).unwrap_err().to_string();
        assert!(message.contains("t4") && message.contains("[4]") && message.contains("[2, 2]"), "{message}");
    }

    #[test]
    fn damage_to_a_plain_tensor_of_a_tuned_shard_is_noticed() {
        let dir = sharded(true);
        Checkpoint::open(dir.path()).unwrap().verify().unwrap();
        let path = dir.path().join("model-00002-of-00002.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let message = Checkpoint::open(dir.path()).unwrap().verify().unwrap_err().to_string();
        assert!(message.contains("model-00002-of-00002") && message.contains("damaged"), "{message}");
    }
}
