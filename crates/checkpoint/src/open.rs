//! Opening directories and files; tensors as they lie in their shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use waterfill_codec::CodecError;
use waterfill_codec::syntax::header::MAGIC;

use crate::container::names::check_plain_name;
use crate::error::{AtPath, CheckpointError, FileError, Result, TensorError};
use crate::safetensors_file::{SafetensorsFile, Source};
use crate::shard_mark::{ShardMark, hex_check};
use crate::types::{Element, INDEX, MARK_KEY, QUANT_METHOD, Storage, TensorInfo};

pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) file: Source,
    /// Bytes that are used.
    pub(crate) bytes: u64,
    pub(crate) mark: Option<ShardMark>,
    /// Names in the order of the shard.
    pub(crate) names: Vec<String>,
    /// True for the shard of a quality layer.
    pub(crate) layer: bool,
}

/// An open checkpoint directory.
pub struct Checkpoint {
    dir: PathBuf,
    /// False where a single file was opened.
    pub(crate) whole: bool,
    pub(crate) shards: Vec<Shard>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Opens everything but quality layers.
    pub(crate) fn open_base(path: &Path) -> Result<Self> {
        if path.is_file() {
            let mut this = Self::empty(path.parent().unwrap_or(Path::new("")), false);
            this.add_shard(SafetensorsFile::open(path)?, None)?;
            return Ok(this);
        }
        let mut this = Self::empty(path, true);
        let compressed = is_compressed(path)?;
        for name in shard_names(path)? {
            this.add_shard(SafetensorsFile::open(&path.join(name))?, Some(compressed))?;
        }
        Ok(this)
    }

    /// Opens a safetensors file that is in memory; `name` appears in messages.
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
        self.tensors.get(name).ok_or_else(|| CheckpointError::tensor(&self.dir, name, TensorError::Missing))
    }

    /// Goes on without a tensor: nothing finds it any more, and what is written from this checkpoint lacks it.
    pub fn leave_out(&mut self, name: &str) {
        self.tensors.remove(name);
        self.shards.iter_mut().for_each(|shard| shard.names.retain(|own| own != name));
    }

    /// True when a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of all shards in use, headers included.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// Number of weights of all tensors.
    pub fn weights(&self) -> u64 {
        self.tensors().map(TensorInfo::weights).sum()
    }

    /// Stored bytes of a tensor, without its refinements; a plain tensor of a compressed shard is compared with its
    /// check.
    ///
    /// # Errors
    /// Read errors, unknown names, damage.
    pub fn read_raw(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.tensor(name)?;
        let mut bytes = vec![0; info.bytes as usize];
        let shard = &self.shards[info.shard];
        shard.file.read_exact_at(&mut bytes, info.offset).at(&shard.path)?;
        if let Some(check) = info.check.as_ref() {
            let computed = hex_check(&bytes);
            if computed != *check {
                let reason = TensorError::Check { found: computed, expected: check.clone() };
                return Err(self.wrong(info, reason));
            }
        }
        Ok(bytes)
    }

    /// Bytes of a tensor from `at` on.
    pub(crate) fn read_at(&self, info: &TensorInfo, at: u64, bytes: &mut [u8]) -> Result<()> {
        let shard = &self.shards[info.shard];
        shard.file.read_exact_at(bytes, info.offset + at).at(&shard.path)
    }

    /// Error of the codec in a tensor's base layer.
    pub(crate) fn codec_error(&self, info: &TensorInfo) -> impl Fn(CodecError) -> CheckpointError + Copy + Sync {
        let (path, tensor) = (&self.shards[info.shard].path, &info.name);
        move |source| CheckpointError::Codec { path: path.clone(), tensor: tensor.clone(), source: Box::new(source) }
    }

    /// Error of a tensor in its base shard.
    pub(crate) fn wrong(&self, info: &TensorInfo, reason: TensorError) -> CheckpointError {
        CheckpointError::tensor(&self.shards[info.shard].path, &info.name, reason)
    }

    /// Adds a shard; `compressed` is what `config.json` says of the directory's shards, none for a file alone.
    fn add_shard(&mut self, shard: SafetensorsFile, compressed: Option<bool>) -> Result<()> {
        let SafetensorsFile { path, file, size, header, metadata } = shard;
        let start = header.len() as u64;
        let in_shard = |reason| CheckpointError::file(&path, reason);
        let mark = match metadata.metadata().as_ref().and_then(|m| m.get(MARK_KEY)) {
            Some(text) => {
                let mark = ShardMark::parse(text).map_err(in_shard)?;
                mark.check_header(&header).map_err(in_shard)?;
                Some(mark)
            }
            None => None,
        };
        match (&mark, compressed) {
            (None, Some(true)) => return Err(in_shard(FileError::MissingMark { configured: true })),
            (Some(_), Some(false)) => {
                let shard = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(CheckpointError::file(self.dir.join("config.json"), FileError::MissingMethod { shard }));
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
            let mut head = [0; CODED_HEAD];
            let candidate = mark.is_some() && info.dtype == Element::U8 && end - begin >= head.len();
            if candidate {
                file.read_exact_at(&mut head, offset).at(&path)?;
            }
            let coded = candidate && looks_coded(&head);
            let side = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
            entries.push(TensorInfo {
                storage: if coded { Storage::Coded } else { Storage::Plain },
                shape: if coded { vec![side(8), side(12)] } else { info.shape.clone() },
                bytes: (end - begin) as u64,
                element: info.dtype,
                shard: self.shards.len(),
                offset,
                check: None,
                refinements: Vec::new(),
                name,
            });
        }
        if let Some(mark) = &mark {
            mark.assign_checks(&mut entries).map_err(in_shard)?;
        }
        for entry in entries {
            let name = entry.name.clone();
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(in_shard(FileError::DuplicateTensor { tensor: name }));
            }
        }
        self.shards.push(Shard { path, file, bytes: size, mark, names, layer: false });
        Ok(())
    }
}

/// Bytes that a coded tensor has at the least.
const CODED_HEAD: usize = 16;

/// True if bytes in a compressed shard are taken for a coded tensor.
pub(crate) fn looks_coded(bytes: &[u8]) -> bool {
    bytes.len() >= CODED_HEAD && bytes[..4] == MAGIC
}

/// True if `config.json` says that the shards are compressed; false without one.
fn is_compressed(dir: &Path) -> Result<bool> {
    let path = dir.join("config.json");
    if !path.exists() {
        return Ok(false);
    }
    let text = std::fs::read(&path).at(&path)?;
    let config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| CheckpointError::file(&path, FileError::Json { error }))?;
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
        return Err(CheckpointError::file(dir, FileError::NoShards));
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(&index).at(&index)?;
    let parsed: Index =
        serde_json::from_str(&text).map_err(|error| CheckpointError::file(&index, FileError::Json { error }))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    for name in &names {
        check_plain_name(name).map_err(|reason| CheckpointError::file(&index, reason))?;
        if !dir.join(name).exists() {
            let reason = FileError::MissingShard { shard: name.clone(), dir: dir.to_path_buf() };
            return Err(CheckpointError::file(&index, reason));
        }
    }
    Ok(names)
}
