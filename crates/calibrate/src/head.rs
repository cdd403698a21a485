//! The output head: labels, its Fisher information in closed form, and the gradient below it.

use candle_core::{D, DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_model::Head;

use crate::error::Result;
use crate::statistics::{SecondMoment, Sums};
use crate::sweep::Labels;

/// Elements of logits held at once.
const LOGIT_BUDGET: usize = 1 << 23;

/// What one batch gives at the head.
pub(crate) struct HeadBatch {
    pub sums: Sums,
    /// Gradient with respect to the last block's output, `[batch, tokens, hidden]`.
    pub gradient: Tensor,
    /// Summed negative log-likelihood of the data's own targets, nats.
    pub nll: f64,
}

/// Draws the label of a position from the model's distribution; depends only on the seed, the
/// sequence and the position.
fn sample(probabilities: &[f32], seed: u64, sequence: u64, position: usize) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(sequence);
    rng.set_word_pos(2 * position as u128);
    let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
    let mut left = uniform * total;
    for (label, &p) in probabilities.iter().enumerate() {
        left -= f64::from(p);
        if left < 0.0 {
            return label;
        }
    }
    probabilities.len() - 1
}

/// Head statistics and gradient for hidden states `x` `[batch, tokens, hidden]`; `targets` has a
/// row for each sequence, the first of which has index `first`.
///
/// A softmax output has E[g_i^2] = p_i (1 - p_i) over labels drawn from it, so the head's own
/// Fisher information needs no sampling.
pub(crate) fn head_batch(
    head: &Head,
    x: &Tensor,
    targets: &[&[u32]],
    first: usize,
    labels: Labels,
    seed: u64,
    moment: SecondMoment,
) -> Result<HeadBatch> {
    let (_, tokens, hidden) = x.dims3()?;
    let normalised = head.normalise(x)?.reshape(((), hidden))?;
    let targets: Vec<u32> = targets.concat();
    let vocab = head.logits(&normalised.narrow(0, 0, 1)?)?.dim(1)?;
    let chunk = (LOGIT_BUDGET / vocab).max(1);
    let mut sums: Option<Sums> = None;
    let mut gradients = Vec::new();
    let mut nll = 0.0;
    for start in (0..targets.len()).step_by(chunk) {
        let count = chunk.min(targets.len() - start);
        let input = normalised.narrow(0, start, count)?;
        let probabilities = softmax(&head.logits(&input)?)?;
        let mut gradient: Vec<f32> =
            probabilities.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        for (i, row) in gradient.chunks_exact_mut(vocab).enumerate() {
            let at = start + i;
            let target = targets[at] as usize;
            nll -= f64::from(row[target].max(f32::MIN_POSITIVE)).ln();
            let label = match labels {
                Labels::Data => target,
                Labels::Sampled => sample(row, seed, (first + at / tokens) as u64, at % tokens),
            };
            row[label] -= 1.0;
        }
        let gradient = Tensor::from_vec(gradient, (count, vocab), x.device())?.to_dtype(x.dtype())?;
        let energy = match labels {
            Labels::Sampled => (&probabilities - probabilities.sqr()?)?,
            Labels::Data => gradient.sqr()?,
        };
        let part = Sums::of(&energy, &input, Some(moment))?;
        match &mut sums {
            Some(sums) => sums.add(&part),
            None => sums = Some(part),
        }
        gradients.push(head.logits_vjp(&gradient)?);
    }
    let gradient = Tensor::cat(&gradients, 0)?.reshape(x.shape())?;
    let gradient = head.normalise_vjp(x, &gradient)?;
    Ok(HeadBatch { sums: sums.expect("a batch has tokens"), gradient, nll })
}

fn softmax(logits: &Tensor) -> candle_core::Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_distribution_and_the_seed() {
        let p = [0.5, 0.25, 0.125, 0.125];
        let draw = |seed| (0..4000).map(|i| sample(&p, seed, i / 50, (i % 50) as usize)).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for (label, &probability) in p.iter().enumerate() {
            let share = draw(3).iter().filter(|&&l| l == label).count() as f64 / 4000.0;
            // Five standard errors.
            assert!((share - f64::from(probability)).abs() < 0.04, "label {label}: {share}");
        }
    }
}
