//! Probes: the original with the errors that quantization leaves at two losses, measured on held-out calibration text against
//! what allocation predicts for them. No file is written.

use std::collections::BTreeMap;

use waterfill_allocate::Allocation;
use waterfill_config::Probes;
use waterfill_evaluate::{self as evaluate, Estimate as Measured, ProbeText, Probed, Variant};
use waterfill_model::Model;
use waterfill_model::roles::{block_of, label_of};
use waterfill_quantize::{EncodeOptions, coding_errors, encode_bytes, tensor_bytes};
use waterfill_store::{Identity, Progress, Work};

use super::allocate::Allocate;
use super::calibrate::tokens_digest;
use super::corrections::{CORRECTIONS, Corrections, GroupLoss, Groups};
use super::encode;
use super::evaluate::on_text;
use super::prediction::{Prediction, TextRatio};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::{PipelineError, Result};
use crate::estimate::{PROGRAM, coding_memory};
use crate::goal::Goal;
use crate::results::{AllocationSummary, write_json};
use crate::stage::{ArtifactRef, BatchMemory, Estimate, Stage};

/// Version of the artifact; raised when results change.
const VERSION: u32 = 11;
/// Losses at which all matrices are quantized, nats per token, about: where the quadratic model holds, and where models leave
/// it. Of all but the first only the ratio to the first counts, which a few sequences tell.
const LEVELS: [f64; 2] = [0.002, 0.05];
const FEW: usize = 2;
/// The level at which groups are quantized alone.
const ALONE: usize = 0;
/// Corrections are kept within these factors.
const RANGE: (f64, f64) = (0.25, 8.0);
/// A model has left the quadratic regime where a level's ratio is so many times the first one's, or so many times less.
const LEFT: f64 = 1.5;

/// Measured against predicted loss of allocations.
pub(crate) struct Probe<'a> {
    pub calibration: &'a ArtifactRef,
    /// One for each level.
    pub allocations: &'a [ArtifactRef],
}

/// Every group with the names of its tensors.
pub(crate) fn groups(context: &Context, probes: Probes) -> Groups {
    let mut groups = Groups::new();
    for (name, _) in context.model.weights() {
        groups.entry(group_of(&name, probes)).or_default().insert(name);
    }
    groups
}

/// Group of a tensor.
fn group_of(name: &str, probes: Probes) -> String {
    match (probes, block_of(name)) {
        (Probes::Tensors, Some(block)) => format!("{} of layer {block}", label_of(name)),
        _ => label_of(name).into(),
    }
}

/// What quantization loses against what is predicted; `None` where the configuration does not ask for it.
pub(crate) fn probe(engine: &Engine, calibration: &ArtifactRef, measured: &ArtifactRef) -> Result<Option<ArtifactRef>> {
    let context = engine.context();
    let asked = context.config.allocate.probes != Probes::None && context.config.calibrate.held_out() > 0;
    let make = || -> Result<ArtifactRef> {
        // The lambda of which the loss is the water level of every weight.
        let lambda = |loss: f64| loss / context.matrix_weights() as f64 * 2.0 * std::f64::consts::LN_2;
        let allocate = |loss: &f64| {
            let goal = Goal::Lambda(lambda(*loss));
            engine.make(&Allocate { measured, corrections: None, goal, plain: true })
        };
        let allocations = LEVELS.iter().map(allocate).collect::<Result<Vec<_>>>()?;
        engine.make(&Probe { calibration, allocations: &allocations })
    };
    let made = asked.then(make).transpose()?;
    let found = made.as_ref().map(|made| made.known::<Corrections>(CORRECTIONS)).transpose()?.flatten();
    if let Some(Corrections { prediction: Some(prediction), .. }) = found
        && let (false, Some(all)) = (prediction.holds(), prediction.all)
    {
        context.console.note(&format!(
            "probe: quantization loses {:.1} times what is predicted already at {} nats per token; KL is not predicted, trust \
             what is measured",
            all.mean, LEVELS[0]
        ));
    }
    Ok(made)
}

impl Probe<'_> {
    /// Groups that are measured alone.
    fn groups(context: &Context) -> Groups {
        match context.config.allocate.probes {
            Probes::None | Probes::Together => Groups::new(),
            probes => groups(context, probes),
        }
    }

    /// All matrices at all levels, and each group alone.
    fn variants(context: &Context, groups: &Groups, sequences: usize) -> Vec<Variant> {
        let few = FEW.max(context.config.calibrate.text.len()).min(sequences);
        let all = (0..LEVELS.len()).map(|level| {
            let sequences = if level == 0 { sequences } else { few };
            Variant { level, names: None, sequences }
        });
        let alone = groups.values().map(|names| Variant { level: ALONE, names: Some(names.clone()), sequences });
        all.chain(alone).collect()
    }
}

