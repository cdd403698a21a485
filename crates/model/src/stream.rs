//! A checkpoint as a model whose parts are loaded when needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use waterfill_checkpoint::{Checkpoint, QualityPrefix, Storage};

use crate::block::{Block, Others};
use crate::config::{ModelConfig, lm_head_name};
use crate::error::{ModelError, Result};
use crate::head::Head;
use crate::roles::{EMBEDDING, FINAL_NORM, HEAD, Projection, TensorRole};
use crate::rope::Rotary;

/// A model on disk, compressed or not.
pub struct Model {
    /// Shape and constants.
    pub config: ModelConfig,
    checkpoint: Checkpoint,
    /// Another checkpoint of the same model, and the names of tensors that are read from it instead.
    replaced: Option<(Checkpoint, BTreeSet<String>)>,
    /// Values that replace those of the checkpoints, by tensor.
    values: BTreeMap<String, Vec<f32>>,
    device: Device,
    dtype: DType,
    rotary: Rotary,
}

impl Model {
    /// Opens the checkpoint directory `dir`; arithmetic is in f32.
    ///
    /// # Errors
    /// Checkpoints that cannot be read or run.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        Self::open_as(dir, device, DType::F32)
    }

    /// As [`Model::open`] with no more of the checkpoint than `prefix`.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_prefix(dir: &Path, prefix: QualityPrefix, device: &Device) -> Result<Self> {
        Self::of(dir, Checkpoint::open_prefix(dir, prefix)?, device, DType::F32)
    }

    /// As [`Model::open`] with arithmetic in `dtype` (f64 serves as a reference in tests).
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_as(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        Self::of(dir, Checkpoint::open(dir)?, device, dtype)
    }

    fn of(dir: &Path, checkpoint: Checkpoint, device: &Device, dtype: DType) -> Result<Self> {
        let config = ModelConfig::open(dir)?;
        let mut checkpoint = checkpoint;
        if config.tied && checkpoint.contains(HEAD) {
            leave_out_copied_head(&mut checkpoint, dir)?;
        }
        let rotary = Rotary::new(&config, &Tensor::zeros(1, dtype, device)?);
        Ok(Self { config, checkpoint, replaced: None, values: BTreeMap::new(), device: device.clone(), dtype, rotary })
    }

    /// The model with the tensors `names` taken from `other`, another checkpoint of the same model.
    pub fn with(mut self, other: Checkpoint, names: BTreeSet<String>) -> Self {
        self.replaced = Some((other, names));
        self
    }

    /// Values of one of [`Model::weights`], row-major.
    ///
    /// # Errors
    /// Tensors that are missing, damaged or of another shape.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let shape = self.weights().into_iter().find(|(n, _)| n == name).map(|(_, shape)| shape.to_vec());
        Ok(self.source(name).read_f32(name, &shape.unwrap_or_default())?)
    }

    /// Sets the values of a tensor, row-major; shapes are checked where it is loaded.
    pub fn set_values(&mut self, name: &str, values: Vec<f32>) {
        self.values.insert(name.into(), values);
    }

    /// Takes back what [`Model::set_values`] set.
    pub fn unset_values(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// The checkpoint that a tensor is read from.
    fn source(&self, name: &str) -> &Checkpoint {
        match &self.replaced {
            Some((other, names)) if names.contains(name) => other,
            _ => &self.checkpoint,
        }
    }

    /// The checkpoint behind the model.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Device the model runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Names and shapes `[rows, cols]` of the matrices that may be coded, which calibration covers: embedding, linear
    /// layers of blocks, head.
    pub fn weights(&self) -> Vec<(String, [usize; 2])> {
        let matrices = self.config.tensors().into_iter().filter(|(role, _)| role.may_be_coded());
        matrices.map(|(role, shape)| (role.name(), [shape[0], shape[1]])).collect()
    }

    /// Loads block `index`.
    ///
    /// # Errors
    /// Tensors that are missing, damaged, of another shape or not finite.
    pub fn block(&self, index: usize) -> Result<Block> {
        self.block_with(index, &mut |_| Ok(None))
    }

    /// As [`Model::block`] for forward passes alone. Weights for which `others` gives a replacement are not loaded.
    ///
    /// # Errors
    /// As [`Model::block`], and those of `others`.
    pub fn block_with(&self, index: usize, others: &mut Others) -> Result<Block> {
        let load = |role: TensorRole, shape: &[usize]| self.load(&role.name(), shape);
        let (block, hidden, head_dim) = (index, self.config.hidden, self.config.head_dim);
        let attention_norm = load(TensorRole::AttentionNorm { block }, &[hidden])?;
        let mlp_norm = load(TensorRole::MlpNorm { block }, &[hidden])?;
        let found = Projection::ALL.iter().map(|p| others(&p.weight(index).name())).collect::<Result<Vec<_>>>()?;
        // Coded tensors take time, and small ones have few slices to decode side by side.
        let weight = |&projection: &Projection| match &found[projection as usize] {
            Some(_) => Ok(Tensor::zeros((0, 0), self.dtype, &self.device)?),
            None => load(projection.weight(index), &self.config.linear_shape(projection)),
        };
        let weights = Projection::ALL.par_iter().map(weight).collect::<Result<Vec<_>>>()?;
        let bias = |&projection: &Projection| match self.config.biases[projection as usize] {
            true => load(projection.bias(index), &self.config.linear_shape(projection)[..1]).map(Some),
            false => Ok(None),
        };
        let biases = Projection::ALL.iter().map(bias).collect::<Result<_>>()?;
        let qk_norms = match self.config.qk_norm {
            true => Some([
                load(TensorRole::QueryNorm { block }, &[head_dim])?,
                load(TensorRole::KeyNorm { block }, &[head_dim])?,
            ]),
            false => None,
        };
        Ok(Block {
            index,
            config: self.config.clone(),
            attention_norm,
            mlp_norm,
            weights,
            others: found,
            biases,
            qk_norms,
            rotary: self.rotary.clone(),
        })
    }

    /// Loads final norm and head.
    ///
    /// # Errors
    /// As [`Model::block`].
    pub fn head(&self) -> Result<Head> {
        let norm = self.final_norm()?;
        let weight = self.load(lm_head_name(&self.config), &[self.config.vocab, self.config.hidden])?;
        Ok(Head { config: self.config.clone(), norm, weight })
    }

    /// Weights of the final norm, `[hidden]`.
    ///
    /// # Errors
    /// As [`Model::block`].
    pub(crate) fn final_norm(&self) -> Result<Tensor> {
        self.load(FINAL_NORM, &[self.config.hidden])
    }

    /// Embeddings of batches of equally long rows of token ids: hands over the index and
    /// `[batch, tokens, hidden]` of each. Only the table's rows that occur are held.
    ///
    /// # Errors
    /// As [`Model::block`], ids beyond the vocabulary, and those of `each`.
    pub fn embed<E: From<ModelError>>(
        &self,
        batches: &[Vec<&[u32]>],
        mut each: impl FnMut(usize, Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let hidden = self.config.hidden;
        let used: BTreeSet<u32> = batches.iter().flatten().copied().flatten().copied().collect();
        let rows = match self.values.get(EMBEDDING) {
            Some(table) => {
                let row = |id: u32| Some((id, table.get(id as usize * hidden..(id as usize + 1) * hidden)?.to_vec()));
                used.iter().filter_map(|&id| row(id)).collect()
            }
            None => {
                let shape = [self.config.vocab, hidden];
                let table = self.source(EMBEDDING).rows(EMBEDDING, &shape).map_err(ModelError::from)?;
                let read = |id: u32| Ok((id, table.read(id as usize..id as usize + 1).map_err(ModelError::from)?));
                used.into_iter().map(read).collect::<Result<HashMap<u32, Vec<f32>>>>()?
            }
        };
        for (b, batch) in batches.iter().enumerate() {
            let tokens = batch.first().map_or(0, |row| row.len());
            let mut values = Vec::with_capacity(batch.len() * tokens * hidden);
            for id in batch.iter().copied().flatten() {
                values.extend_from_slice(&rows[id]);
            }
            let embedded = Tensor::from_vec(values, (batch.len(), tokens, hidden), &self.device)
                .and_then(|t| t.to_dtype(self.dtype))
                .map_err(ModelError::from)?;
            each(b, embedded)?;
        }
        Ok(())
    }

    pub(crate) fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = match self.values.get(name) {
            Some(values) => values.clone(),
            None => self.source(name).read_f32(name, shape)?,
        };
        Ok(Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)?)
    }
}

/// Leaves out the copy of the embedding that files of some tied models have as a head. Another matrix there is refused: some
/// programs would use it, and others the embedding.
fn leave_out_copied_head(checkpoint: &mut Checkpoint, dir: &Path) -> Result<()> {
    let (embedding, head) = (checkpoint.tensor(EMBEDDING)?, checkpoint.tensor(HEAD)?);
    let equal = embedding.shape == head.shape
        && match (embedding.storage, embedding.element == head.element) {
            // Of the original's embedding.
            (Storage::Coded, _) => true,
            (_, true) => checkpoint.read_raw(EMBEDDING)? == checkpoint.read_raw(HEAD)?,
            (_, false) => {
                checkpoint.read_f32(EMBEDDING, &embedding.shape)? == checkpoint.read_f32(HEAD, &head.shape)?
            }
        };
    if !equal {
        let reason = format!(
            "tie_word_embeddings is true, but {HEAD} is there and differs from {EMBEDDING}; set tie_word_embeddings to false to \
             use it, or remove {HEAD} from the file"
        );
        return Err(ModelError::Unsupported { path: dir.join("config.json"), reason });
    }
    checkpoint.leave_out(HEAD);
    Ok(())
}
