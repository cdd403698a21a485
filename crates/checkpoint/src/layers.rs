//! Layers of quality: refinements of coded tensors, a shard for each layer, of which any first part is a checkpoint
//! (section 12.1 of `docs/BITSTREAM.md`).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_codec::header::MAGIC;
use waterfill_codec::{CodecError, CodedTensor, Dtype, TilePlan};

use crate::control::{Control, Parts};
use crate::decode::decode_parallel;
use crate::error::{CheckpointError, Result};
use crate::file::SafetensorsFile;
use crate::mark::{ShardMark, digest_of_marks};
use crate::open::{Checkpoint, Shard, Storage, TensorInfo};
use crate::writer::Entry;
use crate::{Element, MARK_KEY};

/// How much of a checkpoint is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefix {
    /// Everything that is there.
    #[default]
    All,
    /// As many layers at most, the base counted.
    Layers(usize),
    /// As many bytes at most of all shards one after the other, tensors that do not fit whole left out.
    Bytes(u64),
}

/// Which layer a shard is, in its mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMark {
    /// From 1 on.
    pub number: usize,
    /// Refinement layers that were written.
    pub of: usize,
    /// Digest over the header digests of all shards before.
    pub before: String,
}

/// Where a tensor's refinement lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub shard: usize,
    pub offset: u64,
    pub bytes: u64,
}

/// Name of a layer's shard.
pub fn layer_name(number: usize, of: usize) -> String {
    format!("refinement-{number}-of-{of}.safetensors")
}

fn parse_name(name: &str) -> Option<(usize, usize)> {
    let (number, of) = name.strip_prefix("refinement-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let (number, of) = (number.parse().ok()?, of.parse().ok()?);
    (name == layer_name(number, of) && (1..=of).contains(&number)).then_some((number, of))
}

/// Refinement shards of a directory in order, as far as none is missing.
fn layer_files(dir: &Path) -> Result<Vec<(usize, usize, PathBuf)>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(CheckpointError::io(dir))? {
        let name = entry.map_err(CheckpointError::io(dir))?.file_name();
        if let Some((number, of)) = name.to_str().and_then(parse_name) {
            let path = dir.join(&name);
            if let Some((_, other)) = found.insert(number, (of, path.clone())) {
                let reason = format!("is layer {number}, and so is {}", other.display());
                return Err(CheckpointError::file(path, reason));
            }
        }
    }
    let all: Vec<_> = found.into_iter().map(|(number, (of, path))| (number, of, path)).collect();
    match all.iter().enumerate().find(|(n, (number, ..))| n + 1 != *number) {
        Some((n, (_, of, path))) => {
            let reason = format!("cannot be used without {}, which is not there", layer_name(n + 1, *of));
            Err(CheckpointError::file(path, reason))
        }
        None => Ok(all),
    }
}

impl Checkpoint {
    /// Opens a directory as [`Checkpoint::open`] does, but no more of it than `prefix`. The last layer that is there may
    /// be cut short anywhere behind its header: what arrived of it is used.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], layers that do not follow each other, and fewer bytes than the base takes.
    pub fn open_prefix(path: impl AsRef<Path>, prefix: Prefix) -> Result<Self> {
        let path = path.as_ref();
        let mut this = Self::open_base(path)?;
        let wanted = match prefix {
            Prefix::Layers(0) => {
                let reason = "no layer at all is asked for; the base is the first".to_string();
                return Err(CheckpointError::file(path, reason));
            }
            Prefix::Layers(layers) => layers - 1,
            _ => usize::MAX,
        };
        let mut left = match prefix {
            Prefix::Bytes(bytes) => bytes.checked_sub(this.bytes()).ok_or_else(|| {
                let base = this.bytes();
                CheckpointError::file(path, format!("{bytes} bytes are asked for, the base layer takes {base}"))
            })?,
            _ => u64::MAX,
        };
        if !this.whole {
            return Ok(this);
        }
        for (number, of, file) in layer_files(path)?.into_iter().take(wanted) {
            let shard = SafetensorsFile::open_part(&file)?;
            let (used, whole) = this.add_layer(shard, (number, of), left)?;
            left -= used;
            if !whole {
                break;
            }
        }
        Ok(this)
    }

    /// Layers that are used, the base counted, the last one perhaps in part.
    pub fn layers(&self) -> usize {
        1 + self.shards.iter().filter(|s| s.layer).count()
    }

