//! Opening, listing, reading and verifying.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use waterfill_codec::CodedTensor;
use waterfill_codec::header::MAGIC;

use crate::error::{CheckpointError, Result};
use crate::file::{SafetensorsFile, Source};
use crate::layers::{Part, Prefix};
use crate::mark::{ShardMark, file_check};
use crate::writer::INDEX;
use crate::{Element, MARK_KEY, QUANT_METHOD};

/// How a tensor lies in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Elements as they are.
    Plain,
    /// A coded tensor of waterfill's bitstream.
    Coded,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape of the (decoded) tensor.
    pub shape: Vec<usize>,
    /// Plain or coded.
    pub storage: Storage,
    /// Bytes it takes in its shard, refinements not counted.
    pub bytes: u64,
    /// Element type in the shard; bytes for coded tensors, which carry theirs in their header.
    pub element: Element,
    pub(crate) shard: usize,
    pub(crate) offset: u64,
    /// Check of a plain tensor of a tuned shard.
    pub(crate) check: Option<String>,
    /// Refinements of a coded tensor, in order.
    pub(crate) finer: Vec<Part>,
}

impl TensorInfo {
    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Bytes it takes in all shards that are open.
    pub fn stored_bytes(&self) -> u64 {
        self.bytes + self.finer.iter().map(|part| part.bytes).sum::<u64>()
    }

    /// Layers of it that are open.
    pub fn layers(&self) -> usize {
        1 + self.finer.len()
    }
}

pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) file: Source,
    /// Bytes that are used.
    pub(crate) bytes: u64,
    pub(crate) mark: Option<ShardMark>,
    /// Names in the order of the shard.
    pub(crate) names: Vec<String>,
    /// Whether these are refinements.
    pub(crate) layer: bool,
}

