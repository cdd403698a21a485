//! Final hidden states, one block in memory at a time.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use waterfill_checkpoint::SafetensorsFile;
use waterfill_model::{Model, ModelConfig, pack, side_by_side, unpack};
use waterfill_store::{Pace, Progress, Work};

use crate::error::{EvaluateError, Result};

/// Most tokens that go through all blocks together: what one block of questions or sequences is.
const BLOCK_TOKENS: usize = 1 << 16;
/// Most bytes of their hidden states.
const STATE_BYTES: usize = 1 << 30;

/// Tokens that go through all blocks of a model together.
pub fn block_tokens(config: &ModelConfig) -> usize {
    (STATE_BYTES / (4 * config.hidden)).clamp(1, BLOCK_TOKENS)
}

/// Splits batches into blocks of about [`block_tokens`] tokens.
pub(crate) fn blocks<T>(config: &ModelConfig, batches: &[T], tokens: impl Fn(&T) -> usize) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let (mut filled, most) = (usize::MAX, block_tokens(config));
    for (i, batch) in batches.iter().enumerate() {
        if filled.saturating_add(tokens(batch)) > most {
            blocks.push(i..i);
            filled = 0;
        }
        filled += tokens(batch);
        blocks.last_mut().expect("a block was just pushed").end = i + 1;
    }
    blocks
}

/// Outputs of the last block, `[rows, tokens, hidden]` for each batch. All rows of a batch have
/// the same length. States between blocks are kept as unit `name` of `work` where that is cheap.
///
/// # Errors
/// Checkpoints that cannot be read, rows longer than the model's context.
pub(crate) fn final_states(
    model: &Model,
    batches: &[Vec<&[u32]>],
    (work, name): (&Work, &str),
    progress: &dyn Progress,
) -> Result<Vec<Tensor>> {
    let kept = work.unit(name).and_then(|bytes| parse(&bytes, batches.len(), model.device()));
    let (first, mut states) = match kept {
        Some(kept) => kept,
        None => {
            let mut embedded = Vec::new();
            let collect = |_, x| -> Result<()> {
                embedded.push(x);
                Ok(())
            };
            model.embed(batches, collect)?;
            (0, embedded)
        }
    };
    progress.advance((first * batches.len()) as u64);
    let largest = batches.iter().map(|b| b.iter().map(|row| row.len()).sum()).max().unwrap_or(0);
    let width = side_by_side(model.device(), model.config.forward_bytes(largest));
    let mut pace = Pace::default();
    for index in first..model.config.layers {
        let block = model.block(index)?;
        for group in states.chunks_mut(width) {
            group.par_iter_mut().try_for_each(|x| {
                *x = block.forward(x)?;
                progress.advance(1);
                Ok::<_, EvaluateError>(())
            })?;
        }
        pace.offer(|| keep(work, name, index + 1, &states))?;
    }
    work.forget(name);
    Ok(states)
}

/// Keeps the next block's index, then each state with its length.
pub(crate) fn keep(work: &Work, name: &str, next: usize, states: &[Tensor]) -> Result<()> {
    let mut failed = None;
    work.keep_parts(name, |sink| {
        sink(&(next as u64).to_le_bytes())?;
        for state in states {
            match pack(state) {
                Ok(packed) => {
                    sink(&(packed.len() as u64).to_le_bytes())?;
                    sink(&packed)?;
                }
                Err(error) => failed = Some(error),
            }
        }
        Ok(())
    })?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

pub(crate) fn parse(mut bytes: &[u8], count: usize, device: &Device) -> Option<(usize, Vec<Tensor>)> {
    let number = |bytes: &mut &[u8]| {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        Some(u64::from_le_bytes(*head) as usize)
    };
    let next = number(&mut bytes)?;
    let mut states = Vec::new();
    for _ in 0..count {
        let length = number(&mut bytes)?;
        let (packed, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        states.push(unpack(packed, device)?);
    }
    bytes.is_empty().then_some((next, states))
}

/// Keeps states in a file, so that the original model runs once for any number of comparisons.
///
/// # Errors
/// As the file system says.
pub(crate) fn write_states(states: &[Tensor], path: &Path) -> Result<()> {
    let named: HashMap<String, Tensor> =
        states.iter().enumerate().map(|(i, t)| (format!("{i:06}"), t.clone())).collect();
    Ok(candle_core::safetensors::save(&named, path)?)
}

/// States that [`write_states`] wrote, read when they are needed.
pub(crate) struct States(SafetensorsFile);

impl States {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(SafetensorsFile::open(path)?))
    }

    /// States of batch `i`.
    ///
    /// # Errors
    /// A state that is missing or of another type.
    pub fn read(&self, i: usize, device: &Device) -> Result<Tensor> {
        let (shape, values) = self.0.read_f32(&format!("{i:06}"))?;
        Ok(Tensor::from_vec(values, shape, device)?)
    }
}
