//! Search for the lambda at which the file, or what a runtime holds of it, has a wanted size.

use std::path::PathBuf;

use rayon::prelude::*;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::Lambda;

use crate::error::{AllocateError, Result};
use crate::overhead::Overhead;
use crate::policy::Policy;
use crate::sample::{Sample, sample_weights};

/// Relative distance to the target at which the search ends.
const TOLERANCE: f64 = 5e-4;
/// Lambdas searched.
const RANGE: (f64, f64) = (1e-18, 1e3);
/// The smallest lambda, at which matrices take as many bits as are of use.
pub const FINEST: Lambda = Lambda(RANGE.0);
/// The largest lambda, at which matrices take as few bits as they can.
pub const COARSEST: Lambda = Lambda(RANGE.1);

/// A wanted size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSize {
    /// Of the file.
    File(u64),
    /// In a runtime's memory.
    Resident(u64),
}

impl TargetSize {
    fn bytes(self) -> u64 {
        match self {
            Self::File(bytes) | Self::Resident(bytes) => bytes,
        }
    }
}

/// Where the search ended.
#[derive(Debug, Clone, Copy)]
pub struct TargetResult {
    /// The lambda.
    pub lambda: Lambda,
    /// Expected bytes of what has the wanted size.
    pub bytes: u64,
}

struct Search<'a> {
    samples: Vec<Sample>,
    policy: &'a Policy,
    overhead: Overhead,
    target: TargetSize,
}

/// Finds the lambda at which there are `target` bytes, to 0.05 % by its own count: a secant search on log lambda over
/// estimated bits, those of a file corrected by the exact bits of sampled slices. Models of more than a
/// million tiles are represented by as many of theirs, so that no candidate is read twice.
///
/// `candidates` names the file of every matrix' [`crate::TensorCandidates`].
///
/// # Errors
/// Targets outside what the policy allows, and files that cannot be read.
pub fn meet_target(
    target: TargetSize,
    candidates: &[(String, PathBuf)],
    checkpoint: &Checkpoint,
    policy: &Policy,
    overhead: Overhead,
) -> Result<TargetResult> {
    let search = Search { samples: sample_weights(candidates, checkpoint)?, policy, overhead, target };
    let wanted = target.bytes() as f64 * 8.0;
    if let TargetSize::Resident(bytes) = target {
        return Ok(TargetResult { lambda: search.solve(wanted, bytes)?, bytes });
    }
    let mut correction = 1.0;
    let mut result = Lambda(RANGE.1);
    let mut bits = 0.0;
    for _ in 0..5 {
        result = search.solve(wanted / correction, target.bytes())?;
        let (estimated, exact) = search.count(result)?;
        let slices = search.estimate(result)? - search.fixed();
        bits = search.fixed() + slices * exact / estimated.max(1.0);
        correction = bits / (search.fixed() + slices);
        if (bits / wanted - 1.0).abs() < TOLERANCE {
            break;
        }
    }
    Ok(TargetResult { lambda: result, bytes: (bits / 8.0).round() as u64 })
}

impl Search<'_> {
    fn fixed(&self) -> f64 {
        match self.target {
            TargetSize::File(_) => self.overhead.plain.0,
            TargetSize::Resident(_) => self.overhead.plain_resident.0,
        }
    }

    /// The policy with formats of whole matrices decided.
    fn policy_at(&self, lambda: Lambda) -> Policy {
        let costs = self.samples.par_iter().filter(|_| self.policy.structure.is_some());
        self.policy.with_formats(costs.map(|s| s.format_costs(self.policy, lambda)).collect::<Vec<_>>())
    }

    /// Estimated bits of the whole file, or in memory.
    fn estimate(&self, lambda: Lambda) -> Result<f64> {
        let policy = &self.policy_at(lambda);
        let bits = self.samples.par_iter().map(|s| match self.target {
            TargetSize::File(_) => s.estimate(policy, lambda),
            TargetSize::Resident(_) => s.estimate_resident(policy, lambda),
        });
        // Summed in order, so that the result does not depend on the number of threads.
        Ok(bits.collect::<Result<Vec<f64>>>()?.iter().sum::<f64>() + self.fixed())
    }

    /// Estimated and exact bits of the sampled slices.
    fn count(&self, lambda: Lambda) -> Result<(f64, f64)> {
        let policy = &self.policy_at(lambda);
        let counted = self.samples.par_iter().map(|s| s.count(policy, lambda));
        Ok(counted.collect::<Result<Vec<_>>>()?.iter().fold((0.0, 0.0), |sum, x| (sum.0 + x.0, sum.1 + x.1)))
    }

    /// Lambda at which the estimate has `wanted` bits: bisection on log lambda, whose steps a
    /// secant shortens.
    fn solve(&self, wanted: f64, target: u64) -> Result<Lambda> {
        let value = |log: f64| Ok::<f64, AllocateError>(self.estimate(Lambda(log.exp()))?.ln() - wanted.ln());
        let (mut low, mut high) = (RANGE.0.ln(), RANGE.1.ln());
        let (mut at_low, mut at_high) = (value(low)?, value(high)?);
        if at_low < 0.0 || at_high > 0.0 {
            let bytes = |difference: f64| (wanted * difference.exp() / 8.0).round() as u64;
            let place = match self.target {
                TargetSize::File(_) => "",
                // More than everything takes is a budget that is kept.
                TargetSize::Resident(_) if at_low < 0.0 => return Ok(FINEST),
                TargetSize::Resident(_) => " in memory",
            };
            return Err(AllocateError::Target { target, place, least: bytes(at_high), most: bytes(at_low) });
        }
        for round in 0..60 {
            let secant = low + (high - low) * at_low / (at_low - at_high).max(f64::MIN_POSITIVE);
            // Every other step halves the interval: rate over log lambda is a staircase with flat ends.
            let middle = if round % 2 == 0 { (low + high) / 2.0 } else { secant.clamp(low, high) };
            let at = value(middle)?;
            if at.abs() < TOLERANCE / 4.0 || high - low < 1e-9 {
                return Ok(Lambda(middle.exp()));
            }
            if at > 0.0 { (low, at_low) = (middle, at) } else { (high, at_high) = (middle, at) }
        }
        Ok(Lambda(((low + high) / 2.0).exp()))
    }
}
