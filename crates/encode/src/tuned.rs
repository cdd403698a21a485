//! Encoding: every tensor to a blob, then the blobs to shards.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_allocate::{Allocation, read_plan};
use waterfill_artifacts::{Progress, Work};
use waterfill_checkpoint::writer::{Entry, write_companions, write_file, write_shards};
use waterfill_checkpoint::{Checkpoint, CheckpointError, TensorInfo};
use waterfill_codec::encode_tensor;

use crate::{EncodeError, Result};

/// Sizes of a written checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodeSummary {
    /// Bytes of all `.safetensors` files, whole.
    pub bytes: u64,
    /// Weights of all tensors.
    pub weights: u64,
    /// Bytes of the coded linear layers alone, embedding and head not included.
    pub linear_bytes: u64,
    /// Weights of those.
    pub linear_weights: u64,
}

/// Writes the tuned checkpoint of `source` under `allocation` into `checkpoint/` of `work`, where a
/// tensor is a unit. Tensors without a plan are copied as they are. The result does not depend on
/// the number of threads.
///
/// # Errors
/// Tensors that cannot be read, plans that do not fit, files that cannot be written.
pub fn encode(
    source: &Checkpoint,
    allocation: &Allocation,
    work: &Work,
    progress: &dyn Progress,
) -> Result<EncodeSummary> {
    let names = allocation.names();
    if let Some(missing) = names.iter().find(|n| !source.contains(n)) {
        source.tensor(missing)?;
    }
    let out = work.path("checkpoint");
    std::fs::create_dir(&out).map_err(CheckpointError::io(&out))?;
    let tensors: Vec<&TensorInfo> = source.tensors().collect();
    progress.start("encode", tensors.len() as u64);
    let entries = tensors
        .par_iter()
        .enumerate()
        .map(|(i, info)| {
            let coded = names.contains(&info.name);
            let blob = work.file(&format!("tensor-{i}"), |path| -> Result<()> {
                let bytes = if coded { code(source, allocation, info)? } else { source.read_raw(&info.name)? };
                Ok(write_file(path, &bytes)?)
            })?;
            let bytes = blob.metadata().map_err(CheckpointError::io(&blob))?.len();
            progress.advance(1);
            let plain = (!coded).then_some(info.element);
            Ok(Entry { name: info.name.clone(), shape: info.shape.clone(), plain, blob, bytes })
        })
        .collect::<Result<Vec<Entry>>>()?;
    write_shards(&out, &entries, true)?;
    write_companions(source.dir(), &out, true)?;
    let written = Checkpoint::open(&out)?;
    let linear = |info: &&TensorInfo| info.name.contains("_proj.");
    Ok(EncodeSummary {
        bytes: written.bytes(),
        weights: written.weights(),
        linear_bytes: written.tensors().filter(linear).map(|t| t.bytes).sum(),
        linear_weights: written.tensors().filter(linear).map(TensorInfo::weights).sum(),
    })
}

fn code(source: &Checkpoint, allocation: &Allocation, info: &TensorInfo) -> Result<Vec<u8>> {
    let plan = read_plan(allocation, &info.name)?;
    let weights = source.read(&info.name)?.to_f32();
    encode_tensor(&plan, &weights).map_err(|source| EncodeError::Codec { tensor: info.name.clone(), source })
}