/// An open checkpoint directory.
pub struct Checkpoint {
    dir: PathBuf,
    /// Whether it is a directory, and not one file of any.
    pub(crate) whole: bool,
    pub(crate) shards: Vec<Shard>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Opens a directory with `model.safetensors` or a sharded index, or one safetensors file, and reads all tensor
    /// tables; refinement layers as far as they are there.
    ///
    /// # Errors
    /// Missing or malformed files; shards named by the index that are not there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_prefix(path, Prefix::All)
    }

    /// Opens all but refinement layers.
    pub(crate) fn open_base(path: &Path) -> Result<Self> {
        if path.is_file() {
            let mut this = Self::empty(path.parent().unwrap_or(Path::new("")), false);
            this.add_shard(SafetensorsFile::open(path)?, None)?;
            return Ok(this);
        }
        let mut this = Self::empty(path, true);
        let tuned = is_tuned(path)?;
        for name in shard_names(path)? {
            this.add_shard(SafetensorsFile::open(&path.join(name))?, Some(tuned))?;
        }
        Ok(this)
    }

    /// Opens the bytes of one safetensors file; `name` is for messages.
    ///
    /// # Errors
    /// Bytes that are no such file.
    pub fn of_bytes(name: &str, bytes: Arc<[u8]>) -> Result<Self> {
        let mut this = Self::empty(Path::new(""), false);
        this.add_shard(SafetensorsFile::of_bytes(Path::new(name), bytes)?, None)?;
        Ok(this)
    }

    fn empty(dir: &Path, whole: bool) -> Self {
        Self { shards: Vec::new(), tensors: BTreeMap::new(), dir: dir.to_path_buf(), whole }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::Tensor {
            path: self.dir.clone(),
            tensor: name.into(),
            reason: "not in the checkpoint".into(),
        })
    }

    /// True when a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of all shards that are used, headers included.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// Weights of all tensors.
    pub fn weights(&self) -> u64 {
        self.tensors().map(TensorInfo::weights).sum()
    }

    /// Files beside the shards that determine the model; of one file alone none are known.
    fn companions(&self) -> Vec<PathBuf> {
        let all = ["config.json", "tokenizer.json"].map(|name| self.dir.join(name));
        all.into_iter().filter(|path| self.whole && path.exists()).collect()
    }

    /// Digest of everything that determines the model: all shards, `config.json` and
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// Read errors.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut add = |path: &Path, source: &Source| -> Result<()> {
            let mut file = blake3::Hasher::new();
            match source {
                // A handle of its own: others may read at the same time.
                Source::File(_) => {
                    let reader = File::open(path).map_err(CheckpointError::io(path))?;
                    file.update_reader(reader).map_err(CheckpointError::io(path))?;
                }
                Source::Memory(bytes) => drop(file.update(bytes)),
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(format!("{name} {}\n", file.finalize().to_hex()).as_bytes());
            Ok(())
        };
        self.shards.iter().try_for_each(|shard| add(&shard.path, &shard.file))?;
        for path in self.companions() {
            let file = File::open(&path).map_err(CheckpointError::io(&path))?;
            add(&path, &Source::File(Arc::new(file)))?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Checks every coded tensor and the digests of plain tensors and tensor tables; returns what
    /// was checked, a line each.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for shard in &self.shards {
            let path = shard.path.display();
            let Some(mark) = &shard.mark else {
                lines.push(format!("{path}: a plain shard without digests; its layout is consistent"));
                continue;
            };
            for (name, check) in mark.files.iter().filter(|_| self.whole) {
                let file = self.dir.join(name);
                let computed = file_check(&file)?;
                if computed != *check {
                    let reason = format!("damaged or edited: check {computed}, {path} says {check}");
                    return Err(CheckpointError::file(file, reason));
                }
            }
            if shard.layer {
                for name in &shard.names {
                    self.layered(&self.tensors[name])?.decode(true)?;
                }
                let count = shard.names.len();
                lines.push(format!("{path}: header and {count} refinements match their digests"));
                continue;
            }
            let mut coded = 0;
            for name in &shard.names {
                match self.tensors[name].storage {
                    Storage::Coded => {
                        let bytes = self.read_raw(name)?;
                        CodedTensor::parse(&bytes).and_then(|c| c.verify()).map_err(|source| {
                            CheckpointError::Codec { path: shard.path.clone(), tensor: name.clone(), source }
                        })?;
                        coded += 1;
                    }
                    Storage::Plain => drop(self.read_raw(name)?),
                }
            }
            let plain = shard.names.len() - coded;
            lines.push(format!("{path}: header, {coded} coded and {plain} plain tensors match their digests"));
        }
        Ok(lines)
    }

    pub(crate) fn wrong(&self, info: &TensorInfo, reason: String) -> CheckpointError {
        let path = self.shards[info.shard].path.clone();
        CheckpointError::Tensor { path, tensor: info.name.clone(), reason }
    }

    /// `tuned` is whether the directory says that its shards are, where there is one.
    fn add_shard(&mut self, shard: SafetensorsFile, tuned: Option<bool>) -> Result<()> {
        let SafetensorsFile { path, file, size, header, metadata } = shard;
        let start = header.len() as u64;
        let mark = match metadata.metadata().as_ref().and_then(|m| m.get(MARK_KEY)) {
            Some(text) => {
                let mark = ShardMark::parse(text).map_err(|e| CheckpointError::file(&path, e))?;
                mark.check_header(&header).map_err(|e| CheckpointError::file(&path, e))?;
                Some(mark)
            }
            None => None,
        };
        match (&mark, tuned) {
            (None, Some(true)) => {
                let reason = format!("has no metadata key {MARK_KEY}, which config.json ({QUANT_METHOD}) asks for");
                return Err(CheckpointError::file(&path, reason));
            }
            (Some(_), Some(false)) => {
                let config = self.dir.join("config.json");
                let name = path.file_name().unwrap_or_default().display();
                let reason = format!("does not name the quantisation method {QUANT_METHOD}, but {name} is tuned");
                return Err(CheckpointError::file(&config, reason));
            }
            _ => {}
        }
        let mut tensors = metadata.tensors().into_iter().collect::<Vec<_>>();
        tensors.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then_with(|| a.0.cmp(&b.0)));
        let names = tensors.iter().map(|(n, _)| n.clone()).collect();
        let mut entries = Vec::with_capacity(tensors.len());
        for (name, info) in tensors {
            let (begin, end) = info.data_offsets;
            let offset = start + begin as u64;
            let mut head = [0; 16];
            let candidate = mark.is_some() && info.dtype == Element::U8 && end - begin >= head.len();
            if candidate {
                file.read_exact_at(&mut head, offset).map_err(CheckpointError::io(&path))?;
            }
            let coded = candidate && head[..4] == MAGIC;
            let side = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
            entries.push(TensorInfo {
                storage: if coded { Storage::Coded } else { Storage::Plain },
                shape: if coded { vec![side(8), side(12)] } else { info.shape.clone() },
                bytes: (end - begin) as u64,
                element: info.dtype,
                shard: self.shards.len(),
                offset,
                check: None,
                finer: Vec::new(),
                name,
            });
        }
        if let Some(mark) = &mark {
            mark.hand_out(&mut entries).map_err(|e| CheckpointError::file(&path, e))?;
        }
        for entry in entries {
            let name = entry.name.clone();
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(CheckpointError::file(&path, format!("tensor {name} is in another shard too")));
            }
        }
        self.shards.push(Shard { path, file, bytes: size, mark, names, layer: false });
        Ok(())
    }
}

/// Whether `config.json` says that the shards are tuned; directories without one are plain.
fn is_tuned(dir: &Path) -> Result<bool> {
    let path = dir.join("config.json");
    if !path.exists() {
        return Ok(false);
    }
    let text = std::fs::read(&path).map_err(CheckpointError::io(&path))?;
    let config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| CheckpointError::file(&path, e.to_string()))?;
    Ok(config["quantization_config"]["quant_method"] == QUANT_METHOD)
}

/// Shard file names: the single file, or those the index names.
fn shard_names(dir: &Path) -> Result<Vec<String>> {
    let index = dir.join(INDEX);
    if !index.exists() {
        let single = dir.join("model.safetensors");
        if single.exists() {
            return Ok(vec!["model.safetensors".into()]);
        }
        let reason = "no model.safetensors and no model.safetensors.index.json in this directory";
        return Err(CheckpointError::file(dir, reason));
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(&index).map_err(CheckpointError::io(&index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| CheckpointError::file(&index, e.to_string()))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    for name in &names {
        if name.contains('/') || name.contains("..") {
            return Err(CheckpointError::file(&index, format!("shard name {name:?} leaves the directory")));
        }
        if !dir.join(name).exists() {
            return Err(CheckpointError::file(
                &index,
                format!("names shard {name}, which is not in {}", dir.display()),
            ));
        }
    }
    Ok(names)
}
