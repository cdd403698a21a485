//! From a goal to a tuned checkpoint: at a lambda in one go, for a size in several.

use std::collections::BTreeMap;

use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::{Checkpoint, Prefix, TensorInfo};
use waterfill_model::TensorRole;
use waterfill_quantize::{Baseline, EncodeSummary, encode_baseline};
use waterfill_store::{Artifact, Identity};

use crate::config::BaselineMethod;
use crate::error::Result;
use crate::results::{AllocationSummary, read_json, write_json};
use crate::run::Layers;
use crate::session::{Goal, Session};
use crate::stages::Calibration;

/// Relative distance to a size at which the search ends, and that for models of which every try takes hours.
const TOLERANCE: f64 = 1e-3;
const TOLERANCE_LARGE: f64 = 4e-3;
/// Weights of a large model.
const LARGE: u64 = 1 << 30;
/// Checkpoints that are coded for one size, at most.
const ROUNDS: usize = 8;

/// A tuned checkpoint with its allocation.
pub(crate) struct Tuned {
    pub allocation: AllocationSummary,
    /// Where that is; none of baselines.
    pub allocated: Option<Artifact>,
    pub encoded: Artifact,
    pub sizes: EncodeSummary,
}

/// A prefix of a tuned checkpoint.
pub(crate) struct Part {
    pub prefix: Prefix,
    pub layers: Option<Layers>,
    /// Of its last layer.
    pub lambda: f64,
    pub sizes: EncodeSummary,
}

