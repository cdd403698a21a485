//! Probes: the original with noise as quantization leaves it, measured on held-out calibration text against what the
//! quadratic model predicts for that noise.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_allocate::TensorCandidates;
use waterfill_calibrate::Sensitivities;
use waterfill_codec::TILE;
use waterfill_config::Probes;
use waterfill_evaluate::{self as evaluate, Estimate as Measured, ProbeText, Probed, Variant};
use waterfill_model::Model;
use waterfill_model::roles::{block_of, label_of};
use waterfill_quadratic::{Curvature, shaped_noise};
use waterfill_store::{Identity, Progress, Work};

use super::calibrate::tokens_digest;
use super::corrections::{CORRECTIONS, Corrections, GroupLoss, Groups};
use super::evaluate::on_text;
use super::measure::candidate_files;
use super::prediction::{Prediction, TextRatio};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::{PipelineError, Result};
use crate::estimate::PROGRAM;
use crate::results::write_json;
use crate::stage::{ArtifactRef, BatchMemory, Estimate, Stage};

/// Version of the artifact; raised when results change.
const VERSION: u32 = 7;
/// Losses at which all matrices have noise, nats per token: where the quadratic model holds, and where models leave it. Of
/// all but the first only the ratio to the first counts, which a few sequences tell.
const LEVELS: [f64; 2] = [0.002, 0.05];
const FEW: usize = 2;
/// The level at which groups have noise alone.
const ALONE: usize = 0;
/// Corrections are kept within these factors.
const RANGE: (f64, f64) = (0.25, 8.0);
/// A model has left the quadratic regime where a level's ratio is so many times the first one's, or so many times less.
const LEFT: f64 = 1.25;

/// Measured against predicted loss of shaped noise.
pub(crate) struct Probe<'a> {
    pub calibration: &'a ArtifactRef,
    pub measured: &'a ArtifactRef,
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

