//! Final hidden states, one block in memory at a time.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use waterfill_artifacts::{Pace, Progress, Work};
use waterfill_model::{Model, pack, unpack};

use crate::error::{EvaluateError, Result};

/// Tokens that go through all blocks together: what one block of questions or sequences is.
const BLOCK_TOKENS: usize = 1 << 16;

/// Splits batches into blocks of about [`BLOCK_TOKENS`] tokens.
pub(crate) fn blocks<T>(batches: &[T], tokens: impl Fn(&T) -> usize) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut filled = usize::MAX;
    for (i, batch) in batches.iter().enumerate() {
        if filled >= BLOCK_TOKENS {
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
        None => (0, model.embed(batches)?),
    };
    progress.advance((first * batches.len()) as u64);
    let mut pace = Pace::default();
    for index in first..model.config.layers {
        let block = model.block(index)?;
        states = states
            .into_par_iter()
            .map(|x| {
                let y = block.forward(&x)?;
                progress.advance(1);
                Ok(y)
            })
            .collect::<Result<_>>()?;
        pace.offer(|| Ok::<_, EvaluateError>(work.keep(name, &to_bytes(index + 1, &states)?)?))?;
    }
    work.forget(name);
    Ok(states)
}

/// The next block, then each state with its length.
fn to_bytes(next: usize, states: &[Tensor]) -> Result<Vec<u8>> {
    let mut bytes = (next as u64).to_le_bytes().to_vec();
    for state in states {
        let packed = pack(state)?;
        bytes.extend((packed.len() as u64).to_le_bytes());
        bytes.extend(packed);
    }
    Ok(bytes)
}

fn parse(mut bytes: &[u8], count: usize, device: &Device) -> Option<(usize, Vec<Tensor>)> {
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

/// Reads what [`write_states`] wrote.
///
/// # Errors
/// A file that is missing or malformed.
pub(crate) fn read_states(path: &Path, device: &Device) -> Result<Vec<Tensor>> {
    let named = candle_core::safetensors::load(path, device)?;
    (0..named.len())
        .map(|i| {
            let missing = || EvaluateError::File { path: path.to_path_buf(), reason: format!("has no state {i}") };
            named.get(&format!("{i:06}")).cloned().ok_or_else(missing)
        })
        .collect()
}
