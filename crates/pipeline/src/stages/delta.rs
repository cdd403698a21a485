//! Deltas with loss: the changes of a fine-tune from its base, coded by rate and distortion.

use std::path::Path;

use serde::{Deserialize, Serialize};
use waterfill_allocate::Allocation;
use waterfill_checkpoint::delta::{self, Coders, Counts, LeftOut};
use waterfill_checkpoint::writer::copy_file;
use waterfill_checkpoint::{Checkpoint, CheckpointError, TensorError};
use waterfill_quantize::{EncodeError, code_delta, find_factors};
use waterfill_store::{Identity, Progress, Work};

use super::encode::{options, settings};
use crate::context::Context;
use crate::error::{PipelineError, Result};
use crate::estimate::PROGRAM;
use crate::results::{AllocationSummary, write_json};
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of both artifacts; raised when deltas change.
const VERSION: u32 = 3;

/// `summary.json` of a delta.
#[derive(Serialize, Deserialize)]
pub(crate) struct DeltaSummary {
    /// Nats per bit.
    pub lambda: f64,
    /// Bytes of the whole directory.
    pub bytes: u64,
    /// Tensors by how they are coded.
    pub tensors: Counts,
    /// What the fine-tune's directory has and the delta does not.
    pub left_out: Vec<LeftOut>,
}

/// `delta/` from a base to the context's model, a fine-tune, and `checkpoint/`, which it restores.
pub(crate) struct LossyDelta<'a> {
    pub calibration: &'a ArtifactRef,
    pub allocation: &'a ArtifactRef,
    pub base: &'a Path,
}

impl Stage for LossyDelta<'_> {
    fn label(&self) -> String {
        "delta".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        // All files are kept, also those that make no difference to the model.
        let files = delta::digest_of_files(context.model.checkpoint().dir())?;
        let base = delta::digest_of_files(self.base)?;
        let inputs = [("allocate", self.allocation.digest()), ("base", base), ("files", files)];
        let mut identity = context.identity("delta", VERSION, &inputs, settings(context));
        identity.inputs.insert("calibrate".into(), self.calibration.digest());
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let operations = context.model.checkpoint().weights() as f64 * 4e3;
        Estimate { operations, memory: PROGRAM, disk: 0 }
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let map = Allocation::open(&self.allocation.path("allocation.safetensors"))?;
        let options = options(context, self.calibration)?;
        let source = context.model.checkpoint();
        let names = map.names();
        context.console.start("delta", names.len() as u64);
        let lossy = |name: &str, before: Option<Vec<u8>>| {
            if !names.iter().any(|n| n == name) {
                return Ok(None);
            }
            let info = source.tensor(name)?;
            let given = code_delta(source, &map, info, before, &options).map_err(|error| match error {
                EncodeError::Checkpoint(error) => error,
                other => CheckpointError::tensor(source.dir(), name, TensorError::Coder { error: other.into() }),
            })?;
            context.console.advance(1);
            Ok(Some(given.coded))
        };
        let dir = work.path("delta");
        let coders = Coders { lossy: &lossy, factors: Some(&find_factors) };
        let delta::DeltaSummary { delta: bytes, tensors, left_out, .. } =
            delta::delta_with(self.base, source.dir(), &dir, &coders, &|_| {})?;
        delta::apply(self.base, &dir, &work.path("checkpoint"), &|_| {})?;
        let allocation: AllocationSummary = self.allocation.read("summary.json")?;
        let lambda = allocation.lambda;
        write_json(&work.path("summary.json"), &DeltaSummary { lambda, bytes, tensors, left_out })
    }
}

/// The base as an artifact with `checkpoint/`, to be compared with the fine-tune.
pub(crate) struct DeltaBase<'a> {
    pub base: &'a Path,
}

impl Stage for DeltaBase<'_> {
    fn label(&self) -> String {
        "delta-base".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let inputs = [("base", Checkpoint::open(self.base)?.digest()?)];
        Ok(context.identity("delta-base", VERSION, &inputs, serde_json::Value::Null))
    }

    fn estimate(&self, _context: &Context) -> Estimate {
        Estimate { operations: 0.0, memory: PROGRAM, disk: 0 }
    }

    fn run(&self, _context: &Context, work: &Work) -> Result<()> {
        copy(self.base, &work.path("checkpoint"))
    }
}

/// Copies the files directly in a directory.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(PipelineError::io(to))?;
    for entry in std::fs::read_dir(from).map_err(PipelineError::io(from))? {
        let path = entry.map_err(PipelineError::io(from))?.path();
        if path.is_file() {
            let target = to.join(path.file_name().unwrap_or_default());
            copy_file(&path, &target)?;
        }
    }
    Ok(())
}
