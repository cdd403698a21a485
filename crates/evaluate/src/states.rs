//! Final hidden states, one block in memory at a time.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use waterfill_artifacts::Progress;
use waterfill_model::Model;

use crate::error::{EvaluateError, Result};

/// Outputs of the last block, `[rows, tokens, hidden]` for each batch. All rows of a batch have
/// the same length.
///
/// # Errors
/// Checkpoints that cannot be read, rows longer than the model's context.
pub fn final_states(model: &Model, batches: &[Vec<&[u32]>], progress: &dyn Progress) -> Result<Vec<Tensor>> {
    progress.start("forward", (model.config.layers * batches.len()) as u64);
    let mut states = model.embed(batches)?;
    for index in 0..model.config.layers {
        let block = model.block(index)?;
        states = states
            .into_par_iter()
            .map(|x| {
                let y = block.forward(&x)?;
                progress.advance(1);
                Ok(y)
            })
            .collect::<Result<_>>()?;
    }
    Ok(states)
}

/// Keeps states in a file, so that the original model runs once for any number of comparisons.
///
/// # Errors
/// As the file system says.
pub fn write_states(states: &[Tensor], path: &Path) -> Result<()> {
    let named: HashMap<String, Tensor> =
        states.iter().enumerate().map(|(i, t)| (format!("{i:06}"), t.clone())).collect();
    Ok(candle_core::safetensors::save(&named, path)?)
}

/// Reads what [`write_states`] wrote.
///
/// # Errors
/// A file that is missing or malformed.
pub fn read_states(path: &Path, device: &Device) -> Result<Vec<Tensor>> {
    let named = candle_core::safetensors::load(path, device)?;
    (0..named.len())
        .map(|i| {
            let missing = || EvaluateError::File { path: path.to_path_buf(), reason: format!("has no state {i}") };
            named.get(&format!("{i:06}")).cloned().ok_or_else(missing)
        })
        .collect()
}
