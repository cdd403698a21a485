//! Evaluation on held-out calibration text: the original, and the original with some tensors compressed.

use std::collections::BTreeSet;

use waterfill_checkpoint::Checkpoint;
use waterfill_evaluate as evaluate;
use waterfill_model::Model;
use waterfill_store::{Identity, Work};

use super::calibrate::tokens_digest;
use super::evaluate::{batches, on_text, text_settings};
use crate::context::Context;
use crate::error::Result;
use crate::results::write_json;
use crate::stage::{ArtifactRef, BatchMemory, Estimate, Stage};

/// Version of the original's evaluation; raised when results change.
const ORIGINAL: u32 = 3;
/// Version of a part's evaluation; raised when results change.
const PART: u32 = 2;

/// The original on held-out text.
pub(crate) struct EvaluateHeldOut;

impl Stage for EvaluateHeldOut {
    fn label(&self) -> String {
        "evaluate the original on held-out text".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let tokens = tokens_digest(&context.calibration_windows()?.held_out);
        Ok(context.identity("evaluate-original", ORIGINAL, &[("tokens", tokens)], text_settings(context)))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        cost(context, 1)
    }

    fn batch_memory(&self, context: &Context) -> Option<BatchMemory> {
        Some(batches(context))
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let windows = &context.calibration_windows()?.held_out;
        let tokens = context.config.evaluate.batch_tokens;
        let text = evaluate::evaluate_text(&context.model, windows, tokens, None, work, context.console)?;
        write_json(&work.path("result.json"), &text)
    }
}

/// The original on held-out text with some of its tensors taken from a compressed checkpoint.
pub(crate) struct EvaluatePart<'a> {
    /// Name of the group.
    pub group: &'a str,
    /// Tensors of the compressed checkpoint.
    pub names: &'a BTreeSet<String>,
    /// Artifact of [`EvaluateHeldOut`].
    pub original: &'a ArtifactRef,
    pub encoded: &'a ArtifactRef,
}

impl Stage for EvaluatePart<'_> {
    fn label(&self) -> String {
        format!("probe {}", self.group)
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let inputs = [("checkpoint", self.encoded.digest()), ("original", self.original.digest())];
        Ok(context.identity("evaluate-part", PART, &inputs, serde_json::json!({"names": self.names})))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        cost(context, 2)
    }

    fn batch_memory(&self, context: &Context) -> Option<BatchMemory> {
        Some(batches(context))
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let windows = &context.calibration_windows()?.held_out;
        let tokens = context.config.evaluate.batch_tokens;
        let compressed = Checkpoint::open(self.encoded.path("checkpoint"))?;
        let model = Model::open(&context.source.dir, context.model.device())?.with(compressed, self.names.clone());
        let original = Some((&context.model, self.original.dir()));
        let text = evaluate::evaluate_text(&model, windows, tokens, original, work, context.console)?;
        write_json(&work.path("result.json"), &text)
    }
}

fn cost(context: &Context, heads: u64) -> Estimate {
    let c = &context.config.calibrate;
    on_text(context, [c.held_out(), c.context], heads)
}
