//! The uniform allocation to compare with: every matrix has the same bits per weight.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::{BitsPerWeight, Lambda};

use crate::error::Result;
use crate::policy::Policy;
use crate::sample::sample_weights;

/// Logarithms of factors are searched between these.
const RANGE: (f64, f64) = (-25.0, 25.0);
/// Halvings of that interval.
const ROUNDS: usize = 40;

/// Factors of every matrix' predicted loss that give each of them `bits` per weight at `lambda`, by estimated bits and as
/// far as the policy allows: uniform between matrices, still by loss within each.
///
/// # Errors
/// Files that cannot be read, policies without an allowed format.
pub fn uniform_corrections(
    bits: BitsPerWeight,
    lambda: Lambda,
    candidates: &[(String, PathBuf)],
    checkpoint: &Checkpoint,
    policy: &Policy,
) -> Result<BTreeMap<String, f64>> {
    let plain = Policy { corrections: BTreeMap::new(), ..policy.clone() };
    let samples = sample_weights(candidates, checkpoint)?;
    let factors = samples.par_iter().map(|sample| {
        let wanted = bits.0 * sample.weights() as f64;
        let (mut low, mut high) = RANGE;
        for _ in 0..ROUNDS {
            let middle = (low + high) / 2.0;
            let at = Lambda(lambda.0 / middle.exp());
            let policy = plain.with_formats([sample.format_costs(&plain, at)]);
            match sample.estimate(&policy, at)? < wanted {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok((sample.name().to_string(), ((low + high) / 2.0).exp()))
    });
    factors.collect()
}
