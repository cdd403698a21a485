//! The closed loop: groups of a tuned checkpoint's tensors are measured alone on held-out text, a second allocation of
//! the same bytes goes by what they lose, and the best on that text is kept.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use waterfill_allocate as alloc;
use waterfill_codec::{BitsPerWeight, Lambda};
use waterfill_evaluate::{Estimate, SEQUENCES, Sequences, TextResult};
use waterfill_model::Windows;
use waterfill_quantize::EncodeSummary;
use waterfill_store::{Artifact, Identity};

use crate::error::Result;
use crate::probe::Probed;
use crate::results::{read_json, write_json};
use crate::session::{Goal, Session};
use crate::stages::Calibration;
use crate::tune::Tuned;

/// Measured over predicted loss of a group is kept between these.
const RANGE: (f64, f64) = (0.25, 8.0);

/// Where factors of a uniform allocation are looked for; its own lambda is found for its size.
const EVEN: Lambda = Lambda(1e-9);

/// How a tuned checkpoint was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocated {
    /// By predicted losses.
    First,
    /// By losses measured in the first.
    Second,
    /// As many bits a weight in all matrices.
    Uniform,
}

impl Allocated {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Uniform => "uniform",
        }
    }
}

/// One allocation of a loop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// Which.
    pub allocated: Allocated,
    /// Bytes of all safetensors files.
    pub bytes: u64,
    /// Bits of the file over all weights.
    pub bits_per_weight: f64,
    /// KL on held-out text of the calibration, by which one is kept.
    pub held_out: Estimate,
    /// KL on the evaluation's text, where that was asked for.
    pub kl: Option<Estimate>,
    /// Directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// Whether it is the one that is kept.
    pub kept: bool,
}

/// Whether losses by sequence are lower than others of the same sequences by more than a standard error.
fn is_better(losses: &[f64], others: &[f64]) -> bool {
    let changes: Vec<f64> = losses.iter().zip(others).map(|(a, b)| a - b).collect();
    let change = Estimate::of(&changes);
    change.mean + change.se < 0.0
}

/// The attempt of a loop that is kept.
pub(crate) fn kept(attempts: Vec<(Attempt, Tuned)>) -> Tuned {
    attempts.into_iter().find(|(attempt, _)| attempt.kept).expect("one is kept").1
}

