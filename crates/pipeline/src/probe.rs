//! Probes: what tuned tensors really cost, measured on calibration text that calibration did not see,
//! against what was predicted for them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use waterfill_artifacts::{Artifact, Identity};
use waterfill_checkpoint::Checkpoint;
use waterfill_encode::{EncodeSummary, kind_of};
use waterfill_evaluate as eval;
use waterfill_model::{Model, Windows};

use crate::config::Probes;
use crate::error::Result;
use crate::results::{read_json, write_json};
use crate::session::{Goal, Session};
use crate::stages::{BATCH_TOKENS, tokens_digest};

/// Predicted loss that probes are made at, nats per token: small enough for the quadratic model, large
/// enough to be measured.
const PROBED_LOSS: f64 = 0.02;
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
    pub lambda: f64,
    pub groups: Vec<Probe>,
    /// All tensors together.
    pub together: Probe,
    /// Factor of the predicted loss by tensor.
    pub corrections: BTreeMap<String, f64>,
    /// Loss of all tensors together over the sum of their corrected ones: what errors make of each other.
    pub interaction: f64,
}

/// Group of a tensor.
fn group_of(name: &str, probes: Probes) -> String {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    match (probes, layer) {
        (Probes::Layers, Some(layer)) => format!("{} of layer {layer}", kind_of(name)),
        _ => kind_of(name),
    }
}

impl Session<'_> {
    /// Corrections of predicted losses; none where they are not asked for.
    pub(crate) fn probe(&self, calibration: &Artifact, points: &Artifact) -> Result<Option<Artifact>> {
        let probes = self.config.allocate.probes;
        if probes == Probes::None {
            return Ok(None);
        }
        let (_, windows) = self.source.calibration(self.config, &self.model.config)?;
        let lambda = self.probed_lambda();
        let allocation = self.allocate(points, None, Goal::Lambda(lambda))?;
        let encoded = self.encode(calibration, &allocation)?;
        let summary: EncodeSummary = read_json(&encoded.path("summary.json"))?;
        let base = self.part_base(&windows)?;
        let groups = self.probed_groups();
        let all: BTreeSet<String> = groups.values().flatten().cloned().collect();
        let mut parts = BTreeMap::new();
        for (group, names) in groups.iter().chain([(&TOGETHER.to_string(), &all)]) {
            parts.insert(group.clone(), self.part(group, names, &windows, &base, &encoded)?);
        }
        let digests = parts.values().map(Artifact::digest).collect();
        let identity = self.probe_identity(encoded.digest(), digests);
        let made = self.stage("probe", &identity, |work| {
            let probe = |group: &str, names: &BTreeSet<String>| -> Result<Probe> {
                let result: eval::TextResult = read_json(&parts[group].path("result.json"))?;
                let predicted = names.iter().filter_map(|n| summary.losses.get(n)).sum();
                Ok(Probe { group: group.into(), predicted, measured: result.kl })
            };
            let measured = groups.iter().map(|(g, names)| probe(g, names)).collect::<Result<Vec<Probe>>>()?;
            let together = probe(TOGETHER, &all)?;
            let mut corrections = BTreeMap::new();
            for (found, names) in measured.iter().zip(groups.values()) {
                let ratio = found.measured.mean / found.predicted.max(f64::MIN_POSITIVE);
                corrections.extend(names.iter().map(|n| (n.clone(), ratio.clamp(LEAST, MOST))));
            }
            let corrected = |(name, loss): (&String, &f64)| loss * corrections.get(name).copied().unwrap_or(1.0);
            let sum: f64 = summary.losses.iter().map(corrected).sum();
            let interaction = together.measured.mean / sum.max(f64::MIN_POSITIVE);
            let probed = Probed { lambda, groups: measured, together, corrections, interaction };
            write_json(&work.path("probes.json"), &probed)
        })?;
        Ok(Some(made))
    }

    /// Lambda that probes are made at.
    pub(crate) fn probed_lambda(&self) -> f64 {
        let weights: usize = self.model.weights().iter().map(|(_, [rows, cols])| rows * cols).sum();
        PROBED_LOSS * 2.0 * std::f64::consts::LN_2 / weights as f64
    }

    /// Names of the tensors of every group.
    pub(crate) fn probed_groups(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, _) in self.model.weights() {
            groups.entry(group_of(&name, self.config.allocate.probes)).or_default().insert(name);
        }
        groups
    }

    pub(crate) fn part_base_identity(&self, windows: &Windows) -> Identity {
        self.identity("evaluate-base", 3, [("tokens", tokens_digest(windows))], self.evaluation_config())
    }

    pub(crate) fn part_identity(&self, base: String, encoded: String, names: &BTreeSet<String>) -> Identity {
        let inputs = [("checkpoint", encoded), ("base", base)];
        self.identity("evaluate-part", 1, inputs, serde_json::json!({"names": names}))
    }

    pub(crate) fn probe_identity(&self, encoded: String, parts: Vec<String>) -> Identity {
        self.identity("probe", 2, [("checkpoint", encoded)], serde_json::json!({"parts": parts}))
    }

    fn part_base(&self, windows: &Windows) -> Result<Artifact> {
        let identity = self.part_base_identity(windows);
        self.stage("evaluate the original on held-out text", &identity, |work| {
            let text = eval::evaluate_text(&self.model, windows, BATCH_TOKENS, None, work, self.console)?;
            write_json(&work.path("result.json"), &text)
        })
    }

    /// KL of the original with some tensors tuned.
    fn part(
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
            let text = eval::evaluate_text(&model, windows, BATCH_TOKENS, original, work, self.console)?;
            write_json(&work.path("result.json"), &text)
        })
    }
}
