//! Opening, listing, reading and verifying.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use waterfill_codec::header::MAGIC;
use waterfill_codec::{CodedTensor, Dtype, TilePlan};

use crate::error::{CheckpointError, Result};
use crate::writer::ShardMark;
use crate::{Element, MARK_KEY};

/// Largest safetensors header accepted, the limit of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

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
    /// Bytes it takes in its shard.
    pub bytes: u64,
    /// Element type in the shard; bytes for coded tensors, which carry theirs in their header.
    pub element: Element,
    shard: usize,
    offset: u64,
}

impl TensorInfo {
    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

struct Shard {
    path: PathBuf,
    file: File,
    bytes: u64,
    mark: Option<ShardMark>,
    /// Names in the order of the shard.
    names: Vec<String>,
}

/// An open checkpoint directory.
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A decoded tensor: its type and little-endian bytes.
pub struct Values {
    /// Element type.
    pub dtype: Dtype,
    /// Row-major little-endian elements.
    pub bytes: Vec<u8>,
    /// Tile decisions of a coded tensor, in raster order; empty when plain.
    pub tiles: Vec<TilePlan>,
}

impl Values {
    /// Elements as f32, exact for every supported type.
    pub fn to_f32(&self) -> Vec<f32> {
        let pattern = |b: &[u8]| b.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x));
        self.bytes.chunks_exact(self.dtype.bytes()).map(|b| self.dtype.value_of(pattern(b))).collect()
    }
}

impl Checkpoint {
    /// Opens a directory with `model.safetensors` or a sharded index, and reads all tensor tables.
    ///
    /// # Errors
    /// Missing or malformed files; shards named by the index that are not there.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        let mut this = Self { shards: Vec::new(), tensors: BTreeMap::new(), dir };
        for name in shard_names(&this.dir)? {
            this.add_shard(&name)?;
        }
        Ok(this)
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

    /// Bytes of all shards, headers included.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// Weights of all tensors.
    pub fn weights(&self) -> u64 {
        self.tensors().map(TensorInfo::weights).sum()
    }

    /// Bytes of a tensor as they lie in the shard.
    ///
    /// # Errors
    /// Read errors and unknown names.
    pub fn read_raw(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.tensor(name)?;
        let mut bytes = vec![0; info.bytes as usize];
        let shard = &self.shards[info.shard];
        shard.file.read_exact_at(&mut bytes, info.offset).map_err(CheckpointError::io(&shard.path))?;
        Ok(bytes)
    }

