//! Corrections of predicted losses: by what groups of tensors lose when they alone are quantized, and those of
//! a uniform allocation.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use waterfill_allocate as allocate;
use waterfill_codec::{BitsPerWeight, Lambda};
use waterfill_evaluate::{Estimate as Measured, TextResult};
use waterfill_quantize::EncodeSummary;
use waterfill_store::{Identity, Work};

use super::measure::candidate_files;
use super::policy::{overhead, policy};
use super::prediction::Prediction;
use crate::context::Context;
use crate::error::Result;
use crate::estimate::PROGRAM;
use crate::results::write_json;
use crate::stage::{ArtifactRef, Estimate, Stage};

/// File of the corrections in their artifact.
pub(crate) const CORRECTIONS: &str = "corrections.json";

/// Corrections in a closed loop are kept within these factors.
const LOOP_RANGE: (f64, f64) = (0.25, 8.0);
/// Lambda at which the factors of a uniform allocation are found; the allocation finds its own for its size.
const UNIFORM_LAMBDA: Lambda = Lambda(1e-9);

/// Names of the tensors of every group.
pub(crate) type Groups = BTreeMap<String, BTreeSet<String>>;

/// Predicted and measured loss of a group of tensors that were compressed, the others being original.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GroupLoss {
    /// Name of the group.
    pub group: String,
    /// Predicted loss, nats per token.
    pub predicted: f64,
    /// Measured KL from the original, nats per token.
    pub measured: Measured,
}

/// `corrections.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Corrections {
    /// Lambda at which groups were compressed, nats per bit.
    pub lambda: f64,
    pub groups: Vec<GroupLoss>,
    /// Factor of the predicted loss by tensor.
    pub corrections: BTreeMap<String, f64>,
    /// How KL follows from the sum of losses that these factors correct; of probes alone.
    #[serde(default)]
    pub prediction: Option<Prediction>,
}

impl Corrections {
    /// Measured over predicted loss of groups that were compressed alone, kept within a range.
    pub fn of(
        lambda: f64,
        groups: &Groups,
        parts: &[ArtifactRef],
        losses: &BTreeMap<String, f64>,
        (least, most): (f64, f64),
    ) -> Result<Self> {
        let (mut found, mut corrections) = (Vec::new(), BTreeMap::new());
        for ((group, names), part) in groups.iter().zip(parts) {
            let result: TextResult = part.read("result.json")?;
            let predicted: f64 = names.iter().filter_map(|n| losses.get(n)).sum();
            let ratio = (result.kl.mean / predicted.max(f64::MIN_POSITIVE)).clamp(least, most);
            corrections.extend(names.iter().map(|n| (n.clone(), ratio)));
            found.push(GroupLoss { group: group.clone(), predicted, measured: result.kl });
        }
        Ok(Self { lambda, groups: found, corrections, prediction: None })
    }
}

/// Adding up takes neither time nor memory.
fn little() -> Estimate {
    Estimate { operations: 0.0, memory: PROGRAM, disk: 0 }
}

fn of_parts(context: &Context, (stage, version): (&str, u32), parts: &[ArtifactRef]) -> Identity {
    let parts: Vec<String> = parts.iter().map(ArtifactRef::digest).collect();
    context.identity(stage, version, &[], serde_json::json!({"parts": parts}))
}

/// Corrections by what groups of a first allocation's checkpoint lose.
pub(crate) struct LoopCorrections<'a> {
    pub groups: &'a Groups,
    /// Evaluation of each group.
    pub parts: &'a [ArtifactRef],
    /// The checkpoint that the groups are from.
    pub encoded: &'a ArtifactRef,
    /// Lambda of its allocation, where that is known.
    pub lambda: Option<f64>,
}

impl Stage for LoopCorrections<'_> {
    fn label(&self) -> String {
        "weigh groups by their measured loss".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        Ok(of_parts(context, ("closed-loop", 2), self.parts))
    }

    fn estimate(&self, _context: &Context) -> Estimate {
        little()
    }

    fn run(&self, _context: &Context, work: &Work) -> Result<()> {
        let summary: EncodeSummary = self.encoded.read("summary.json")?;
        let lambda = self.lambda.unwrap_or_default();
        let found = Corrections::of(lambda, self.groups, self.parts, &summary.losses, LOOP_RANGE)?;
        write_json(&work.path(CORRECTIONS), &found)
    }
}

/// Factors of predicted losses that give all matrices as many bits per weight as a file of so many bytes has.
pub(crate) struct UniformCorrections<'a> {
    pub measured: &'a ArtifactRef,
    pub bytes: u64,
}

impl Stage for UniformCorrections<'_> {
    fn label(&self) -> String {
        "spread bits evenly".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let a = &context.config.allocate;
        let settings = serde_json::json!({
            "bytes": self.bytes, "formats": a.formats, "policy": a.policy, "floors": a.floors,
            "rate": a.rate(), "granularity": String::from(a.granularity),
        });
        Ok(context.identity("uniform-correction", 1, &[("measure", self.measured.digest())], settings))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let operations = context.model.checkpoint().weights() as f64 * 2e3;
        Estimate { operations, memory: PROGRAM, disk: 0 }
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let files = candidate_files(self.measured)?;
        let checkpoint = context.model.checkpoint();
        let plain = overhead(checkpoint, &files).plain.0;
        let bits = BitsPerWeight((self.bytes as f64 * 8.0 - plain) / context.matrix_weights() as f64);
        let policy = policy(context)?;
        let corrections = allocate::uniform_corrections(bits, UNIFORM_LAMBDA, &files, checkpoint, &policy)?;
        let found = Corrections { lambda: UNIFORM_LAMBDA.0, groups: Vec::new(), corrections, prediction: None };
        write_json(&work.path(CORRECTIONS), &found)
    }
}