impl Stage for Probe<'_> {
    fn label(&self) -> String {
        "probe".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let windows = &context.calibration_windows()?.held_out;
        let e = &context.config.encode;
        let mut settings = serde_json::json!({
            "probes": context.config.allocate.probes, "feedback": e.feedback, "damping": e.damping, "rounding": e.rounding,
            "trellis": e.trellis().is_some(), "encode": encode::VERSION, "bitstream": waterfill_checkpoint::VERSION,
            "batch_tokens": context.config.evaluate.batch_tokens, "device": context.device_kind,
        });
        encode::note_freedom(context, &mut settings);
        let inputs = [("calibrate", self.calibration.digest()), ("tokens", tokens_digest(windows))];
        let mut identity = context.identity("probe", VERSION, &inputs, settings);
        let allocations = self.allocations.iter().enumerate();
        identity.inputs.extend(allocations.map(|(n, allocation)| (format!("allocate-{n}"), allocation.digest())));
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let (c, model) = (&context.config.calibrate, &context.model.config);
        let variants = (LEVELS.len() + Self::groups(context).len()) as u64;
        let one = on_text(context, [c.held_out(), c.context], 2);
        let quantizing = LEVELS.len() as f64 * context.model.checkpoint().weights() as f64 * 4e3;
        let shapes = context.model.weights().into_iter().map(|w| w.1);
        let coding = encode_bytes(shapes, context.config.encode.feedback, coding_memory());
        let states = (variants + 1) * model.state_bytes(c.held_out() * c.context);
        Estimate {
            operations: one.operations * variants as f64 + quantizing,
            // Quantizing side by side, values with their errors at every level, and the model's own copy.
            memory: one
                .memory
                .max(PROGRAM + coding + (LEVELS.len() as u64 + 2) * model.block_bytes().max(model.table_bytes()))
                + states,
            disk: states,
        }
    }

    fn batch_memory(&self, context: &Context) -> Option<BatchMemory> {
        Some(super::evaluate::batches(context))
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let held_out = context.calibration_windows()?;
        let windows = &held_out.held_out;
        let options = EncodeOptions { tools: Default::default(), ..encode::options(context, self.calibration)? };
        let open = |a: &ArtifactRef| -> Result<(Allocation, BTreeMap<String, f64>)> {
            let summary: AllocationSummary = a.read("summary.json")?;
            let losses = summary.tensors.into_iter().map(|tensor| (tensor.name, tensor.loss)).collect();
            Ok((Allocation::open(&a.path("allocation.safetensors"))?, losses))
        };
        let levels = self.allocations.iter().map(open).collect::<Result<Vec<_>>>()?;
        let errors = |name: &str| -> Result<Vec<evaluate::Errors>> {
            let at = |(allocation, losses): &(Allocation, BTreeMap<String, f64>)| -> Result<evaluate::Errors> {
                let errors = coding_errors(context.model.checkpoint(), allocation, name, &options)?;
                Ok((errors, losses.get(name).copied().unwrap_or(0.0)))
            };
            levels.iter().map(at).collect()
        };
        let groups = Self::groups(context);
        let variants = Self::variants(context, &groups, windows.rows.len());
        let mut model = Model::open(&context.source.dir, context.model.device())?;
        // With the errors of every level.
        let text = ProbeText {
            windows,
            batch_tokens: context.config.evaluate.batch_tokens,
            memory: options.memory,
            matrix_bytes: |rows, cols| tensor_bytes(rows, cols, true) + 4 * LEVELS.len() as u64 * rows * cols,
        };
        let probed =
            evaluate::probe_text::<PipelineError>(&mut model, &text, &variants, errors, work, context.console)?;
        let mut corrections = BTreeMap::new();
        let mut alone = Vec::new();
        for ((group, names), kl) in groups.iter().zip(&probed.kl[LEVELS.len()..]) {
            let own = names.iter().filter_map(|name| Some(probed.predicted.get(name)?[ALONE]));
            let (predicted, measured) = (own.sum::<f64>(), Measured::of(kl));
            // What is kept without loss says nothing of other losses.
            if predicted > 0.0 {
                let ratio = (measured.mean / predicted).clamp(RANGE.0, RANGE.1);
                corrections.extend(names.iter().map(|name| (name.clone(), ratio)));
            }
            alone.push(GroupLoss { group: group.clone(), predicted, measured });
        }
        let corrected = |(name, losses): (&String, &Vec<f64>), level: usize| {
            losses[level] * corrections.get(name).copied().unwrap_or(1.0)
        };
        let predicted: Vec<f64> =
            (0..LEVELS.len()).map(|level| probed.predicted.iter().map(|of| corrected(of, level)).sum()).collect();
        let names: Vec<String> = context.config.calibrate.text.iter().map(|text| text.text.clone()).collect();
        let prediction = prediction(&predicted, &names, &held_out.held_out_texts, &probed);
        let lambda = self.allocations[ALONE].read::<AllocationSummary>("summary.json")?.lambda;
        let found = Corrections { lambda, groups: alone, corrections, prediction: Some(prediction) };
        write_json(&work.path(CORRECTIONS), &found)
    }
}

