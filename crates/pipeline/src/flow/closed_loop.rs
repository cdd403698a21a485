//! The closed loop: groups of a compressed checkpoint's tensors are measured alone on held-out text, a second allocation of
//! the same bytes uses their measured loss, and the best on that text is kept.

use std::collections::BTreeSet;

use waterfill_codec::BitsPerWeight;
use waterfill_evaluate::{Estimate, SEQUENCES, Sequences, TextResult};
use waterfill_quantize::EncodeSummary;

use super::compress::{Compressed, Inputs, budget_for, compress, encode_allocated};
use crate::engine::Engine;
use crate::error::Result;
use crate::goal::Goal;
use crate::output::{Allocated, Attempt};
use crate::results::AllocationSummary;
use crate::stage::ArtifactRef;
use crate::stages::corrections::Groups;
use crate::stages::{EvaluateHeldOut, EvaluatePart, LoopCorrections, UniformCorrections, groups};

/// Artifacts of one allocation of a loop.
#[derive(Clone)]
pub(crate) struct AttemptRefs {
    pub allocated: Allocated,
    pub compressed: Compressed,
    /// Evaluation on held-out text.
    pub held_out: ArtifactRef,
    /// Evaluation on the evaluation's text.
    pub text: Option<ArtifactRef>,
    pub kept: bool,
}

impl AttemptRefs {
    /// All figures.
    pub fn read(&self) -> Result<Attempt> {
        let sizes: EncodeSummary = self.compressed.encoded.read("summary.json")?;
        let held_out: TextResult = self.held_out.read("result.json")?;
        let text: Option<TextResult> = self.text.as_ref().map(|text| text.read("result.json")).transpose()?;
        Ok(Attempt {
            allocated: self.allocated,
            bytes: sizes.bytes,
            bits_per_weight: BitsPerWeight::of_bytes(sizes.bytes, sizes.weights).0,
            held_out: held_out.kl,
            kl: text.map(|text| text.kl),
            checkpoint: self.compressed.encoded.path("checkpoint"),
            kept: self.kept,
        })
    }
}

/// Whether losses by sequence are lower than others of the same sequences by more than a standard error.
fn is_better(losses: &[f64], others: &[f64]) -> bool {
    let changes: Vec<f64> = losses.iter().zip(others).map(|(a, b)| a - b).collect();
    let change = Estimate::of(&changes);
    change.mean + change.se < 0.0
}

/// Evaluations of the original with each group compressed alone.
fn parts(engine: &Engine, groups: &Groups, original: &ArtifactRef, encoded: &ArtifactRef) -> Result<Vec<ArtifactRef>> {
    groups.iter().map(|(group, names)| engine.make(&EvaluatePart { group, names, original, encoded })).collect()
}

/// Compresses for a goal twice, and uniformly; the second and the uniform allocation have the first one's bytes. In a
/// plan the first one counts as kept.
pub(crate) fn close_loop(engine: &Engine, inputs: &Inputs, goal: Goal) -> Result<Vec<AttemptRefs>> {
    let context = engine.context();
    let measured = inputs.measured.as_ref().expect("closed loops are not for baselines");
    let original = engine.make(&EvaluateHeldOut)?;
    let first = compress(engine, inputs, goal)?;
    // Adjusted weights compensate others and are worse without them.
    let encoded = match (context.config.encode.sequential, &first.allocated) {
        (Some(_), Some(allocated)) => {
            encode_allocated(engine, &inputs.calibration, std::slice::from_ref(allocated), None)?
        }
        _ => first.encoded.clone(),
    };
    let groups = groups(context, context.config.allocate.closed_loop);
    let parts = parts(engine, &groups, &original, &encoded)?;
    let allocation = first.allocation()?;
    let lambda = allocation.map(|a: AllocationSummary| a.lambda);
    let weighed = engine.make(&LoopCorrections { groups: &groups, parts: &parts, encoded: &encoded, lambda })?;
    let sizes = first.sizes()?;
    let bytes = sizes.as_ref().map(|sizes| sizes.bytes);
    let memory = !matches!(goal, Goal::Bytes(_)) && context.config.allocate.rate().memory_first();
    let goal = match sizes {
        Some(sizes) if memory => budget_for(sizes.resident_bytes),
        Some(sizes) => Goal::Bytes(sizes.bytes),
        None => goal,
    };
    let second = compress(engine, &inputs.corrected(&weighed), goal)?;
    let uniform = engine.make(&UniformCorrections { measured, bytes: bytes.unwrap_or(0) })?;
    let uniform = compress(engine, &inputs.corrected(&uniform), goal)?;
    let names: BTreeSet<String> = context.model.weights().into_iter().map(|(name, _)| name).collect();
    let mut attempts: Vec<AttemptRefs> = Vec::new();
    // The attempt that is kept so far, and its KL by sequence.
    let mut best: (usize, Option<Vec<f64>>) = (0, None);
    let all = [(Allocated::First, first), (Allocated::Second, second), (Allocated::Uniform, uniform)];
    for (n, (allocated, compressed)) in all.into_iter().enumerate() {
        let part =
            EvaluatePart { group: allocated.name(), names: &names, original: &original, encoded: &compressed.encoded };
        let held_out = engine.make(&part)?;
        if let Some(sequences) = held_out.known::<Sequences>(SEQUENCES)?
            && best.1.as_ref().is_none_or(|best| is_better(&sequences.kl, best))
        {
            best = (n, Some(sequences.kl));
        }
        attempts.push(AttemptRefs { allocated, compressed, held_out, text: None, kept: false });
    }
    attempts[best.0].kept = true;
    Ok(attempts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_within_noise_is_not_better() {
        let first = [1.0, 2.0, 3.0, 4.0];
        assert!(!is_better(&first, &first));
        assert!(is_better(&[0.9, 1.9, 2.9, 3.9], &first));
        assert!(!is_better(&[0.5, 2.5, 2.4, 4.5], &first));
        assert!(!is_better(&[1.1, 2.1, 3.1, 4.1], &first));
    }
}