    /// Adds what fits into `left` bytes of a layer; returns the bytes taken, and whether that is all of it.
    fn add_layer(&mut self, shard: SafetensorsFile, (number, of): (usize, usize), left: u64) -> Result<(u64, bool)> {
        let SafetensorsFile { path, file, size, header, metadata } = shard;
        let wrong = |reason: String| CheckpointError::file(&path, reason);
        let text = metadata.metadata().as_ref().and_then(|m| m.get(MARK_KEY));
        let text = text.ok_or_else(|| wrong(format!("has no metadata key {MARK_KEY}")))?;
        let mark = ShardMark::parse(text).map_err(wrong)?;
        mark.check_header(&header).map_err(wrong)?;
        let before = digest_of_marks(self.shards.iter().filter_map(|s| s.mark.as_ref()));
        let expected = LayerMark { number, of, before };
        if mark.layer.as_ref() != Some(&expected) {
            let found = match &mark.layer {
                Some(found) if (found.number, found.of) == (number, of) => "refines another checkpoint".to_string(),
                Some(found) => format!("says that it is layer {} of {}", found.number, found.of),
                None => "is no refinement layer".into(),
            };
            return Err(wrong(format!("{found}, expected layer {number} of {of} of the shards beside it")));
        }
        let start = header.len() as u64;
        let limit = size.min(left);
        if start > limit {
            return Ok((0, false));
        }
        let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let (index, count) = (self.shards.len(), tensors.len());
        let (mut names, mut used) = (Vec::new(), start);
        for (name, info) in tensors {
            let (begin, end) = info.data_offsets;
            let (offset, bytes) = (start + begin as u64, (end - begin) as u64);
            if offset + bytes > limit {
                break;
            }
            let mut head = [0; 16];
            if bytes >= 16 {
                file.read_exact_at(&mut head, offset).map_err(CheckpointError::io(&path))?;
            }
            let wrong = |reason: String| CheckpointError::Tensor { path: path.clone(), tensor: name.clone(), reason };
            if head[..4] != MAGIC || info.dtype != Element::U8 {
                return Err(wrong("does not begin as a coded tensor does".into()));
            }
            let side = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
            let shape = [side(8), side(12)];
            match self.tensors.get_mut(&name) {
                Some(base) if base.storage == Storage::Coded && base.shape == shape => {
                    base.finer.push(Part { shard: index, offset, bytes });
                }
                Some(base) => {
                    let reason = format!("refines a coded matrix of {shape:?}, the base has {:?}", base.shape);
                    return Err(wrong(reason));
                }
                None => return Err(wrong("is not in the base".into())),
            }
            used = offset + bytes;
            names.push(name);
        }
        let whole = names.len() == count;
        self.shards.push(Shard { path, file, bytes: used, mark: Some(mark), names, layer: true });
        Ok((used, whole))
    }

    /// Makes the values of a matrix finer where they are: `values` are those that the first `layers` of its layers give,
    /// in its own type, and become those of all its layers that are open. Nothing of them is to be used after an error.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], a buffer of another size, values that are not of these layers, a cancelled decoding.
    pub fn refine(&self, name: &str, layers: usize, values: &mut [u8], control: Control) -> Result<()> {
        let info = self.tensor(name)?;
        let layered = self.layered(info)?;
        let chain = layered.chain()?;
        let Some(last) = chain.last() else { return Ok(()) };
        let expected = last.bytes(last.header().rows);
        if values.len() != expected || layers == 0 {
            let found = values.len();
            return Err(self.wrong(info, format!("{found} bytes of {layers} layers, expected {expected} of 1 or more")));
        }
        let left = chain.get(layers..).unwrap_or_default();
        let parts = Parts::new(control, left.iter().map(CodedTensor::slices).sum());
        left.iter().enumerate().try_for_each(|(n, coded)| {
            refine_parallel(coded, values, &parts, layered.failed(layers + n))?;
            // What came before may have been anything.
            coded.check_digest(values).map_err(layered.failed(layers + n))
        })
    }

    /// All layers of a coded tensor.
    pub(crate) fn layered<'a>(&'a self, info: &'a TensorInfo) -> Result<Layered<'a>> {
        let mut raw = vec![(&self.shards[info.shard].path, self.read_raw(&info.name)?)];
        for part in &info.finer {
            let shard = &self.shards[part.shard];
            let mut bytes = vec![0; part.bytes as usize];
            shard.file.read_exact_at(&mut bytes, part.offset).map_err(CheckpointError::io(&shard.path))?;
            raw.push((&shard.path, bytes));
        }
        Ok(Layered { name: &info.name, raw })
    }
}

/// A coded tensor's layers as they lie in their shards.
pub(crate) struct Layered<'a> {
    name: &'a str,
    raw: Vec<(&'a PathBuf, Vec<u8>)>,
}

