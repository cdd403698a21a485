//! Divergence from the original, and its gradient at the last block's output.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use waterfill_model::Head;

use crate::Result;

/// Elements of logits held at once, of each model.
const LOGITS: usize = 1 << 24;

/// KL(original || tuned).
pub(crate) struct Divergence {
    /// Summed over tokens, nats.
    pub sum: f64,
    /// By the tuned model's final states, of that shape.
    pub gradient: Tensor,
}

/// Divergence of final states `[batch, tokens, hidden]` of the tuned model from those of the original.
pub(crate) fn divergence(original: (&Head, &Tensor), tuned: (&Head, &Tensor)) -> Result<Divergence> {
    let hidden = tuned.1.dim(2)?;
    let [reference, normalised] = [original, tuned].map(|(head, x)| head.normalise(x));
    let [reference, normalised] = [reference?.reshape(((), hidden))?, normalised?.reshape(((), hidden))?];
    let (vocab, tokens) = (tuned.0.vocab()?, normalised.dim(0)?);
    let chunk = (LOGITS / vocab).max(1);
    let (mut sum, mut gradients) = (0.0, Vec::new());
    for start in (0..tokens).step_by(chunk) {
        let count = chunk.min(tokens - start);
        let logits = |head: &Head, states: &Tensor| -> Result<Vec<f32>> {
            let logits = head.logits(&states.narrow(0, start, count)?)?;
            Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
        };
        let (p, mut q) = (logits(original.0, &reference)?, logits(tuned.0, &normalised)?);
        let rows = q.par_chunks_exact_mut(vocab).zip(p.par_chunks_exact(vocab));
        let losses: Vec<f64> = rows.map(|(q, p)| of_position(p, q)).collect();
        sum += losses.iter().sum::<f64>();
        let q = Tensor::from_vec(q, (count, vocab), &Device::Cpu)?.to_device(tuned.1.device())?;
        gradients.push(tuned.0.logits_vjp(&q.to_dtype(tuned.1.dtype())?)?);
    }
    let gradient = Tensor::cat(&gradients, 0)?.reshape(tuned.1.shape())?;
    Ok(Divergence { sum, gradient: tuned.0.normalise_vjp(tuned.1, &gradient)? })
}

/// Divergence of one position's logits; `tuned` becomes its gradient, q - p.
fn of_position(original: &[f32], tuned: &mut [f32]) -> f64 {
    let norm = |logits: &[f32]| {
        let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        let sum: f64 = logits.iter().map(|&l| f64::from((l - largest).exp())).sum();
        sum.ln() + f64::from(largest)
    };
    let (of_original, of_tuned) = (norm(original), norm(tuned));
    let mut kl = 0.0;
    for (q, &p) in tuned.iter_mut().zip(original) {
        let (log_p, log_q) = (f64::from(p) - of_original, f64::from(*q) - of_tuned);
        let p = log_p.exp();
        kl += p * (log_p - log_q);
        *q = (log_q.exp() - p) as f32;
    }
    kl
}
