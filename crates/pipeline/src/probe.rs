//! Probes: what tuned tensors really cost, measured on calibration text that calibration did not see,
//! against what was predicted for them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use waterfill_checkpoint::Checkpoint;
use waterfill_evaluate as eval;
use waterfill_model::roles::{block_of, label_of};
use waterfill_model::{Model, Windows};
use waterfill_quantize::EncodeSummary;
use waterfill_store::{Artifact, Identity};

use crate::config::Probes;
use crate::error::Result;
use crate::results::{read_json, write_json};
use crate::session::{Goal, Session};
use crate::stages::{Calibration, tokens_digest};

/// Predicted losses that all tensors are tuned together at, nats per token.
const PROBED_LOSSES: [f64; 4] = [0.0002, 0.002, 0.015, 0.06];
/// Which of them groups are tuned alone at: where the quadratic model holds (what grows beyond it, all together
/// tell) and parts of it stand out of the noise.
pub(crate) const ALONE: usize = 1;
/// Corrections are kept within these factors.
const LEAST: f64 = 1.0;
const MOST: f64 = 8.0;

/// Name of all groups as one.
pub(crate) const TOGETHER: &str = "together";

/// Some tensors, tuned alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// Name of the group.
    pub group: String,
    /// Predicted loss, nats per token.
    pub predicted: f64,
    /// Measured KL from the original.
    pub measured: eval::Estimate,
}

/// `probes.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Probed {
    /// Lambda that groups were tuned at.
    pub lambda: f64,
    pub groups: Vec<Probe>,
    /// All tensors together, with growing loss, allocated by corrected losses; measured over predicted is
    /// what errors make of each other.
    pub together: Vec<Probe>,
    /// Factor of the predicted loss by tensor.
    pub corrections: BTreeMap<String, f64>,
}

impl Probed {
    /// What groups have lost alone, `parts` being their evaluations, over what was predicted for their tensors.
    pub fn of(
        lambda: f64,
        groups: &BTreeMap<String, BTreeSet<String>>,
        parts: &[Artifact],
        losses: &BTreeMap<String, f64>,
        (least, most): (f64, f64),
    ) -> Result<Self> {
        let (mut probes, mut corrections) = (Vec::new(), BTreeMap::new());
        for ((group, names), part) in groups.iter().zip(parts) {
            let result: eval::TextResult = read_json(&part.path("result.json"))?;
            let predicted: f64 = names.iter().filter_map(|n| losses.get(n)).sum();
            let ratio = (result.kl.mean / predicted.max(f64::MIN_POSITIVE)).clamp(least, most);
            corrections.extend(names.iter().map(|n| (n.clone(), ratio)));
            probes.push(Probe { group: group.clone(), predicted, measured: result.kl });
        }
        Ok(Self { lambda, groups: probes, together: Vec::new(), corrections })
    }

    /// What decoded weights of these predicted losses are expected to cost together: on a line through
    /// the logarithms of what was measured.
    pub fn expected(&self, losses: &BTreeMap<String, f64>) -> f64 {
        let loss = corrected(losses, &self.corrections).max(f64::MIN_POSITIVE);
        let ratio = |p: &Probe| (p.measured.mean / p.predicted.max(f64::MIN_POSITIVE)).max(f64::MIN_POSITIVE).ln();
        let (Some(first), Some(last)) = (self.together.first(), self.together.last()) else { return loss };
        let between = self.together.windows(2).find(|pair| loss <= pair[1].predicted && loss >= pair[0].predicted);
        let ratio = match between {
            Some([a, b]) if b.predicted > a.predicted => {
                let t = (loss / a.predicted).ln() / (b.predicted / a.predicted).ln();
                ratio(a) + t * (ratio(b) - ratio(a))
            }
            _ if loss < first.predicted => ratio(first),
            _ => ratio(last),
        };
        loss * ratio.exp()
    }
}

/// Sum of predicted losses with their corrections.
fn corrected(losses: &BTreeMap<String, f64>, corrections: &BTreeMap<String, f64>) -> f64 {
    losses.iter().map(|(name, loss)| loss * corrections.get(name).copied().unwrap_or(1.0)).sum()
}

/// Group of a tensor.
fn group_of(name: &str, probes: Probes) -> String {
    match (probes, block_of(name)) {
        (Probes::Layers, Some(block)) => format!("{} of layer {block}", label_of(name)),
        _ => label_of(name).into(),
    }
}