impl Session<'_> {
    /// Tunes for a goal twice, and uniformly; the second and the uniform allocation have the first's bytes.
    pub(crate) fn close_loop(
        &self,
        calibration: &Calibration,
        points: &Artifact,
        probes: Option<&Artifact>,
        goal: Goal,
    ) -> Result<Vec<(Attempt, Tuned)>> {
        let (_, windows) = self.source.calibration(self.config, &self.model.config, self.console)?;
        let base = self.part_base(&windows)?;
        let first = self.tune(calibration, points, probes, goal)?;
        let measured = self.measured(calibration, &first, (&windows, &base))?;
        let bytes = Goal::Bytes(first.sizes.bytes);
        let second = self.tune(calibration, points, Some(&measured), bytes)?;
        let even = self.even(points, &first)?;
        let uniform = self.tune(calibration, points, Some(&even), bytes)?;
        let all: BTreeSet<String> = self.model.weights().into_iter().map(|(name, _)| name).collect();
        let mut attempts: Vec<(Attempt, Tuned)> = Vec::new();
        // Which is kept so far, and KL by sequence of that one.
        let mut best: Option<(usize, Vec<f64>)> = None;
        for (n, (allocated, tuned)) in
            [(Allocated::First, first), (Allocated::Second, second), (Allocated::Uniform, uniform)]
                .into_iter()
                .enumerate()
        {
            let part = self.part(allocated.name(), &all, &windows, &base, &tuned.encoded)?;
            let result: TextResult = read_json(&part.path("result.json"))?;
            let kl = read_json::<Sequences>(&part.path(SEQUENCES))?.kl;
            if best.as_ref().is_none_or(|(_, best)| is_better(&kl, best)) {
                best = Some((n, kl));
            }
            let (bytes, weights) = (tuned.sizes.bytes, tuned.sizes.weights);
            let attempt = Attempt {
                allocated,
                bytes,
                bits_per_weight: BitsPerWeight::of_bytes(bytes, weights).0,
                held_out: result.kl,
                kl: None,
                checkpoint: tuned.encoded.path("checkpoint"),
                kept: false,
            };
            attempts.push((attempt, tuned));
        }
        if let Some((n, _)) = best {
            attempts[n].0.kept = true;
        }
        Ok(attempts)
    }

    /// What groups of a tuned checkpoint lose, with what that makes of predicted losses.
    fn measured(
        &self,
        calibration: &Calibration,
        first: &Tuned,
        (windows, base): (&Windows, &Artifact),
    ) -> Result<Artifact> {
        // Weights that made up for others are worse without them.
        let encoded = match (self.config.encode.sequential, &first.allocated) {
            (Some(_), Some(allocated)) => self.encode_as(calibration, std::slice::from_ref(allocated), None)?,
            _ => first.encoded.clone(),
        };
        let groups = self.probed_groups(self.config.allocate.closed_loop);
        let part = |(group, names): (&String, &BTreeSet<String>)| self.part(group, names, windows, base, &encoded);
        let parts: Vec<Artifact> = groups.iter().map(part).collect::<Result<_>>()?;
        let identity = self.measured_identity(parts.iter().map(Artifact::digest).collect());
        self.stage("weigh groups by what they lose", &identity, |work| {
            let summary: EncodeSummary = read_json(&encoded.path("summary.json"))?;
            let probed = Probed::of(first.allocation.lambda, &groups, &parts, &summary.losses, RANGE)?;
            write_json(&work.path("probes.json"), &probed)
        })
    }

    pub(crate) fn measured_identity(&self, parts: Vec<String>) -> Identity {
        self.identity("closed-loop", 1, [], serde_json::json!({"parts": parts}))
    }

    /// Factors of predicted losses that give all matrices as many bits a weight as a tuned checkpoint has.
    fn even(&self, points: &Artifact, first: &Tuned) -> Result<Artifact> {
        let bytes = first.sizes.bytes;
        self.stage("spread bits evenly", &self.even_identity(points.digest(), bytes), |work| {
            let files = self.point_files(points)?;
            let checkpoint = self.model.checkpoint();
            let plain = crate::stages::overhead(checkpoint, &files).plain.0;
            let weights: usize = self.model.weights().iter().map(|(_, [rows, cols])| rows * cols).sum();
            let bits = BitsPerWeight((bytes as f64 * 8.0 - plain) / weights as f64);
            let policy = self.policy()?;
            let corrections = alloc::uniform_corrections(bits, EVEN, &files, checkpoint, &policy)?;
            let probed = Probed { lambda: EVEN.0, groups: Vec::new(), together: Vec::new(), corrections };
            write_json(&work.path("probes.json"), &probed)
        })
    }

    pub(crate) fn even_identity(&self, points: String, bytes: u64) -> Identity {
        let a = &self.config.allocate;
        let settled = serde_json::json!({
            "bytes": bytes, "formats": a.formats, "policy": a.policy, "floors": a.floors,
            "rate": a.rate, "granularity": String::from(a.granularity),
        });
        self.identity("even", 1, [("points", points)], settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_noise_is_not_better() {
        let first = [1.0, 2.0, 3.0, 4.0];
        assert!(!is_better(&first, &first));
        assert!(is_better(&[0.9, 1.9, 2.9, 3.9], &first));
        assert!(!is_better(&[0.5, 2.5, 2.4, 4.5], &first));
        assert!(!is_better(&[1.1, 2.1, 3.1, 4.1], &first));
    }
}
