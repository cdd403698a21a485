//! Quality layers: refinements of coded tensors, one shard for each layer. A base with any number of the first layers
//! is a checkpoint (section 12.1 of `docs/BITSTREAM.md`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use waterfill_codec::syntax::header::MAGIC;
use waterfill_codec::{CodecError, CodedTensor, Dtype, TilePlan};

use crate::control::{Control, Parts};
use crate::error::{AtPath, CheckpointError, FileError, Result, TensorError};
use crate::open::{Checkpoint, Shard};
use crate::parallel::{decode_parallel, refine_parallel};
use crate::safetensors_file::SafetensorsFile;
use crate::shard_mark::{ShardMark, digest_of_marks};
use crate::types::{Element, MARK_KEY, QualityPrefix, Refinement, Storage, TensorInfo};

/// File name of quality layer `number` of `of`.
pub fn quality_layer_name(number: usize, of: usize) -> String {
    format!("refinement-{number}-of-{of}.safetensors")
}

fn parse_name(name: &str) -> Option<(usize, usize)> {
    let (number, of) = name.strip_prefix("refinement-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let (number, of) = (number.parse().ok()?, of.parse().ok()?);
    (name == quality_layer_name(number, of) && (1..=of).contains(&number)).then_some((number, of))
}

/// Quality layers of a directory in order: number, number of layers, path.
fn layer_files(dir: &Path) -> Result<Vec<(usize, usize, PathBuf)>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).at(dir)? {
        let name = entry.at(dir)?.file_name();
        if let Some((number, of)) = name.to_str().and_then(parse_name) {
            let path = dir.join(&name);
            if let Some((_, other)) = found.insert(number, (of, path.clone())) {
                return Err(CheckpointError::file(path, FileError::DuplicateLayer { number, other }));
            }
        }
    }
    let all: Vec<_> = found.into_iter().map(|(number, (of, path))| (number, of, path)).collect();
    match all.iter().enumerate().find(|(n, (number, ..))| n + 1 != *number) {
        Some((n, (_, of, path))) => {
            let missing = quality_layer_name(n + 1, *of);
            Err(CheckpointError::file(path, FileError::MissingLayer { missing }))
        }
        None => Ok(all),
    }
}