impl Session<'_> {
    /// Corrections of predicted losses; none where they are not asked for.
    pub(crate) fn probe(&self, calibration: &Calibration, points: &Artifact) -> Result<Option<Artifact>> {
        let probes = self.config.allocate.probes;
        if probes == Probes::None {
            return Ok(None);
        }
        let (_, windows) = self.source.calibration(self.config, &self.model.config, self.console)?;
        let base = self.part_base(&windows)?;
        let alone = self.probe_alone(calibration, points, (&windows, &base))?;
        let all: BTreeSet<String> = self.probed_groups(probes).into_values().flatten().collect();
        let sequential = self.config.encode.sequential;
        let mut whole = Vec::new();
        for lambda in self.probed_lambdas() {
            let allocation = self.allocate(points, Some(&alone), Goal::Lambda(lambda))?;
            let encoded = self.encode_as(calibration, &[allocation], sequential)?;
            let measured = self.part(TOGETHER, &all, &windows, &base, &encoded)?;
            whole.push((encoded, measured));
        }
        let digests = whole.iter().map(|(_, part)| part.digest()).collect();
        let made = self.stage("probe", &self.probe_identity("probe", digests), |work| {
            let mut probed: Probed = read_json(&alone.path("probes.json"))?;
            for (encoded, part) in &whole {
                let summary: EncodeSummary = read_json(&encoded.path("summary.json"))?;
                let predicted = corrected(&summary.losses, &probed.corrections);
                let result: eval::TextResult = read_json(&part.path("result.json"))?;
                probed.together.push(Probe { group: TOGETHER.into(), predicted, measured: result.kl });
            }
            probed.together.sort_by(|a, b| a.predicted.total_cmp(&b.predicted));
            write_json(&work.path("probes.json"), &probed)
        })?;
        Ok(Some(made))
    }

    /// What groups lose that are tuned alone, and what that corrects.
    fn probe_alone(
        &self,
        calibration: &Calibration,
        points: &Artifact,
        (windows, base): (&Windows, &Artifact),
    ) -> Result<Artifact> {
        let lambda = self.probed_lambdas()[ALONE];
        let allocation = self.allocate(points, None, Goal::Lambda(lambda))?;
        // Weights that made up for others are worse without them.
        let encoded = self.encode_as(calibration, &[allocation], None)?;
        let groups = self.probed_groups(self.config.allocate.probes);
        let part = |(group, names): (&String, &BTreeSet<String>)| self.part(group, names, windows, base, &encoded);
        let parts: Vec<Artifact> = groups.iter().map(part).collect::<Result<_>>()?;
        let identity = self.probe_identity("probe-alone", parts.iter().map(Artifact::digest).collect());
        self.stage("probe-alone", &identity, |work| {
            let summary: EncodeSummary = read_json(&encoded.path("summary.json"))?;
            let probed = Probed::of(lambda, &groups, &parts, &summary.losses, (LEAST, MOST))?;
            write_json(&work.path("probes.json"), &probed)
        })
    }

    /// Lambdas that probes are made at.
    pub(crate) fn probed_lambdas(&self) -> [f64; PROBED_LOSSES.len()] {
        let weights: usize = self.model.weights().iter().map(|(_, [rows, cols])| rows * cols).sum();
        PROBED_LOSSES.map(|loss| loss * 2.0 * std::f64::consts::LN_2 / weights as f64)
    }

    /// Names of the tensors of every group, by kind or alone.
    pub(crate) fn probed_groups(&self, probes: Probes) -> BTreeMap<String, BTreeSet<String>> {
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, _) in self.model.weights() {
            groups.entry(group_of(&name, probes)).or_default().insert(name);
        }
        groups
    }

    pub(crate) fn part_base_identity(&self, windows: &Windows) -> Identity {
        self.identity("evaluate-base", 3, [("tokens", tokens_digest(windows))], self.text_config())
    }

    pub(crate) fn part_identity(&self, base: String, encoded: String, names: &BTreeSet<String>) -> Identity {
        let inputs = [("checkpoint", encoded), ("base", base)];
        self.identity("evaluate-part", 2, inputs, serde_json::json!({"names": names}))
    }

    pub(crate) fn probe_identity(&self, stage: &str, parts: Vec<String>) -> Identity {
        self.identity(stage, 5, [], serde_json::json!({"parts": parts}))
    }

    /// The original's figures on held-out text.
    pub(crate) fn part_base(&self, windows: &Windows) -> Result<Artifact> {
        let identity = self.part_base_identity(windows);
        self.stage("evaluate the original on held-out text", &identity, |work| {
            let text =
                eval::evaluate_text(&self.model, windows, self.config.evaluate.batch_tokens, None, work, self.console)?;
            write_json(&work.path("result.json"), &text)
        })
    }

    /// KL of the original with some tensors tuned.
    pub(crate) fn part(
        &self,
        group: &str,
        names: &BTreeSet<String>,
        windows: &Windows,
        base: &Artifact,
        encoded: &Artifact,
    ) -> Result<Artifact> {
        let identity = self.part_identity(base.digest(), encoded.digest(), names);
        self.stage(&format!("probe {group}"), &identity, |work| {
            let tuned = Checkpoint::open(encoded.path("checkpoint"))?;
            let model = Model::open(&self.source.dir, self.model.device())?.with(tuned, names.clone());
            let original = Some((&self.model, base.dir.as_path()));
            let text =
                eval::evaluate_text(&model, windows, self.config.evaluate.batch_tokens, original, work, self.console)?;
            write_json(&work.path("result.json"), &text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_follows_what_was_measured_together() {
        let estimate = |mean: f64| eval::Estimate { mean, se: 0.0 };
        let probe = |predicted: f64, ratio: f64| Probe {
            group: TOGETHER.into(),
            predicted,
            measured: estimate(predicted * ratio),
        };
        let probed = Probed {
            lambda: 1e-9,
            groups: vec![],
            together: vec![probe(0.001, 1.0), probe(0.01, 2.0), probe(0.1, 2.0)],
            corrections: [("v".to_string(), 4.0)].into(),
        };
        let expected = |q: f64, v: f64| probed.expected(&[("q".to_string(), q), ("v".to_string(), v)].into());
        for (q, v, wanted) in [
            (0.0001, 0.0, 0.0001),
            (0.0, 0.0025, 0.02),
            (0.01, 0.0, 0.02),
            (1.0, 0.0, 2.0),
            (0.001 * 10f64.sqrt(), 0.0, 0.001 * 20f64.sqrt()),
        ] {
            assert!((expected(q, v) / wanted - 1.0).abs() < 1e-9, "{q} {v}: {}, not {wanted}", expected(q, v));
        }
    }
}
