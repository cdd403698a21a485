//! Calibration: sensitivities of all weights on one part of the text.

use waterfill_calibrate as calibrate;
use waterfill_calibrate::{CalibrateSummary, HessianKind, HessianWeighting, Shrinkage};
use waterfill_model::{Projection, Windows};
use waterfill_store::{Identity, Progress, Work};

use crate::context::Context;
use crate::device_memory::attention_scores;
use crate::engine::Engine;
use crate::error::Result;
use crate::estimate::PROGRAM;
use crate::results::write_json;
use crate::sources::CalibrationWindows;
use crate::stage::{ArtifactRef, BatchMemory, Estimate, Stage};

/// Version of the artifact; raised when results change.
const VERSION: u32 = 8;
/// Figures of a calibration.
const SUMMARY: &str = "summary.json";
/// Effective tokens a column below which a run says so.
const FEW: f64 = 2.0;

/// Sensitivities of all weights on the calibration's text.
pub(crate) struct Calibrate;

/// Makes the sensitivities that decide and predict, with a warning where they rest on few tokens.
pub(crate) fn calibrate(engine: &Engine) -> Result<ArtifactRef> {
    let made = engine.make(&Calibrate)?;
    if let Some(summary) = made.known::<CalibrateSummary>(SUMMARY)?
        && let Some(warning) = too_few_tokens(&summary)
    {
        engine.context().console.note(&warning);
    }
    Ok(made)
}

impl Stage for Calibrate {
    fn label(&self) -> String {
        "calibrate".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let c = &context.config.calibrate;
        let CalibrationWindows { fitted, further, .. } = context.calibration_windows()?;
        // The text's path does not matter, its tokens do.
        let settings = serde_json::json!({
            "context": fitted.context, "labels": c.labels, "folds": c.folds, "hessian": c.hessian,
            "hessian_block": c.hessian_block, "hessian_weighting": c.hessian_weighting,
            "gradient_covariance": c.gradient_covariance, "batch_tokens": c.batch_tokens, "device": context.device_kind,
        });
        let inputs = [("tokens", tokens_digest(fitted)), ("further-tokens", tokens_digest(further))];
        let mut identity = context.identity("calibrate", VERSION, &inputs, settings);
        identity.seeds.insert("labels".into(), c.seed);
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let (model, c) = (&context.model.config, &context.config.calibrate);
        let tokens = c.batch_tokens.max(c.context);
        let states = model.state_bytes(tokens);
        let moments = moment_bytes(context);
        let side = |bytes: u64| bytes * waterfill_model::side_by_side(context.model.device(), bytes) as u64;
        let forward = side(model.forward_bytes(tokens) + 2 * states);
        let backward = side(model.vjp_bytes(tokens) + 2 * states) + 2 * moments;
        let head = model.table_bytes() + side(calibrate::head_bytes(model.vocab, tokens) + 4 * states);
        let [all, further] = [c.sequences, c.further()].map(|sequences| sequences * c.context);
        Estimate {
            operations: (all as f64 * 8.0 + further as f64 * 3.0) * context.model.checkpoint().weights() as f64,
            memory: PROGRAM + head.max(model.block_bytes() + forward.max(backward)),
            // States and gradients between blocks, and the moments, whose correlations take half of what their sums do.
            // Of further text one state of each sequence, and its sums until they are added to the others.
            disk: model.state_bytes(all) * (model.layers as u64 + 3)
                + 2 * model.state_bytes(further)
                + if further > 0 { moments } else { moments / 2 } * model.layers as u64,
        }
    }

    fn units(&self, context: &Context) -> Result<Vec<String>> {
        let model = &context.model.config;
        let head = (!model.tied).then(|| "head.safetensors".to_string());
        let blocks = (0..model.layers).rev().map(calibrate::block_file);
        Ok(head.into_iter().chain(blocks).chain(["embedding.safetensors".to_string()]).collect())
    }

    fn batch_memory(&self, context: &Context) -> Option<BatchMemory> {
        let c = &context.config.calibrate;
        let (model, moments, length) = (context.model.config.clone(), moment_bytes(context), c.context);
        let needed = move |tokens: usize| {
            // Automatic differentiation holds what kernels compute again, and the weights' gradients with them.
            let states = model.state_bytes(tokens);
            let batch = 2 * model.vjp_bytes(tokens) + 2 * states + 8 * attention_scores(&model, tokens, length);
            let head = model.table_bytes() + calibrate::head_bytes(model.vocab, tokens) + 4 * states;
            head.max(2 * model.block_bytes() + moments + batch)
        };
        Some(BatchMemory { section: "calibrate", context: c.context, tokens: c.batch_tokens, needed: Box::new(needed) })
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let c = &context.config.calibrate;
        let settings = calibrate::CalibrateSettings {
            labels: c.labels,
            seed: c.seed,
            folds: c.folds,
            hessian: calibrate::HessianSettings {
                kind: c.hessian,
                block: c.hessian_block,
                weighting: c.hessian_weighting,
            },
            gradient_covariance: c.gradient_covariance,
            batch_tokens: c.batch_tokens,
        };
        let CalibrationWindows { fitted, further, .. } = context.calibration_windows()?;
        let summary = calibrate::calibrate(&context.model, fitted, further, &settings, work, context.console)?;
        write_json(&work.path(SUMMARY), &summary)
    }
}

/// A warning where Hessians rest on few tokens.
fn too_few_tokens(summary: &CalibrateSummary) -> Option<String> {
    let per_column = |(name, s): (&String, &Shrinkage)| (s.effective_tokens_per_column, name.clone());
    let mut few: Vec<(f64, String)> = summary.hessians.iter().map(per_column).filter(|(t, _)| *t < FEW).collect();
    few.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (least, name) = few.first()?;
    Some(format!(
        "calibration: {} of {} Hessians have fewer than {FEW} tokens that count for each column, the fewest {least:.2} ({name}); \
         their correlations are believed less, more text of more kinds would help",
        few.len(),
        summary.hessians.len()
    ))
}

/// Bytes of a block's second moments while they are summed.
fn moment_bytes(context: &Context) -> u64 {
    let (model, c) = (&context.model.config, &context.config.calibrate);
    let of = |width: u64, kind: HessianKind| {
        let parts = |side: usize| calibrate::part_bytes(width as usize, side);
        match kind {
            HessianKind::Full => width * (width + 512) / 2 * 4 + parts(width as usize),
            HessianKind::BlockDiagonal => width * c.hessian_block as u64 * 4 + parts(c.hessian_block),
            HessianKind::Diagonal => 0,
        }
    };
    let inputs = |projection: Projection| of(model.linear_shape(projection)[1] as u64, c.hessian);
    // Plain ones are kept for four of the seven linear layers: the others have the same inputs.
    let plain = [Projection::Query, Projection::Output, Projection::Gate, Projection::Down];
    let kept: &[Projection] = if c.hessian_weighting == HessianWeighting::Plain { &plain } else { &Projection::ALL };
    let outputs = |projection: Projection| of(model.linear_shape(projection)[0] as u64, c.gradient_covariance);
    kept.iter().copied().map(inputs).sum::<u64>() + Projection::ALL.into_iter().map(outputs).sum::<u64>()
}

/// Digest of all tokens of some windows, hexadecimal.
pub(crate) fn tokens_digest(windows: &Windows) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in &windows.rows {
        row.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}