/// Ratios of measured to `predicted` loss of the first level, by text, and what the others say.
fn prediction(predicted: &[f64], names: &[String], texts: &[usize], probed: &Probed) -> Prediction {
    let predicted: Vec<f64> = predicted.iter().map(|loss| loss.max(f64::MIN_POSITIVE)).collect();
    let ratio = |own: &mut dyn Iterator<Item = f64>| {
        let ratios: Vec<f64> = own.map(|kl| kl / predicted[0]).collect();
        (!ratios.is_empty()).then(|| Measured::of(&ratios))
    };
    let first = &probed.kl[0];
    let all = ratio(&mut first.iter().copied());
    let of_text = |(n, name): (usize, &String)| {
        let own = first.iter().zip(texts).filter(|(_, text)| **text == n);
        let mut found = ratio(&mut own.map(|(kl, _)| *kl))?;
        // One sequence says nothing of the others.
        if texts.iter().filter(|text| **text == n).count() == 1 {
            found.se = all.map_or(0.0, |all| all.se * (first.len() as f64).sqrt());
        }
        Some(TextRatio { text: name.clone(), ratio: found })
    };
    let level = |(&loss, kl): (&f64, &Vec<f64>)| {
        let same = first.iter().take(kl.len()).sum::<f64>() * loss / predicted[0];
        (loss, (kl.iter().sum::<f64>() / same.max(f64::MIN_POSITIVE)).max(f64::MIN_POSITIVE))
    };
    let levels: Vec<(f64, f64)> = predicted.iter().zip(&probed.kl).map(level).collect();
    let left = levels.iter().position(|(_, growth)| !(LEFT.recip()..=LEFT).contains(growth));
    // Somewhere between the level before and this one.
    let leaves = left
        .filter(|n| *n > 0)
        .and_then(|n| Some(((levels[n - 1].0 * levels[n].0).sqrt(), leaving_block(&probed.deviations, &levels, n)?)));
    let texts = names.iter().enumerate().filter_map(of_text).collect();
    Prediction { texts, all, levels, leaves }
}

/// The block whose output changes the ratio of a level's squared deviation to the first one's the most.
fn leaving_block(deviations: &[Vec<f64>], levels: &[(f64, f64)], level: usize) -> Option<usize> {
    let ratio = |d: &Vec<f64>| (d[level].max(f64::MIN_POSITIVE) / d[0].max(f64::MIN_POSITIVE)).ln();
    let before = [(levels[level].0 / levels[0].0).ln()].into_iter().chain(deviations.iter().map(ratio));
    let jumps = before.zip(deviations.iter().map(ratio)).map(|(before, after)| (after - before).abs());
    Some(jumps.enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_by_text_and_follow_the_levels() {
        let kl = vec![vec![0.002, 0.006, 0.002, 0.006], vec![0.1, 0.3]];
        // The second block amplifies large errors more.
        let deviations = vec![vec![1.0, 25.2], vec![2.0, 150.0], vec![3.0, 230.0]];
        let probed = Probed { kl, predicted: BTreeMap::new(), deviations };
        let names = ["a".to_string(), "b".to_string(), "unused".to_string()];
        let found = prediction(&LEVELS, &names, &[0, 1, 0, 1], &probed);
        assert_eq!(found.texts.iter().map(|t| t.text.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
        near(found.texts[0].ratio.mean, 1.0);
        near(found.texts[1].ratio.mean, 3.0);
        let between = (LEVELS[0] * LEVELS[1]).sqrt();
        for (loss, growth) in [(0.0001, 1.0), (0.002, 1.0), (0.05, 2.0), (between, 2f64.sqrt())] {
            near(found.expected(found.texts[1].ratio, loss).mean, 3.0 * loss * growth);
        }
        assert_eq!((found.beyond(0.05), found.beyond(0.002)), (Some(1), None));
        // One sequence of a text has the spread of all.
        let one = prediction(&LEVELS, &names, &[0, 0, 0, 1], &probed);
        near(one.texts[1].ratio.se, 2.0 * one.all.unwrap().se);
    }
}
