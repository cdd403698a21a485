//! Divergence from the original, and its gradient at the last block's output.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use waterfill_model::Head;

use crate::error::Result;

/// Elements of logits held at once, of each model.
const LOGITS: usize = 1 << 24;

/// KL(original || compressed).
pub(crate) struct Divergence {
    /// Summed over tokens, nats.
    pub sum: f64,
    /// By the compressed model's final states, of that shape.
    pub gradient: Tensor,
}

/// Divergence of final states `[batch, tokens, hidden]` of the compressed model from those of the original.
pub(crate) fn divergence(original: (&Head, &Tensor), compressed: (&Head, &Tensor)) -> Result<Divergence> {
    let hidden = compressed.1.dim(2)?;
    let [reference, normalised] = [original, compressed].map(|(head, x)| head.normalise(x));
    let [reference, normalised] = [reference?.reshape(((), hidden))?, normalised?.reshape(((), hidden))?];
    let (vocab, tokens) = (compressed.0.vocab()?, normalised.dim(0)?);
    let chunk = (LOGITS / vocab).max(1);
    let (mut sum, mut gradients) = (0.0, Vec::new());
    for start in (0..tokens).step_by(chunk) {
        let count = chunk.min(tokens - start);
        let logits = |head: &Head, states: &Tensor| -> Result<Vec<f32>> {
            let logits = head.logits(&states.narrow(0, start, count)?)?;
            Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
        };
        let (mut p, mut q) = (logits(original.0, &reference)?, logits(compressed.0, &normalised)?);
        let rows = q.par_chunks_exact_mut(vocab).zip(p.par_chunks_exact_mut(vocab));
        let losses: Vec<f64> = rows.map(|(q, p)| of_position(p, q)).collect();
        sum += losses.iter().sum::<f64>();
        let q = Tensor::from_vec(q, (count, vocab), &Device::Cpu)?.to_device(compressed.1.device())?;
        gradients.push(compressed.0.logits_vjp(&q.to_dtype(compressed.1.dtype())?)?);
    }
    let gradient = Tensor::cat(&gradients, 0)?.reshape(compressed.1.shape())?;
    Ok(Divergence { sum, gradient: compressed.0.normalise_vjp(compressed.1, &gradient)? })
}

/// Divergence of one position's logits, which are overwritten; `compressed` becomes its gradient, q - p.
fn of_position(original: &mut [f32], compressed: &mut [f32]) -> f64 {
    // The difference of two logits is the difference of their logarithms but for the two norms.
    let largest = |logits: &[f32]| logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let (of_original, of_compressed) = (largest(original), largest(compressed));
    let (mut p_sum, mut q_sum, mut difference) = (0.0f64, 0.0f64, 0.0f64);
    for (q, p) in compressed.iter_mut().zip(original.iter_mut()) {
        let (log_p, log_q) = (*p - of_original, *q - of_compressed);
        (*p, *q) = (log_p.exp(), log_q.exp());
        p_sum += f64::from(*p);
        q_sum += f64::from(*q);
        difference += f64::from(*p) * f64::from(log_p - log_q);
    }
    let (p_unit, q_unit) = ((1.0 / p_sum) as f32, (1.0 / q_sum) as f32);
    compressed.iter_mut().zip(original).for_each(|(q, p)| *q = *q * q_unit - *p * p_unit);
    difference / p_sum + (q_sum / p_sum).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_gradient_are_those_of_the_distributions() {
        let (original, compressed) = ([0.5f32, -1.0, 2.0, 90.0], [0.25f32, -1.5, 3.0, 89.0]);
        let distribution = |logits: [f32; 4]| {
            let sum: f64 = logits.iter().map(|&l| f64::from(l - 90.0).exp()).sum();
            logits.map(|l| f64::from(l - 90.0).exp() / sum)
        };
        for shift in [0.0, 88.0] {
            let (mut a, mut b) = (original, compressed);
            (a[3], b[3]) = (a[3] - shift, b[3] - shift);
            let (p, q) = (distribution(a), distribution(b));
            let expected: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
            let kl = of_position(&mut a, &mut b);
            assert!((kl - expected).abs() < 1e-6 * (1.0 + expected), "{kl} {expected}");
            (0..4).for_each(|i| assert!((f64::from(b[i]) - (q[i] - p[i])).abs() < 1e-6, "{b:?}"));
        }
    }
}
