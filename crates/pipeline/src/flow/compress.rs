//! From a goal to a compressed checkpoint: at a lambda at once, for a size by a search over lambda.

use std::collections::BTreeMap;

use waterfill_allocate::{COARSEST, FINEST};
use waterfill_checkpoint::{Checkpoint, QualityPrefix, TensorInfo};
use waterfill_config::Sequential;
use waterfill_model::TensorRole;
use waterfill_quantize::EncodeSummary;
use waterfill_store::Progress;

use crate::engine::Engine;
use crate::error::{PipelineError, Result};
use crate::goal::Goal;
use crate::output::QualityLayers;
use crate::results::AllocationSummary;
use crate::stage::ArtifactRef;
use crate::stages::{Allocate, Baseline, Encode};

/// Relative distance to a size at which the search ends.
const TOLERANCE: f64 = 1e-3;
/// The same for large models, each coding of which takes hours.
const TOLERANCE_LARGE: f64 = 4e-3;
/// Relative distance to a size from which on a file is said to miss it.
const MISSED: f64 = 1e-2;
/// Weights of a large model.
const LARGE: u64 = 1 << 30;
/// Checkpoints that are coded for one size, at most.
const ROUNDS: usize = 8;
/// Share by which a budget of memory is aimed below, more than the tolerance.
const BELOW: f64 = 2.5e-3;
/// Relative distance from there at which the search ends.
const TOLERANCE_RESIDENT: f64 = 2e-3;

/// The budget for which [`compress`] aims at `resident` bytes in memory.
pub(crate) fn budget_for(resident: u64) -> Goal {
    Goal::Resident((resident as f64 / (1.0 - BELOW)).round() as u64)
}

/// Artifacts that every goal starts from.
#[derive(Clone)]
pub(crate) struct Inputs {
    /// Sensitivities.
    pub calibration: ArtifactRef,
    /// Rate-distortion candidates; `None` for baselines.
    pub measured: Option<ArtifactRef>,
    /// Corrections of predicted losses.
    pub corrections: Option<ArtifactRef>,
}

impl Inputs {
    /// The same with other corrections.
    pub fn corrected(&self, corrections: &ArtifactRef) -> Self {
        Self { corrections: Some(corrections.clone()), ..self.clone() }
    }
}

/// A compressed checkpoint with its allocation.
#[derive(Clone)]
pub(crate) struct Compressed {
    /// `None` for baselines.
    pub allocated: Option<ArtifactRef>,
    pub encoded: ArtifactRef,
    /// The size that was asked for, bytes.
    pub wanted: Option<u64>,
}

impl Compressed {
    /// Sizes and losses; `None` in a plan where it is still to be encoded.
    pub fn sizes(&self) -> Result<Option<EncodeSummary>> {
        self.encoded.known("summary.json")
    }

    /// The allocation, or for a baseline what stands for it; `None` in a plan where it is still to be made.
    pub fn allocation(&self) -> Result<Option<AllocationSummary>> {
        let summary = match &self.allocated {
            Some(allocated) => allocated.known("summary.json")?,
            None => self.sizes()?.map(|sizes| AllocationSummary {
                lambda: 0.0,
                target_bytes: None,
                predicted_loss: 0.0,
                estimated_bytes: sizes.bytes,
                resident_bits: sizes.resident_bytes as f64 * 8.0,
                weights: sizes.weights,
                tensors: Vec::new(),
            }),
        };
        Ok(summary.map(|summary: AllocationSummary| AllocationSummary {
            target_bytes: self.wanted.or(summary.target_bytes),
            ..summary
        }))
    }
}

/// Encodes allocations, the base's first.
pub(super) fn encode_allocated(
    engine: &Engine,
    calibration: &ArtifactRef,
    allocations: &[ArtifactRef],
    sequential: Option<Sequential>,
) -> Result<ArtifactRef> {
    engine.make(&Encode { calibration, allocations, sequential })
}

