//! Allocation: format and step of every tile at one lambda or size.

use std::collections::BTreeMap;

use waterfill_allocate::{self as allocate, TargetSize};
use waterfill_codec::{Lambda, Rate};
use waterfill_store::{Identity, Work, in_groups};

use super::corrections::{CORRECTIONS, Corrections};
use super::measure::candidate_files;
use super::policy::{overhead, policy};
use crate::context::Context;
use crate::error::Result;
use crate::estimate::PROGRAM;
use crate::goal::Goal;
use crate::results::{AllocationSummary, TensorSummary, write_json};
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of the artifact; raised when results change.
const VERSION: u32 = 6;
/// Bytes of candidates that are read at the same time.
const CANDIDATE_BYTES: u64 = 1 << 30;

/// Formats and steps at one goal.
pub(crate) struct Allocate<'a> {
    pub measured: &'a ArtifactRef,
    /// Measured over predicted loss by tensor.
    pub corrections: Option<&'a ArtifactRef>,
    pub goal: Goal,
    /// Without the configuration's floors and margin, and by the bits of the file or of memory alone: so that runs which differ in these
    /// share what probes quantize.
    pub plain: bool,
}

impl Stage for Allocate<'_> {
    fn label(&self) -> String {
        self.goal.label()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let a = &context.config.allocate;
        let mut settings = serde_json::json!({
            "goal": self.goal, "formats": a.formats, "policy": a.policy, "floors": a.floors, "margin": a.margin, "rate": a.rate(),
        });
        if self.plain {
            settings = serde_json::json!({"goal": self.goal, "formats": a.formats, "plain": true, "rate": plain_rate(a.rate())});
        }
        if a.granularity.sharing() != allocate::Sharing::Tile {
            settings["granularity"] = String::from(a.granularity).into();
        }
        let mut identity = context.identity("allocate", VERSION, &[("measure", self.measured.digest())], settings);
        identity.inputs.extend(self.corrections.map(|c| ("corrections".to_string(), c.digest())));
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let weights = context.model.checkpoint().weights();
        let largest = context.model.weights().iter().map(|(_, [rows, cols])| (rows * cols) as u64).max().unwrap_or(0);
        // The choice of every tile, and the candidates of the largest matrix.
        let memory = PROGRAM + weights / 256 * 80 + largest * 5;
        Estimate { operations: weights as f64 * 2e3, memory, disk: 0 }
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let checkpoint = context.model.checkpoint();
        let mut policy = policy(context)?;
        if self.plain {
            (policy.floors, policy.margin, policy.rate) = (Vec::new(), 0.0, plain_rate(policy.rate));
        }
        if let Some(corrections) = self.corrections {
            policy.corrections = corrections.read::<Corrections>(CORRECTIONS)?.corrections;
        }
        let files = candidate_files(self.measured)?;
        let overhead = overhead(checkpoint, &files);
        let lambda = match self.goal {
            Goal::Lambda(lambda) => Lambda(lambda),
            Goal::Bytes(bytes) => {
                allocate::meet_target(TargetSize::File(bytes), &files, checkpoint, &policy, overhead)?.lambda
            }
            // Bytes of the file that are too many show when it is coded.
            Goal::Resident(bytes) | Goal::Within { resident: bytes, .. } => {
                allocate::meet_target(TargetSize::Resident(bytes), &files, checkpoint, &policy, overhead)?.lambda
            }
            Goal::Width(_) => unreachable!("baselines are not allocated"),
        };
        let sizes: Vec<u64> = files.iter().map(|(_, path)| path.metadata().map_or(0, |m| m.len())).collect();
        if policy.structure.is_some() {
            let costs = in_groups(&sizes, CANDIDATE_BYTES, |n| -> Result<_> {
                let (name, path) = &files[n];
                let candidates = allocate::TensorCandidates::read(path)?;
                Ok((name.as_str(), allocate::format_costs(name, &candidates, &policy, lambda)))
            })?;
            policy = policy.with_formats(costs);
        }
        let selections = in_groups(&sizes, CANDIDATE_BYTES, |n| -> Result<_> {
            let (name, path) = &files[n];
            let candidates = allocate::TensorCandidates::read(path)?;
            Ok((name.as_str(), allocate::select_weight(name, &candidates, &policy, lambda)?))
        })?;
        let mut map = allocate::Allocation::new(&work.path("allocation.safetensors"));
        selections.iter().for_each(|(name, selection)| map.add(name, selection));
        map.write()?;
        allocate::write_table(&work.path("tiles.parquet"), selections.iter().map(|(n, s)| (*n, s)))?;
        let summary = summarise(&selections, lambda, self.goal, overhead, checkpoint.weights());
        write_json(&work.path("summary.json"), &summary)
    }
}

/// Bits of the file alone, or of memory alone where they come first.
fn plain_rate(rate: allocate::RateWeights) -> allocate::RateWeights {
    match rate.memory_first() {
        true => allocate::RateWeights { storage: 0.0, resident: 1.0 },
        false => allocate::RateWeights::default(),
    }
}

fn summarise(
    selections: &[(&str, allocate::Selection)],
    lambda: Lambda,
    goal: Goal,
    overhead: allocate::Overhead,
    weights: u64,
) -> AllocationSummary {
    let tensors = selections.iter().map(|(name, s)| {
        let mut formats = BTreeMap::new();
        for (n, point) in s.chosen.iter().enumerate() {
            let (row, col) = (n / s.plan.tiles_across() * 16, n % s.plan.tiles_across() * 16);
            let inside = 16.min(s.plan.rows - row) * 16.min(s.plan.cols - col);
            *formats.entry(point.format.name().to_string()).or_insert(0) += inside as u64;
        }
        TensorSummary {
            name: name.to_string(),
            weights: (s.plan.rows * s.plan.cols) as u64,
            bits: allocate::estimated_bits(s).0,
            loss: s.loss.0,
            formats,
            without_floor: s.without_floor.map(|w| [w.rate.0, w.price.0, w.worth.0]),
        }
    });
    let tensors: Vec<TensorSummary> = tensors.collect();
    let bits = tensors.iter().map(|t| t.bits).sum::<f64>() + overhead.plain.0;
    let resident: Rate = selections.iter().map(|(_, s)| s.resident).sum();
    AllocationSummary {
        lambda: lambda.0,
        target_bytes: match goal {
            Goal::Bytes(bytes) => Some(bytes),
            Goal::Lambda(_) | Goal::Resident(_) | Goal::Within { .. } | Goal::Width(_) => None,
        },
        predicted_loss: tensors.iter().map(|t| t.loss).sum(),
        estimated_bytes: (bits / 8.0).round() as u64,
        resident_bits: (resident + overhead.plain_resident).0,
        weights,
        tensors,
    }
}