impl Checkpoint {
    /// Opens a directory with `model.safetensors` or a sharded index, or one safetensors file, and reads all tensor
    /// tables. Quality layers are used as far as they are there.
    ///
    /// # Errors
    /// Missing or malformed files; shards named by the index that are not there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_prefix(path, QualityPrefix::All)
    }

    /// Opens no more of a directory than `prefix`. The last quality layer may be cut anywhere after its header: its
    /// complete tensors are used.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], layers that do not follow each other, and fewer bytes than the base takes.
    pub fn open_prefix(path: impl AsRef<Path>, prefix: QualityPrefix) -> Result<Self> {
        let path = path.as_ref();
        let mut this = Self::open_base(path)?;
        let wanted = match prefix {
            QualityPrefix::Layers(0) => return Err(CheckpointError::file(path, FileError::NoLayers)),
            QualityPrefix::Layers(layers) => layers - 1,
            _ => usize::MAX,
        };
        let mut left = match prefix {
            QualityPrefix::Bytes(bytes) => bytes
                .checked_sub(this.bytes())
                .ok_or_else(|| CheckpointError::file(path, FileError::BelowBase { bytes, base: this.bytes() }))?,
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

    /// Quality layers that are used, the base counted, the last one perhaps in part.
    pub fn quality_layers(&self) -> usize {
        1 + self.shards.iter().filter(|s| s.layer).count()
    }

    /// Adds the tensors of a layer that fit into `left` bytes; returns the bytes taken, and true if the layer is
    /// complete.
    fn add_layer(&mut self, shard: SafetensorsFile, (number, of): (usize, usize), left: u64) -> Result<(u64, bool)> {
        let SafetensorsFile { path, file, size, header, metadata } = shard;
        let in_shard = |reason| CheckpointError::file(&path, reason);
        let text = metadata.metadata().as_ref().and_then(|m| m.get(MARK_KEY));
        let text = text.ok_or_else(|| in_shard(FileError::MissingMark { configured: false }))?;
        let mark = ShardMark::parse(text).map_err(in_shard)?;
        mark.check_header(&header).map_err(in_shard)?;
        let before = digest_of_marks(self.shards.iter().filter_map(|s| s.mark.as_ref()));
        match &mark.layer {
            None => return Err(in_shard(FileError::NotALayer { number, of })),
            Some(found) if (found.number, found.of) != (number, of) => {
                let (found, found_of) = (found.number, found.of);
                return Err(in_shard(FileError::LayerNumber { found, found_of, number, of }));
            }
            Some(found) if found.before != before => return Err(in_shard(FileError::OtherCheckpoint { number, of })),
            Some(_) => {}
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
                file.read_exact_at(&mut head, offset).at(&path)?;
            }
            let wrong = |reason| CheckpointError::tensor(&path, &name, reason);
            if head[..4] != MAGIC || info.dtype != Element::U8 {
                return Err(wrong(TensorError::NotCoded));
            }
            let side = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
            let shape = [side(8), side(12)];
            match self.tensors.get_mut(&name) {
                Some(base) if base.storage == Storage::Coded && base.shape == shape => {
                    base.refinements.push(Refinement { shard: index, offset, bytes });
                }
                Some(base) => {
                    let expected = base.shape.clone();
                    return Err(wrong(TensorError::RefinementShape { found: shape, expected }));
                }
                None => return Err(wrong(TensorError::NotInBase)),
            }
            used = offset + bytes;
            names.push(name);
        }
        let whole = names.len() == count;
        self.shards.push(Shard { path, file, bytes: used, mark: Some(mark), names, layer: true });
        Ok((used, whole))
    }

    /// Refines the values of a matrix in place. `values` are what its first `layers` quality layers decode to, in its
    /// own type, and become what all open layers decode to. After an error they must not be used.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], a buffer of another size, values that are not of these layers, cancelled work.
    pub fn refine(&self, name: &str, layers: usize, values: &mut [u8], control: Control) -> Result<()> {
        let info = self.tensor(name)?;
        let layered = self.layered(info)?;
        let chain = layered.chain()?;
        let Some(last) = chain.last() else { return Ok(()) };
        let expected = last.bytes(last.header().rows);
        if values.len() != expected || layers == 0 {
            let found = values.len();
            return Err(self.wrong(info, TensorError::LayerBuffer { found, layers, expected }));
        }
        let left = chain.get(layers..).unwrap_or_default();
        let parts = Parts::new(control, left.iter().map(CodedTensor::slices).sum());
        left.iter().enumerate().try_for_each(|(n, coded)| {
            refine_parallel(coded, values, &parts, layered.failed(layers + n))?;
            // `values` may have been those of other layers.
            coded.check_digest(values).map_err(layered.failed(layers + n))
        })
    }

    /// All quality layers of a coded tensor.
    pub(crate) fn layered<'a>(&'a self, info: &'a TensorInfo) -> Result<Layered<'a>> {
        let mut raw = vec![(&self.shards[info.shard].path, self.read_raw(&info.name)?)];
        for part in &info.refinements {
            raw.push((&self.shards[part.shard].path, self.read_refinement(part)?));
        }
        Ok(Layered { name: &info.name, raw })
    }

    /// Stored bytes of a refinement.
    pub(crate) fn read_refinement(&self, part: &Refinement) -> Result<Vec<u8>> {
        let shard = &self.shards[part.shard];
        let mut bytes = vec![0; part.bytes as usize];
        shard.file.read_exact_at(&mut bytes, part.offset).at(&shard.path)?;
        Ok(bytes)
    }
}

/// Stored quality layers of a coded tensor.
pub(crate) struct Layered<'a> {
    name: &'a str,
    raw: Vec<(&'a PathBuf, Vec<u8>)>,
}

impl Layered<'_> {
    /// Error of layer `n`, 0 being the base.
    pub fn failed(&self, n: usize) -> impl Fn(CodecError) -> CheckpointError + Sync + use<> {
        let (path, tensor) = (self.raw[n].0.clone(), self.name.to_string());
        move |source| CheckpointError::Codec { path: path.clone(), tensor: tensor.clone(), source: Box::new(source) }
    }

    /// Parses the layers, each completed by the one before.
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

    /// Decodes parsed layers into `out` and verifies the last layer's digest.
    pub fn decode_into(&self, chain: &[CodedTensor], out: &mut [u8], parts: &Parts) -> Result<()> {
        let mut layers = chain.iter().enumerate();
        layers.try_for_each(|(n, coded)| refine_parallel(coded, out, parts, self.failed(n)))?;
        chain.last().map_or(Ok(()), |coded| coded.check_digest(out).map_err(self.failed(chain.len() - 1)))
    }

    /// Type and values of all layers, and the base's tiles. Verifies every layer's digest if `each`, else the last.
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