    /// Element type that a tensor has once decoded.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        let info = self.tensor(name)?;
        match (info.storage, info.element) {
            (Storage::Plain, Element::BF16) => Ok(Dtype::Bf16),
            (Storage::Plain, Element::F16) => Ok(Dtype::F16),
            (Storage::Plain, Element::F32) => Ok(Dtype::F32),
            (Storage::Plain, other) => Err(self.wrong(info, format!("dtype {other:?}, expected BF16, F16 or F32"))),
            (Storage::Coded, _) => Ok(self.read(name)?.dtype),
        }
    }

    /// Reads a tensor, decoding it when it is coded.
    ///
    /// # Errors
    /// Damage, unknown names, and element types other than bf16, f16 and f32.
    pub fn read(&self, name: &str) -> Result<Values> {
        let info = self.tensor(name)?;
        let bytes = self.read_raw(name)?;
        if info.storage == Storage::Plain {
            let dtype = self.dtype(name)?;
            return Ok(Values { dtype, bytes, tiles: Vec::new() });
        }
        let path = &self.shards[info.shard].path;
        let failed = |source| CheckpointError::Codec { path: path.clone(), tensor: name.into(), source };
        let coded = CodedTensor::parse(&bytes).map_err(failed)?;
        let dtype = coded.header().dtype;
        let (bytes, tiles) = coded.decode().map_err(failed)?;
        Ok(Values { dtype, bytes, tiles })
    }

    /// Reads a tensor of known shape as f32 values.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], and when the shape is another or a value is not finite.
    pub fn read_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let info = self.tensor(name)?;
        if info.shape != shape {
            return Err(self.wrong(info, format!("shape {:?}, config.json asks for {shape:?}", info.shape)));
        }
        let values = self.read(name)?.to_f32();
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(self.wrong(info, format!("element {i} is {}, expected a finite number", values[i])));
        }
        Ok(values)
    }

    /// Digest of everything that determines the model: all shards, `config.json` and
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// Read errors.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let shards = self.shards.iter().map(|s| s.path.clone());
        let others = ["config.json", "tokenizer.json"].map(|n| self.dir.join(n)).into_iter().filter(|p| p.exists());
        for path in shards.chain(others) {
            let mut file = blake3::Hasher::new();
            let reader = File::open(&path).map_err(CheckpointError::io(&path))?;
            file.update_reader(reader).map_err(CheckpointError::io(&path))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(format!("{name} {}\n", file.finalize().to_hex()).as_bytes());
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
            let coded = shard.names.iter().filter(|n| self.tensors[*n].storage == Storage::Coded);
            let mut count = 0;
            for name in coded {
                self.read(name)?;
                count += 1;
            }
            let path = shard.path.display();
            match &shard.mark {
                Some(ShardMark { digest: stored, .. }) => {
                    let table = shard.names.iter().map(|n| {
                        let info = &self.tensors[n];
                        let plain = info.storage == Storage::Plain;
                        Ok((n.as_str(), info.shape.clone(), if plain { Some(self.read_raw(n)?) } else { None }))
                    });
                    let computed = plain_digest(table)?;
                    if *stored != computed {
                        let reason = format!("plain tensors are damaged: digest {computed}, metadata says {stored}");
                        return Err(CheckpointError::file(&shard.path, reason));
                    }
                    lines.push(format!("{path}: {count} coded tensors and the plain ones match their digests"));
                }
                None => lines.push(format!("{path}: a plain shard without digests; its layout is consistent")),
            }
        }
        Ok(lines)
    }

    fn wrong(&self, info: &TensorInfo, reason: String) -> CheckpointError {
        let path = self.shards[info.shard].path.clone();
        CheckpointError::Tensor { path, tensor: info.name.clone(), reason }
    }

    fn add_shard(&mut self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        let file = File::open(&path).map_err(CheckpointError::io(&path))?;
        let size = file.metadata().map_err(CheckpointError::io(&path))?.len();
        let mut prefix = [0; 8];
        let short = |_| CheckpointError::file(&path, format!("{size} bytes are too few for a safetensors file"));
        file.read_exact_at(&mut prefix, 0).map_err(short)?;
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER || length + 8 > size {
            let reason = format!("truncated or not safetensors: header of {length} bytes in a file of {size}");
            return Err(CheckpointError::file(&path, reason));
        }
        let mut head = vec![0; length as usize];
        file.read_exact_at(&mut head, 8).map_err(CheckpointError::io(&path))?;
        // Deserialising checks that offsets are contiguous and fit shapes and types.
        let metadata: Metadata = serde_json::from_slice(&head)
            .map_err(|e| CheckpointError::file(&path, format!("malformed safetensors header: {e}")))?;
        let start = 8 + length;
        if start + metadata.data_len() as u64 != size {
            let expected = start + metadata.data_len() as u64;
            return Err(CheckpointError::file(&path, format!("{size} bytes, its header describes {expected}")));
        }
        let mark = match metadata.metadata().as_ref().and_then(|m| m.get(MARK_KEY)) {
            Some(text) => Some(ShardMark::parse(text).map_err(|e| CheckpointError::file(&path, e))?),
            None => None,
        };
        let mut tensors = metadata.tensors().into_iter().collect::<Vec<_>>();
        tensors.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then_with(|| a.0.cmp(&b.0)));
        let names = tensors.iter().map(|(n, _)| n.clone()).collect();
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
            let entry = TensorInfo {
                storage: if coded { Storage::Coded } else { Storage::Plain },
                shape: if coded { vec![side(8), side(12)] } else { info.shape.clone() },
                bytes: (end - begin) as u64,
                element: info.dtype,
                shard: self.shards.len(),
                offset,
                name: name.clone(),
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(CheckpointError::file(&path, format!("tensor {name} is in another shard too")));
            }
        }
        self.shards.push(Shard { path, file, bytes: size, mark, names });
        Ok(())
    }
}

/// Digest of a shard's tensor table (names and shapes in order) and of its plain tensors' bytes.
pub(crate) fn plain_digest<'a>(
    tensors: impl Iterator<Item = Result<(&'a str, Vec<usize>, Option<Vec<u8>>)>>,
) -> Result<String> {
    let mut entries = tensors.collect::<Result<Vec<_>>>()?;
    entries.sort_by(|a, b| a.0.cmp(b.0));
    let mut hasher = blake3::Hasher::new();
    for (name, shape, bytes) in &entries {
        hasher.update(format!("{name} {shape:?} {}\n", bytes.is_some()).as_bytes());
        if let Some(bytes) = bytes {
            hasher.update(blake3::hash(bytes).as_bytes());
        }
    }
    Ok(hasher.finalize().to_hex()[..32].to_string())
}

/// Shard file names: the single file, or those the index names.
fn shard_names(dir: &Path) -> Result<Vec<String>> {
    let index = dir.join("model.safetensors.index.json");
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