/// Allocates and encodes. The size that error feedback and its trellis lead to is not known before, so a size is searched
/// for by encoding at one lambda after the other, and the nearest is kept.
pub(crate) fn compress(engine: &Engine, inputs: &Inputs, goal: Goal) -> Result<Compressed> {
    let context = engine.context();
    if let Goal::Width(bits) = goal {
        let encoded = engine.make(&Baseline { calibration: &inputs.calibration, bits })?;
        return Ok(Compressed { allocated: None, encoded, wanted: None });
    }
    let measured = inputs.measured.as_ref().expect("only baselines need no candidates");
    let corrections = inputs.corrections.as_ref();
    let e = &context.config.encode;
    let at = |goal: Goal| -> Result<Compressed> {
        let allocation = engine.make(&Allocate { measured, corrections, goal, plain: false })?;
        let mut allocations = Vec::new();
        if let Some(layers) = &e.quality_layers {
            // In a plan a wanted size has no lambda yet.
            let known: Option<AllocationSummary> = allocation.known("summary.json")?;
            let lambdas = layers.lambdas(match goal {
                Goal::Lambda(lambda) => lambda,
                _ => known.map_or(1.0, |summary| summary.lambda),
            });
            for &lambda in &lambdas[..lambdas.len() - 1] {
                allocations.push(engine.make(&Allocate {
                    measured,
                    corrections,
                    goal: Goal::Lambda(lambda),
                    plain: false,
                })?);
            }
        }
        allocations.push(allocation.clone());
        let encoded = encode_allocated(engine, &inputs.calibration, &allocations, e.sequential)?;
        Ok(Compressed { allocated: Some(allocation), encoded, wanted: None })
    };
    let first = at(goal)?;
    match (goal, e.feedback) {
        (Goal::Bytes(wanted), true) => {
            let large = context.model.checkpoint().weights() >= LARGE;
            let tolerance = if large { TOLERANCE_LARGE } else { TOLERANCE };
            let found = search_size(first, (wanted, tolerance, f64::INFINITY), |sizes| sizes.bytes, at)?.0;
            if let Some(sizes) = found.sizes()?
                && (sizes.bytes as f64 / wanted as f64 - 1.0).abs() > MISSED
            {
                context.console.note(&format!(
                    "{wanted} bytes are asked for, the nearest file that was found has {}",
                    sizes.bytes
                ));
            }
            Ok(Compressed { wanted: Some(wanted), ..found })
        }
        (Goal::Resident(budget), _) => within(first, budget, None, at),
        (Goal::Within { resident, file }, _) => within(first, resident, Some(file), at),
        _ => Ok(first),
    }
}

/// The checkpoint that fills a budget of bytes in memory, or of the file if that is filled first. A budget is not exceeded; one that nothing fills is
/// met by the finest allocation.
fn within(
    first: Compressed,
    budget: u64,
    file: Option<u64>,
    at: impl Fn(Goal) -> Result<Compressed>,
) -> Result<Compressed> {
    // What is filled most, as bytes in memory.
    let filled = |sizes: &EncodeSummary| match file {
        Some(file) => sizes.resident_bytes.max((sizes.bytes as f64 / file as f64 * budget as f64).ceil() as u64),
        None => sizes.resident_bytes,
    };
    let finest = first.allocation()?.is_some_and(|allocation| allocation.lambda <= FINEST.0);
    if finest && first.sizes()?.is_none_or(|sizes| filled(&sizes) <= budget) {
        return Ok(first);
    }
    let wanted = (budget as f64 * (1.0 - BELOW)) as u64;
    let range = (wanted, TOLERANCE_RESIDENT, budget as f64 / wanted as f64 - 1.0);
    let (found, least) = search_size(first, range, filled, at)?;
    match found.sizes()? {
        Some(sizes) if filled(&sizes) > budget => {
            let asked = match file {
                Some(file) => format!("{budget} bytes in memory and {file} of the file are"),
                None => format!("{budget} bytes in memory are"),
            };
            let reached = match file {
                Some(_) => format!("{:.3} times that", least as f64 / budget as f64),
                None => least.to_string(),
            };
            let reason = format!("{asked} asked for, the least that was reached is {reached}");
            Err(PipelineError::Value { key: "allocate.sizes".into(), reason })
        }
        _ => Ok(found),
    }
}

/// Secant search over the logarithm of lambda for the checkpoint whose `size` is `wanted` bytes; in a plan it ends with
/// the first whose size is not known yet. `most` is the relative distance from there that must not be exceeded. Returns the nearest of those that do
/// not, and the least size of all.
fn search_size(
    first: Compressed,
    (wanted, tolerance, most): (u64, f64, f64),
    size: impl Fn(&EncodeSummary) -> u64,
    at: impl Fn(Goal) -> Result<Compressed>,
) -> Result<(Compressed, u64)> {
    // Logarithm of lambda, relative distance to the size, and weights.
    let measured = |compressed: &Compressed| -> Result<Option<(f64, f64, u64)>> {
        let (Some(allocation), Some(sizes)) = (compressed.allocation()?, compressed.sizes()?) else { return Ok(None) };
        Ok(Some((allocation.lambda.ln(), size(&sizes) as f64 / wanted as f64 - 1.0, sizes.weights)))
    };
    let mut best = first;
    let Some((lambda, distance, weights)) = measured(&best)? else { return Ok((best, 0)) };
    // Half a bit per weight for a factor of two in lambda.
    let slope = weights as f64 / wanted as f64 / (16.0 * std::f64::consts::LN_2);
    let (mut last, mut nearest, mut least) = ((lambda, distance), distance, distance);
    // What is too large is worse than anything that is not.
    let rank = |distance: f64| (distance > most, distance.abs());
    // Logarithms of lambdas whose files are too large, and too small, with their distances.
    let mut bracket: [Option<(f64, f64)>; 2] = [None, None];
    for _ in 1..ROUNDS {
        if nearest.abs() < tolerance {
            break;
        }
        bracket[usize::from(last.1 < 0.0)] = Some(last);
        let next = match bracket {
            [Some((low, above)), Some((high, below))] => low + (high - low) * above / (above - below),
            _ => last.0 + last.1 / slope,
        };
        // Beyond these lambdas nothing changes any more.
        let next = next.clamp(FINEST.0.ln(), COARSEST.0.ln());
        if next == last.0 {
            break;
        }
        let tried = at(Goal::Lambda(next.exp()))?;
        // The store does not know it yet: a run that was stopped goes on here.
        let Some((_, distance, _)) = measured(&tried)? else { return Ok((tried, 0)) };
        last = (next, distance);
        least = least.min(distance);
        if rank(distance) < rank(nearest) {
            (best, nearest) = (tried, distance);
        }
    }
    Ok((best, ((1.0 + least) * wanted as f64).round() as u64))
}

