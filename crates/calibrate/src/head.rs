//! The output head: labels, its Fisher information in closed form, and the gradient below it.

use candle_core::{DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use waterfill_model::Head;

use crate::error::Result;
use crate::settings::Labels;
use crate::statistics::Sums;

/// Elements of logits held at once.
const LOGITS: usize = 1 << 25;

/// Bytes that a batch holds at the head besides its states: logits, probabilities, energies.
pub fn head_bytes(vocab: usize, tokens: usize) -> u64 {
    (LOGITS.max(vocab).min(vocab * tokens) * 5 * 4) as u64
}

/// Statistics and gradient of one batch.
pub(crate) struct HeadBatch {
    pub sums: Sums,
    /// Input of the head, `[batch * tokens, hidden]`.
    pub input: Tensor,
    /// Energy of each token's gradient, `[batch * tokens, 1]`.
    pub energy: Tensor,
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
) -> Result<HeadBatch> {
    let (_, tokens, hidden) = x.dims3()?;
    let input = head.normalise(x)?.reshape(((), hidden))?;
    let targets: Vec<u32> = targets.concat();
    let vocab = head.vocab()?;
    let chunk = (LOGITS / vocab).max(1);
    let mut sums = Sums::zeros(vocab, hidden);
    let (mut gradients, mut energies) = (Vec::new(), Vec::new());
    let mut nll = 0.0;
    for start in (0..targets.len()).step_by(chunk) {
        let count = chunk.min(targets.len() - start);
        let part = input.narrow(0, start, count)?;
        let logits = head.logits(&part)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let mut gradient: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        drop(logits);
        let mut energy = vec![0f32; gradient.len()];
        let rows = gradient.par_chunks_exact_mut(vocab).zip(energy.par_chunks_exact_mut(vocab));
        let losses: Vec<f64> = rows
            .enumerate()
            .map(|(i, (row, energy))| {
                softmax(row);
                let at = start + i;
                let target = targets[at] as usize;
                let loss = -f64::from(row[target].max(f32::MIN_POSITIVE)).ln();
                let label = match labels {
                    Labels::Data => target,
                    Labels::Sampled => {
                        energy.iter_mut().zip(&*row).for_each(|(e, p)| *e = p - p * p);
                        sample(row, seed, (first + at / tokens) as u64, at % tokens)
                    }
                };
                row[label] -= 1.0;
                if labels == Labels::Data {
                    energy.iter_mut().zip(&*row).for_each(|(e, g)| *e = g * g);
                }
                loss
            })
            .collect();
        nll += losses.iter().sum::<f64>();
        let like_input = |values: Vec<f32>| {
            Tensor::from_vec(values, (count, vocab), &Device::Cpu)?.to_device(x.device())?.to_dtype(x.dtype())
        };
        gradients.push(head.logits_vjp(&like_input(gradient)?)?);
        let energy = like_input(energy)?;
        sums.add(&Sums::of(&energy, &part)?);
        energies.push(energy.sum_keepdim(1)?);
    }
    let gradient = Tensor::cat(&gradients, 0)?.reshape(x.shape())?;
    let gradient = head.normalise_vjp(x, &gradient)?;
    Ok(HeadBatch { sums, input, energy: Tensor::cat(&energies, 0)?, gradient, nll })
}

/// Logits to probabilities.
fn softmax(row: &mut [f32]) {
    let largest = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    row.iter_mut().for_each(|v| *v = (*v - largest).exp());
    let total: f64 = row.iter().map(|&v| f64::from(v)).sum();
    let inverse = (1.0 / total) as f32;
    row.iter_mut().for_each(|v| *v *= inverse);
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
