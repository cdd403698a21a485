//! A checkpoint ready to write text.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use serde::Serialize;
use waterfill_checkpoint::{Checkpoint, QualityPrefix};
use waterfill_model::roles::is_linear;
use waterfill_model::{Generator, Linear, Model, Reader, Text, greedy};

use crate::coded::CodedLinear;
use crate::error::{Result, RuntimeError};
use crate::linear::PackedLinear;

/// Form of matrices in memory: of linear layers, embedding and head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Packed tiles; products straight from them.
    Packed,
    /// As in the file, decoded a slice at a time when they are used.
    Coded,
    /// Values in f32.
    Dense,
}

/// A loaded checkpoint.
pub struct Runtime {
    generator: Generator,
    text: Text,
    positions: usize,
    /// Bytes that the linear layers of all blocks take.
    pub linear_bytes: usize,
    /// Their weights.
    pub linear_weights: u64,
    /// Bytes that all tensors take, embedding and head included.
    pub resident_bytes: usize,
    /// Weights of all tensors.
    pub weights: u64,
    /// Seconds that loading took.
    pub load_seconds: f64,
}

/// A continuation.
#[derive(Debug, Clone, Serialize)]
pub struct Written {
    /// Text of the continuation.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt read in a second.
    pub prompt_rate: f64,
    /// Tokens written in a second.
    pub rate: f64,
}

impl Runtime {
    /// Loads a checkpoint directory, compressed or not.
    ///
    /// # Errors
    /// Checkpoints that cannot be read or run.
    pub fn open(dir: &Path, form: Form) -> Result<Self> {
        let start = Instant::now();
        Self::of(&Model::open(dir, &Device::Cpu)?, dir, form, start)
    }

    /// As [`Runtime::open`] with no more of the checkpoint than `prefix`.
    ///
    /// # Errors
    /// As [`Runtime::open`].
    pub fn open_prefix(dir: &Path, prefix: QualityPrefix, form: Form) -> Result<Self> {
        let start = Instant::now();
        Self::of(&Model::open_prefix(dir, prefix, &Device::Cpu)?, dir, form, start)
    }

    /// Loads a model whose tokenizer is in `dir`; loading began at `start`.
    ///
    /// # Errors
    /// As [`Runtime::open`].
    pub fn of(model: &Model, dir: &Path, form: Form, start: Instant) -> Result<Self> {
        let text = Text::open(dir, &model.config)?;
        let (mut linear_bytes, mut linear_weights, mut resident_bytes) = (0, 0, 0);
        let matrices: HashMap<String, u64> =
            model.weights().into_iter().map(|(name, [rows, cols])| (name, (rows * cols) as u64)).collect();
        let generator = Generator::with(model, &mut |name| {
            let weights = matrices.get(name).copied().unwrap_or(0);
            let (bytes, matrix) = matrix(model.checkpoint(), name, form)?;
            let bytes = bytes.unwrap_or(4 * weights as usize);
            resident_bytes += bytes;
            if is_linear(name) {
                linear_bytes += bytes;
                linear_weights += weights;
            }
            Ok(matrix)
        })?;
        let others = model.checkpoint().tensors().filter(|info| !matrices.contains_key(&info.name));
        resident_bytes += others.map(|info| info.plain_resident_bytes() as usize).sum::<usize>();
        let (load_seconds, weights) = (start.elapsed().as_secs_f64(), model.checkpoint().weights());
        let positions = model.config.positions;
        Ok(Self { generator, text, positions, linear_bytes, linear_weights, resident_bytes, weights, load_seconds })
    }

    /// The likeliest continuation of `prompt`, `most` tokens or fewer.
    ///
    /// # Errors
    /// Prompts that are empty or leave no room.
    pub fn write(&self, prompt: &str, most: usize) -> Result<Written> {
        let ids = self.ids(prompt, most)?;
        let mut sequence = self.generator.sequence();
        let mut read = Timed { reader: &mut sequence, calls: vec![] };
        let made = greedy(&mut read, &ids, most, |_| false)?;
        let (first, rest) = (read.calls[0], &read.calls[1..]);
        // Some tokenizers drop the space that a text begins with.
        let (before, whole) = (self.text.decode(&ids)?, self.text.decode(&[&ids[..], &made].concat())?);
        let text = whole.strip_prefix(&before).map_or_else(|| self.text.decode(&made), |text| Ok(text.into()))?;
        Ok(Written {
            text,
            tokens: made.len(),
            prompt_tokens: ids.len(),
            prompt_rate: ids.len() as f64 / first,
            rate: rest.len() as f64 / rest.iter().sum::<f64>().max(f64::MIN_POSITIVE),
        })
    }

    /// Logits of what follows a prompt.
    ///
    /// # Errors
    /// As [`Runtime::write`].
    pub fn logits(&self, prompt: &str) -> Result<Vec<f32>> {
        Ok(self.generator.sequence().read(&self.ids(prompt, 0)?)?)
    }

    fn ids(&self, prompt: &str, most: usize) -> Result<Vec<u32>> {
        let ids = [self.text.prefix(), &self.text.encode(prompt)?].concat();
        let room = self.positions.saturating_sub(most);
        if ids.is_empty() || ids.len() > room {
            return Err(RuntimeError::Prompt { tokens: ids.len(), most: room, positions: self.positions });
        }
        Ok(ids)
    }
}

/// A matrix in a form with the bytes that it takes; none where it is to be dense.
fn matrix(checkpoint: &Checkpoint, name: &str, form: Form) -> waterfill_checkpoint::Result<Matrix> {
    if form == Form::Coded
        && let Some(coded) = CodedLinear::open(checkpoint, name)?
    {
        return Ok((Some(coded.resident_bytes()), Some(Arc::new(coded))));
    }
    // Rows of embeddings cannot be looked up in layers that lie apart.
    if form == Form::Dense || !is_linear(name) && checkpoint.tensor(name)?.quality_layers() > 1 {
        return Ok((None, None));
    }
    let packed = PackedLinear::open(checkpoint, name)?;
    Ok((Some(packed.resident_bytes()), Some(Arc::new(packed))))
}

type Matrix = (Option<usize>, Option<Arc<dyn Linear>>);

/// A reader with the seconds of its calls.
struct Timed<'a> {
    reader: &'a mut dyn Reader,
    calls: Vec<f64>,
}

impl Reader for Timed<'_> {
    fn read(&mut self, tokens: &[u32]) -> waterfill_model::Result<Vec<f32>> {
        let start = Instant::now();
        let logits = self.reader.read(tokens)?;
        self.calls.push(start.elapsed().as_secs_f64());
        Ok(logits)
    }
}