/// A prefix of a compressed checkpoint.
pub(crate) struct CheckpointPrefix {
    pub prefix: QualityPrefix,
    /// `None` for a checkpoint without quality layers.
    pub layers: Option<QualityLayers>,
    /// Lambda of its last layer, nats per bit.
    pub lambda: f64,
    /// Sizes and losses; `None` in a plan where it is still to be encoded.
    pub sizes: Option<EncodeSummary>,
}

/// The prefixes of a checkpoint that are evaluated, the whole checkpoint last.
pub(crate) fn prefixes(engine: &Engine, compressed: &Compressed) -> Result<Vec<CheckpointPrefix>> {
    let layers = engine.context().config.encode.quality_layers.as_ref();
    let sizes = compressed.sizes()?;
    let lambda = compressed.allocation()?.map_or(0.0, |allocation| allocation.lambda);
    let layered = compressed.allocated.is_some() && sizes.as_ref().is_none_or(|sizes| !sizes.layers.is_empty());
    let Some(layers) = layers.filter(|_| layered) else {
        return Ok(vec![CheckpointPrefix { prefix: QualityPrefix::All, layers: None, lambda, sizes }]);
    };
    let (of, lambdas) = (layers.bits.len() + 1, layers.lambdas(lambda));
    let layer = |n: usize| if n < of { QualityPrefix::Layers(n) } else { QualityPrefix::All };
    let Some(sizes) = sizes else {
        // The bytes of a cut layer are not known yet: its number stands for them.
        let planned = |used: usize| {
            let cuts = if used > 1 { layers.parts } else { 0 };
            let cuts = (0..cuts).map(move |n| (QualityPrefix::Bytes((used * 1000 + n) as u64), false));
            let lambda = lambdas[used - 1];
            cuts.chain([(layer(used), true)]).map(move |(prefix, whole)| {
                let layers = Some(QualityLayers { used, of, whole });
                CheckpointPrefix { prefix, layers, lambda, sizes: None }
            })
        };
        return Ok((1..=of).flat_map(planned).collect());
    };
    let one = |prefix: QualityPrefix| -> Result<CheckpointPrefix> {
        let opened = Checkpoint::open_prefix(compressed.encoded.path("checkpoint"), prefix)?;
        let linear =
            opened.tensors().filter(|info| TensorRole::parse(&info.name).is_some_and(TensorRole::is_of_linear_layer));
        let loss = |info: &TensorInfo| {
            Some((info.name.clone(), *sizes.layers[info.quality_layers() - 1].losses.get(&info.name)?))
        };
        let losses: BTreeMap<String, f64> = opened.tensors().filter_map(loss).collect();
        let (used, whole) = (opened.quality_layers(), !matches!(prefix, QualityPrefix::Bytes(_)));
        let sizes = EncodeSummary {
            bytes: opened.bytes(),
            linear_bytes: linear.map(TensorInfo::stored_bytes).sum(),
            loss: losses.values().sum(),
            losses,
            resident_bytes: sizes.layers[used - 1].resident_bytes,
            ..sizes.clone()
        };
        let layers = Some(QualityLayers { used, of, whole });
        Ok(CheckpointPrefix { prefix, layers, lambda: lambdas[used - 1], sizes: Some(sizes) })
    };
    let mut all = Vec::new();
    for n in 1..=of {
        if n > 1 {
            let (from, to) = (sizes.layers[n - 2].bytes, sizes.layers[n - 1].bytes);
            let cut = |i: usize| QualityPrefix::Bytes(from + (to - from) * i as u64 / (layers.parts as u64 + 1));
            all.extend((1..=layers.parts).map(|i| one(cut(i))).collect::<Result<Vec<_>>>()?);
        }
        all.push(one(layer(n))?);
    }
    Ok(all)
}
