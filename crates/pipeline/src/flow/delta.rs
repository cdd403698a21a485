//! `waterfill delta --lossy`: a delta at one goal, and the quality of the checkpoint that it restores.

use std::path::Path;

use serde::Serialize;
use waterfill_checkpoint::QualityPrefix;
use waterfill_checkpoint::delta::{Counts, LeftOut};
use waterfill_checkpoint::writer::copy_directory;
use waterfill_codec::BitsPerWeight;

use crate::context::Context;
use crate::engine::Engine;
use crate::error::{PipelineError, Result};
use crate::stages::{Allocate, DeltaBase, DeltaSummary, Evaluation, LossyDelta, Measure, Subject, calibrate};

/// A delta with loss, and its loss.
#[derive(Debug, Clone, Serialize)]
pub struct DeltaOutput {
    /// Nats of loss for one bit.
    pub lambda: f64,
    /// Bytes of the whole directory.
    pub bytes: u64,
    /// Bits of the directory over all weights.
    pub bits_per_weight: f64,
    /// Tensors by how they are coded.
    pub tensors: Counts,
    /// What the fine-tune's directory has and the delta does not.
    pub left_out: Vec<LeftOut>,
    /// KL(fine-tune || restored), nats per token.
    pub kl: f64,
    /// Standard error of `kl` over sequences.
    pub kl_se: f64,
    /// KL(fine-tune || base): the loss without the delta.
    pub base_kl: f64,
    /// exp(nats per token) of the fine-tune and of the restored checkpoint.
    pub perplexity: [f64; 2],
}

/// Writes the changes of the context's model, a fine-tune, from `base` into `out`, which is created, at the one goal of its
/// configuration, and evaluates what it restores.
///
/// # Errors
/// The first failure of any stage; configurations with several goals.
pub fn lossy_delta(context: &Context, base: &Path, out: &Path) -> Result<DeltaOutput> {
    if out.exists() {
        return Err(PipelineError::Exists { path: out.into() });
    }
    let goals = context.goals();
    let [goal] = goals[..] else {
        return Err(PipelineError::Goals { path: out.into(), found: goals.len() });
    };
    let engine = Engine::running(context);
    let calibration = calibrate(&engine)?;
    let measured = engine.make(&Measure { calibration: &calibration })?;
    let allocation = engine.make(&Allocate { measured: &measured, corrections: None, goal, plain: false })?;
    let made = engine.make(&LossyDelta { calibration: &calibration, allocation: &allocation, base })?;
    let summary: DeltaSummary = made.read("summary.json")?;
    let original = Evaluation::make(&engine, Subject::Original)?;
    let text = |artifact| -> Result<_> {
        let subject = Subject::Compressed(artifact, QualityPrefix::All, &original);
        Ok(Evaluation::make(&engine, subject)?.read(Some(&original))?.text)
    };
    let restored = text(&made)?;
    let unchanged = text(&engine.make(&DeltaBase { base })?)?;
    copy_directory(&made.path("delta"), out)?;
    Ok(DeltaOutput {
        lambda: summary.lambda,
        bytes: summary.bytes,
        bits_per_weight: BitsPerWeight::of_bytes(summary.bytes, context.model.checkpoint().weights()).0,
        tensors: summary.tensors,
        left_out: summary.left_out,
        kl: restored.kl.mean,
        kl_se: restored.kl.se,
        base_kl: unchanged.kl.mean,
        perplexity: [original.read(None)?.text.perplexity, restored.perplexity],
    })
}
