//! Products from packed tiles and coded slices against products with dense weights.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Serialize;
use waterfill_model::{Model, Projection};

use crate::error::{Result, RuntimeError};
use crate::linear::PackedLinear;
use crate::load::{Form, Runtime, Written};

/// Largest accepted error of a product over its norm. Decoded values are rounded to bf16, by at most 2^-8 of a value
/// and usually by less than a third of that; the roundings of different weights add up like noise.
const MOST: f64 = 1.0 / 256.0;
/// Rows of inputs.
const TOKENS: usize = 4;

/// Comparison of one linear layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerCheck {
    /// Its name.
    pub name: String,
    /// Bytes in memory.
    pub bytes: usize,
    /// Weights.
    pub weights: u64,
    /// Error of the product over the norm of the dense one.
    pub error: f64,
}

/// Result of [`check`].
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// Every linear layer.
    pub layers: Vec<LayerCheck>,
    /// KL(dense || packed) of the token after the prompt, nats.
    pub kl: f64,
    /// Bytes of the linear layers: packed, and in bf16.
    pub linear_bytes: [usize; 2],
    /// Bytes of all tensors in each form: packed, dense in f32, coded.
    pub resident_bytes: [usize; 3],
    /// Weights of all tensors.
    pub weights: u64,
    /// Continuation by each form.
    pub written: [Written; 3],
    /// Seconds of loading each.
    pub load_seconds: [f64; 3],
}

/// Multiplies noise with every linear layer both ways, then writes `tokens` tokens after `prompt` with each form.
///
/// # Errors
/// Checkpoints that cannot be run, and products that differ more than rounding explains.
pub fn check(dir: &Path, prompt: &str, tokens: usize) -> Result<Checked> {
    let model = Model::open(dir, &Device::Cpu)?;
    let mut layers = Vec::new();
    for block in 0..model.config.layers {
        for projection in Projection::ALL {
            layers.push(layer(&model, &projection.weight(block).name())?);
        }
    }
    let [packed, dense, coded] = [Form::Packed, Form::Dense, Form::Coded].map(|form| Runtime::open(dir, form));
    let (packed, dense, coded) = (packed?, dense?, coded?);
    let (p, q) = (dense.logits(prompt)?, packed.logits(prompt)?);
    Ok(Checked {
        layers,
        kl: divergence(&p, &q),
        linear_bytes: [packed.linear_bytes, 2 * packed.linear_weights as usize],
        resident_bytes: [packed.resident_bytes, dense.resident_bytes, coded.resident_bytes],
        weights: packed.weights,
        load_seconds: [packed.load_seconds, dense.load_seconds, coded.load_seconds],
        written: [packed.write(prompt, tokens)?, dense.write(prompt, tokens)?, coded.write(prompt, tokens)?],
    })
}

fn layer(model: &Model, name: &str) -> Result<LayerCheck> {
    let packed = PackedLinear::open(model.checkpoint(), name)?;
    let (rows, cols) = (packed.tensor().rows, packed.tensor().cols);
    // Noise that every machine makes alike.
    let noise = |n: usize| ((n as u32).wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let x: Vec<f32> = (0..TOKENS * cols).map(noise).collect();
    let weights = Tensor::from_vec(model.values(name)?, (rows, cols), &Device::Cpu)?;
    let expected = Tensor::from_slice(&x, (TOKENS, cols), &Device::Cpu)?.matmul(&weights.t()?)?;
    let expected: Vec<f32> = expected.flatten_all()?.to_vec1()?;
    let found = packed.multiply(&x);
    let square = |v: f32| f64::from(v) * f64::from(v);
    let norm: f64 = expected.iter().map(|&v| square(v)).sum();
    let off: f64 = expected.iter().zip(&found).map(|(a, b)| square(a - b)).sum();
    let error = if norm > 0.0 { (off / norm).sqrt() } else { off.sqrt() };
    if error > MOST {
        return Err(RuntimeError::Differs { tensor: name.into(), found: error, most: MOST });
    }
    let bytes = packed.resident_bytes();
    Ok(LayerCheck { name: name.into(), bytes, weights: (rows * cols) as u64, error })
}

/// KL(p || q) of two rows of logits, nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let norm = |logits: &[f32]| {
        let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        logits.iter().map(|&v| f64::from(v - largest).exp()).sum::<f64>().ln() + f64::from(largest)
    };
    let (p_norm, q_norm) = (norm(p), norm(q));
    let term = |(&a, &b): (&f32, &f32)| {
        let log_p = f64::from(a) - p_norm;
        log_p.exp() * (log_p - (f64::from(b) - q_norm))
    };
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}