impl Layered<'_> {
    /// Error of layer `n`, 0 being the base.
    pub fn failed(&self, n: usize) -> impl Fn(CodecError) -> CheckpointError + Sync + use<> {
        let (path, tensor) = (self.raw[n].0.clone(), self.name.to_string());
        move |source| CheckpointError::Codec { path: path.clone(), tensor: tensor.clone(), source }
    }

    /// Layers, each with those before.
    pub fn chain(&self) -> Result<Vec<CodedTensor<'_>>> {
        let mut chain: Vec<CodedTensor> = Vec::new();
        for (n, (_, raw)) in self.raw.iter().enumerate() {
            let coded = CodedTensor::parse(raw);
            let whole = coded.and_then(|coded| match chain.last() {
                Some(before) => coded.refining(before),
                None => Ok(coded),
            });
            chain.push(whole.map_err(self.failed(n))?);
        }
        Ok(chain)
    }

    /// Decodes a chain into `out`; the last layer's digest is compared.
    pub fn decode_into(&self, chain: &[CodedTensor], out: &mut [u8], parts: &Parts) -> Result<()> {
        let mut layers = chain.iter().enumerate();
        layers.try_for_each(|(n, coded)| refine_parallel(coded, out, parts, self.failed(n)))?;
        chain.last().map_or(Ok(()), |coded| coded.check_digest(out).map_err(self.failed(chain.len() - 1)))
    }

    /// Values of all layers, and the base's tiles. Every digest is compared where `each` says so, else the last.
    pub fn decode(&self, each: bool) -> Result<(Dtype, Vec<u8>, Vec<TilePlan>)> {
        let chain = self.chain()?;
        let (mut bytes, tiles) = decode_parallel(&chain[0]).map_err(self.failed(0))?;
        for (n, coded) in chain.iter().enumerate().skip(1) {
            let parts = Parts::new(Control::default(), coded.slices());
            refine_parallel(coded, &mut bytes, &parts, self.failed(n))?;
            if each || n + 1 == chain.len() {
                coded.check_digest(&bytes).map_err(self.failed(n))?;
            }
        }
        Ok((chain[0].header().dtype, bytes, tiles))
    }
}

/// Adds a refinement to values, slices side by side.
fn refine_parallel(
    coded: &CodedTensor,
    values: &mut [u8],
    parts: &Parts,
    failed: impl Fn(CodecError) -> CheckpointError + Sync,
) -> Result<()> {
    let wide = coded.bytes(coded.header().slice_rows).max(1);
    values.par_chunks_mut(wide).enumerate().try_for_each(|(n, out)| {
        parts.go_on()?;
        coded.decode_slice(n, out).map_err(&failed)?;
        parts.done();
        Ok(())
    })
}

/// Writes refinement layers beside the base shards of the tuned checkpoint in `dir`. Entries of a layer are written in
/// their order, most important first; safetensors' own writer would sort them.
///
/// # Errors
/// Bytes that cannot be read, files that cannot be written, and a base that is not there.
pub fn write_layers(dir: &Path, layers: &[Vec<Entry>]) -> Result<()> {
    let base = Checkpoint::open_base(dir)?;
    let mut marks: Vec<ShardMark> = base.shards.iter().filter_map(|s| s.mark.clone()).collect();
    for (n, entries) in layers.iter().enumerate() {
        let path = dir.join(layer_name(n + 1, layers.len()));
        let layer = LayerMark { number: n + 1, of: layers.len(), before: digest_of_marks(marks.iter()) };
        let mark = ShardMark { layer: Some(layer), ..ShardMark::blank(String::new(), &BTreeMap::new()) };
        let mut header = serde_json::Map::new();
        let text = serde_json::to_string(&mark).expect("plain data");
        header.insert("__metadata__".into(), serde_json::json!({ MARK_KEY: text }));
        let mut at = 0;
        for entry in entries {
            let offsets = [at, at + entry.bytes];
            let info = serde_json::json!({"dtype": "U8", "shape": [entry.bytes], "data_offsets": offsets});
            header.insert(entry.name.clone(), info);
            at = offsets[1];
        }
        let mut header = serde_json::to_vec(&header).expect("plain data");
        header.resize(header.len().next_multiple_of(8), b' ');
        let file = std::fs::File::create(&path).map_err(CheckpointError::io(&path))?;
        let mut out = std::io::BufWriter::new(file);
        let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(CheckpointError::io(&path));
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        for entry in entries {
            let bytes = entry.read()?;
            if bytes.len() as u64 != entry.bytes {
                let reason = format!("{} bytes, {} were announced", bytes.len(), entry.bytes);
                return Err(CheckpointError::Tensor { path, tensor: entry.name.clone(), reason });
            }
            write(&bytes)?;
        }
        let file = out.into_inner().map_err(|e| CheckpointError::io(&path)(e.into_error()))?;
        ShardMark::seal(&path)?;
        file.sync_all().map_err(CheckpointError::io(&path))?;
        let written = SafetensorsFile::open(&path)?;
        let text = written.metadata.metadata().as_ref().and_then(|m| m.get(MARK_KEY).cloned()).unwrap_or_default();
        marks.push(ShardMark::parse(&text).map_err(|e| CheckpointError::file(&path, e))?);
    }
    Ok(())
}