/// What noise loses against what is predicted; `None` where the configuration does not ask for it.
pub(crate) fn probe(engine: &Engine, calibration: &ArtifactRef, measured: &ArtifactRef) -> Result<Option<ArtifactRef>> {
    let context = engine.context();
    let asked = context.config.allocate.probes != Probes::None && context.config.calibrate.held_out() > 0;
    let made = asked.then(|| engine.make(&Probe { calibration, measured })).transpose()?;
    let found = made.as_ref().map(|made| made.known::<Corrections>(CORRECTIONS)).transpose()?.flatten();
    if let Some(Corrections { prediction: Some(prediction), .. }) = found
        && let (false, Some(all)) = (prediction.holds(), prediction.all)
    {
        context.console.note(&format!(
            "probe: noise in all weights loses {:.1} times what is predicted already at {} nats per token; KL is not predicted, \
             trust what is measured",
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

    /// Noise in all matrices at all levels, and in each group alone.
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

/// Fills a row with numbers of mean zero and variance one that depend on the matrix' and the row's number alone.
fn uniform(seed: u64, matrix: u64, row: usize, into: &mut [f32]) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((matrix << 32) + row as u64);
    let unit = |bits: u32| ((bits as f32 + 0.5) / 4_294_967_296.0 - 0.5) * 12f32.sqrt();
    into.iter_mut().for_each(|v| *v = unit(rng.next_u32()));
}

impl Stage for Probe<'_> {
    fn label(&self) -> String {
        "probe".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let windows = &context.calibration_windows()?.held_out;
        let e = &context.config.encode;
        let settings = serde_json::json!({
            "probes": context.config.allocate.probes, "feedback": e.feedback, "damping": e.damping,
            "batch_tokens": context.config.evaluate.batch_tokens, "device": context.device_kind,
        });
        let inputs = [("measure", self.measured.digest()), ("tokens", tokens_digest(windows))];
        let mut identity = context.identity("probe", VERSION, &inputs, settings);
        identity.seeds.insert("noise".into(), context.config.calibrate.seed);
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let (c, model) = (&context.config.calibrate, &context.model.config);
        let variants = (LEVELS.len() + Self::groups(context).len()) as u64;
        let one = on_text(context, [c.held_out(), c.context], 2);
        let noise = context.model.checkpoint().weights() as f64 * 4e3;
        let states = (variants + 1) * model.state_bytes(c.held_out() * c.context);
        Estimate {
            operations: one.operations * variants as f64 + noise,
            // Values, their errors at every level, and the model's own copy.
            memory: one.memory.max(PROGRAM + (LEVELS.len() as u64 + 2) * model.block_bytes().max(model.table_bytes()))
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
        let sensitivities = Sensitivities::open(self.calibration.dir())?.damped(context.config.encode.damping);
        let files: Vec<(String, std::path::PathBuf)> = candidate_files(self.measured)?;
        let levels = LEVELS.map(|loss| loss / context.matrix_weights() as f64);
        let (seed, feedback) = (context.config.calibrate.seed, context.config.encode.feedback);
        let errors = |name: &str| -> Result<Vec<evaluate::Errors>> {
            let matrix = files.iter().position(|(n, _)| n == name).expect("all matrices were measured");
            let loss_weights = TensorCandidates::read(&files[matrix].1)?.loss_weights;
            let (hessian, covariance) = match feedback {
                true => (sensitivities.hessian(name)?, sensitivities.gradient_covariance(name)?),
                false => (None, None),
            };
            let curvature = Curvature { hessian: hessian.as_ref(), gradient_covariance: covariance.as_ref() };
            let weights = context.model.values(name)?;
            let uniform = |row: usize, into: &mut [f32]| uniform(seed, matrix as u64, row, into);
            Ok(shaped_noise(&weights, &loss_weights, TILE, curvature, &levels, &uniform))
        };
        let groups = Self::groups(context);
        let variants = Self::variants(context, &groups, windows.rows.len());
        let mut model = Model::open(&context.source.dir, context.model.device())?;
        let text = ProbeText { windows, batch_tokens: context.config.evaluate.batch_tokens };
        let probed =
            evaluate::probe_text::<PipelineError>(&mut model, &text, &variants, errors, work, context.console)?;
        let mut corrections = BTreeMap::new();
        let mut alone = Vec::new();
        for ((group, names), kl) in groups.iter().zip(&probed.kl[LEVELS.len()..]) {
            let own = names.iter().filter_map(|name| Some(probed.predicted.get(name)?[ALONE]));
            let (predicted, measured) = (own.sum::<f64>().max(f64::MIN_POSITIVE), Measured::of(kl));
            let ratio = (measured.mean / predicted).clamp(RANGE.0, RANGE.1);
            corrections.extend(names.iter().map(|name| (name.clone(), ratio)));
            alone.push(GroupLoss { group: group.clone(), predicted, measured });
        }
        let corrected = |(name, losses): (&String, &Vec<f64>), level: usize| {
            losses[level] * corrections.get(name).copied().unwrap_or(1.0)
        };
        let predicted: Vec<f64> =
            (0..LEVELS.len()).map(|level| probed.predicted.iter().map(|of| corrected(of, level)).sum()).collect();
        let names: Vec<String> = context.config.calibrate.text.iter().map(|text| text.text.clone()).collect();
        let prediction = prediction(&predicted, &names, &held_out.held_out_texts, &probed);
        let lambda = levels[ALONE] * 2.0 * std::f64::consts::LN_2;
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
        .and_then(|n| Some(((levels[n - 1].0 * levels[n].0).sqrt(), leaving_block(&probed.deviations, n)?)));
    let texts = names.iter().enumerate().filter_map(of_text).collect();
    Prediction { texts, all, levels, leaves }
}

/// The block whose output changes the ratio of a level's squared deviation to the first one's the most.
fn leaving_block(deviations: &[Vec<f64>], level: usize) -> Option<usize> {
    let ratio = |d: &Vec<f64>| (d[level].max(f64::MIN_POSITIVE) / d[0].max(f64::MIN_POSITIVE)).ln();
    let before = [(LEVELS[level] / LEVELS[0]).ln()].into_iter().chain(deviations.iter().map(ratio));
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

    #[test]
    fn noise_depends_on_matrix_and_row_alone() {
        let row = |matrix, row| {
            let mut into = [0.0f32; 1000];
            uniform(7, matrix, row, &mut into);
            into
        };
        assert_eq!(row(3, 5), row(3, 5));
        assert_ne!(row(3, 5), row(3, 6));
        assert_ne!(row(3, 5), row(4, 5));
        let values = row(1, 1);
        let variance = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / 1000.0;
        assert!((variance - 1.0).abs() < 0.1, "{variance}");
    }
}
