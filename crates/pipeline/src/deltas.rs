//! Deltas with loss: what a fine-tune has changed from its base, coded by rate and distortion.

use std::path::Path;

use serde::{Deserialize, Serialize};
use waterfill_allocate::Allocation;
use waterfill_checkpoint::delta::{self, Coders, Counts, DeltaSummary};
use waterfill_checkpoint::{Checkpoint, CheckpointError, Prefix};
use waterfill_codec::BitsPerWeight;
use waterfill_quantize::{EncodeError, code_delta, find_factors};
use waterfill_store::{Artifact, Progress};

use crate::error::{PipelineError, Result};
use crate::evaluation::Whose;
use crate::results::{read_json, write_json};
use crate::session::Session;

/// Goes up when deltas change.
const VERSION: u32 = 2;

/// A delta with loss, and what it loses.
#[derive(Debug, Clone, Serialize)]
pub struct LossyDelta {
    /// Nats of loss for one bit.
    pub lambda: f64,
    /// Bytes of the whole directory.
    pub bytes: u64,
    /// Bits of it over all weights.
    pub bits_per_weight: f64,
    /// Tensors by how they are coded.
    pub tensors: Counts,
    /// KL(fine-tune || restored) and its standard error, nats per token.
    pub kl: f64,
    /// Standard error of `kl` over sequences.
    pub kl_se: f64,
    /// KL(fine-tune || base): what it would be to leave the delta out.
    pub base_kl: f64,
    /// exp(nats per token) of the fine-tune and of what is restored.
    pub perplexity: [f64; 2],
}

#[derive(Serialize, Deserialize)]
struct Summary {
    lambda: f64,
    bytes: u64,
    tensors: Counts,
}

/// Writes what the session's model, a fine-tune, has changed from `base` into `out`, which is created, at the one goal of
/// its configuration; what is restored is evaluated.
///
/// # Errors
/// The first failure of any stage; configurations with several goals.
pub fn lossy_delta(session: &Session, base: &Path, out: &Path) -> Result<LossyDelta> {
    let refused = |reason: String| PipelineError::Config { path: out.into(), reason };
    if out.exists() {
        return Err(refused("exists already; choose another name or remove it".into()));
    }
    let goals = session.goals();
    let [goal] = goals[..] else {
        return Err(refused(format!("a delta has one size, allocate asks for {}", goals.len())));
    };
    let calibration = session.calibrate()?;
    let points = session.points(&calibration.fitted)?;
    let allocation = session.allocate(&points, None, goal)?;
    let known = Checkpoint::open(base)?;
    let inputs = [("allocate", allocation.digest()), ("base", known.digest()?)];
    let mut identity = session.identity("delta", VERSION, inputs, session.coding());
    identity.inputs.insert("calibrate".into(), calibration.fitted.digest());
    identity.inputs.extend(calibration.held_out.iter().map(|a| ("held-out".to_string(), a.digest())));
    let made = session.stage("delta", &identity, |work| {
        let map = Allocation::open(&allocation.path("allocation.safetensors"))?;
        let options = session.options(&calibration)?;
        let source = session.model.checkpoint();
        let names = map.names();
        session.console.start("delta", names.len() as u64);
        let lossy = |name: &str, before: Option<Vec<u8>>| {
            if !names.iter().any(|n| n == name) {
                return Ok(None);
            }
            let info = source.tensor(name)?;
            let given = code_delta(source, &map, info, before, &options).map_err(|error| match error {
                EncodeError::Checkpoint(error) => error,
                other => {
                    let (path, tensor, reason) = (source.dir().into(), name.into(), other.to_string());
                    CheckpointError::Tensor { path, tensor, reason }
                }
            })?;
            session.console.advance(1);
            Ok(Some(given.coded))
        };
        let dir = work.path("delta");
        let coders = Coders { lossy: &lossy, factors: Some(&find_factors) };
        let DeltaSummary { delta: bytes, tensors, .. } = delta::delta_with(base, source.dir(), &dir, &coders, &|_| {})?;
        delta::apply(base, &dir, &work.path("checkpoint"), &|_| {})?;
        let summary: crate::results::AllocationSummary = read_json(&allocation.path("summary.json"))?;
        write_json(&work.path("summary.json"), &Summary { lambda: summary.lambda, bytes, tensors })
    })?;
    let summary: Summary = read_json(&made.path("summary.json"))?;
    let asked = session.asked()?;
    let original = session.evaluate(Whose::Original, &asked)?;
    let restored = session.evaluate(Whose::Tuned(&made, Prefix::All, &original), &asked)?.read(Some(&original))?.text;
    let unchanged = session.unchanged(base, &known)?;
    let without = session.evaluate(Whose::Tuned(&unchanged, Prefix::All, &original), &asked)?.read(Some(&original))?;
    copy(&made.path("delta"), out)?;
    Ok(LossyDelta {
        lambda: summary.lambda,
        bytes: summary.bytes,
        bits_per_weight: BitsPerWeight::of_bytes(summary.bytes, session.model.checkpoint().weights()).0,
        tensors: summary.tensors,
        kl: restored.kl.mean,
        kl_se: restored.kl.se,
        base_kl: without.text.kl.mean,
        perplexity: [original.read(None)?.text.perplexity, restored.perplexity],
    })
}

impl Session<'_> {
    /// The base as an artifact that is evaluated beside the fine-tune.
    fn unchanged(&self, base: &Path, known: &Checkpoint) -> Result<Artifact> {
        let identity = self.identity("delta-base", VERSION, [("base", known.digest()?)], serde_json::Value::Null);
        self.stage("delta-base", &identity, |work| copy(base, &work.path("checkpoint")))
    }
}

/// Copies the files of a directory.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| PipelineError::Io { path, source }
    };
    std::fs::create_dir_all(to).map_err(io(to))?;
    for entry in std::fs::read_dir(from).map_err(io(from))? {
        let path = entry.map_err(io(from))?.path();
        if path.is_file() {
            let target = to.join(path.file_name().unwrap_or_default());
            std::fs::copy(&path, &target).map_err(io(&target))?;
        }
    }
    Ok(())
}