impl Session<'_> {
    /// A checkpoint's prefixes that are evaluated, itself last.
    pub(crate) fn prefixes(&self, tuned: &Tuned) -> Result<Vec<Part>> {
        let (sizes, lambda) = (&tuned.sizes, tuned.allocation.lambda);
        let Some(layers) = self.config.encode.layers.as_ref().filter(|_| !sizes.layers.is_empty()) else {
            return Ok(vec![Part { prefix: Prefix::All, layers: None, lambda, sizes: sizes.clone() }]);
        };
        let (of, lambdas) = (layers.bits.len() + 1, layers.lambdas(lambda));
        let part = |prefix: Prefix| -> Result<Part> {
            let opened = Checkpoint::open_prefix(tuned.encoded.path("checkpoint"), prefix)?;
            let linear = opened
                .tensors()
                .filter(|info| TensorRole::parse(&info.name).is_some_and(TensorRole::is_of_linear_layer));
            let loss =
                |info: &TensorInfo| Some((info.name.clone(), *sizes.layers[info.layers() - 1].losses.get(&info.name)?));
            let losses: BTreeMap<String, f64> = opened.tensors().filter_map(loss).collect();
            let (used, whole) = (opened.layers(), !matches!(prefix, Prefix::Bytes(_)));
            let sizes = EncodeSummary {
                bytes: opened.bytes(),
                linear_bytes: linear.map(TensorInfo::stored_bytes).sum(),
                loss: losses.values().sum(),
                losses,
                ..sizes.clone()
            };
            Ok(Part { prefix, layers: Some(Layers { used, of, whole }), lambda: lambdas[used - 1], sizes })
        };
        let mut parts = Vec::new();
        for n in 1..=of {
            if n > 1 {
                let (from, to) = (sizes.layers[n - 2].bytes, sizes.layers[n - 1].bytes);
                let cut = |i: usize| Prefix::Bytes(from + (to - from) * i as u64 / (layers.parts as u64 + 1));
                parts.extend((1..=layers.parts).map(|i| part(cut(i))).collect::<Result<Vec<_>>>()?);
            }
            parts.push(part(if n < of { Prefix::Layers(n) } else { Prefix::All })?);
        }
        Ok(parts)
    }

    /// Allocates and codes. What error feedback and its trellis make of a size is not known before, so
    /// that a wanted size is met by coding at one lambda after the other: the nearest is kept.
    pub(crate) fn tune(
        &self,
        calibration: &Calibration,
        points: &Artifact,
        probes: Option<&Artifact>,
        goal: Goal,
    ) -> Result<Tuned> {
        let at = |goal: Goal| -> Result<Tuned> {
            let allocation = self.allocate(points, probes, goal)?;
            let summary: AllocationSummary = read_json(&allocation.path("summary.json"))?;
            let layers = self.config.encode.layers.as_ref();
            let lambdas = layers.map_or(vec![], |layers| layers.lambdas(summary.lambda));
            let coarser = lambdas.iter().take(lambdas.len().saturating_sub(1));
            let mut allocations =
                coarser.map(|&l| self.allocate(points, probes, Goal::Lambda(l))).collect::<Result<Vec<_>>>()?;
            allocations.push(allocation.clone());
            let encoded = self.encode(calibration, &allocations)?;
            let sizes = read_json(&encoded.path("summary.json"))?;
            Ok(Tuned { allocation: summary, allocated: Some(allocation), encoded, sizes })
        };
        let mut best = at(goal)?;
        let (Goal::Bytes(wanted), true) = (goal, self.config.encode.feedback) else { return Ok(best) };
        let distance = |tuned: &Tuned| tuned.sizes.bytes as f64 / wanted as f64 - 1.0;
        // Half a bit a weight for a factor of two.
        let slope = best.sizes.weights as f64 / wanted as f64 / (16.0 * std::f64::consts::LN_2);
        let mut last = (best.allocation.lambda.ln(), distance(&best));
        // Logarithms of lambdas whose files are too large, and too small, with their distances.
        let mut bracket: [Option<(f64, f64)>; 2] = [None, None];
        let tolerance = if best.sizes.weights < LARGE { TOLERANCE } else { TOLERANCE_LARGE };
        for _ in 1..ROUNDS {
            if distance(&best).abs() < tolerance {
                break;
            }
            bracket[usize::from(last.1 < 0.0)] = Some(last);
            let next = match bracket {
                [Some((low, above)), Some((high, below))] => low + (high - low) * above / (above - below),
                _ => last.0 + last.1 / slope,
            };
            let tuned = at(Goal::Lambda(next.exp()))?;
            last = (next, distance(&tuned));
            if last.1.abs() < distance(&best).abs() {
                best = tuned;
            }
        }
        best.allocation.target_bytes = Some(wanted);
        Ok(best)
    }

    pub(crate) fn baseline_identity(&self, calibration: String, bits: u32) -> Identity {
        let settings = self.config.baseline.as_ref().map(|b| (b.method, b.group));
        self.identity(
            "baseline",
            1,
            [("calibrate", calibration)],
            serde_json::json!({"bits": bits, "settings": settings}),
        )
    }

    /// Codes of `bits` bits for all matrices.
    pub(crate) fn baseline(&self, calibration: &Artifact, bits: u32) -> Result<Tuned> {
        let settings = self.config.baseline.as_ref().expect("only baselines have widths");
        let identity = self.baseline_identity(calibration.digest(), bits);
        let names = self.model.weights().into_iter().map(|(name, _)| name).collect();
        let encoded = self.stage(&Goal::Width(bits).label(), &identity, |work| {
            let baseline = match settings.method {
                BaselineMethod::Absmax => Baseline::Absmax,
                BaselineMethod::Fp8 => Baseline::Fp8,
                BaselineMethod::Gptq => {
                    let sensitivities = Sensitivities::open(&calibration.dir)?;
                    Baseline::Gptq { group: settings.group, sensitivities }
                }
            };
            let source = self.model.checkpoint();
            let summary = encode_baseline(source, &names, &baseline, bits, work, self.console)?;
            write_json(&work.path("summary.json"), &summary)
        })?;
        let sizes: EncodeSummary = read_json(&encoded.path("summary.json"))?;
        let allocation = AllocationSummary {
            lambda: 0.0,
            target_bytes: None,
            predicted_loss: 0.0,
            estimated_bytes: sizes.bytes,
            resident_bits: sizes.bytes as f64 * 8.0,
            weights: sizes.weights,
            tensors: Vec::new(),
        };
        Ok(Tuned { allocation, allocated: None, encoded, sizes })
    }
}
