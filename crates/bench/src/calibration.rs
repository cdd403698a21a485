//! Speed of the vector-Jacobian product that calibration consists of, against candle's automatic
//! differentiation of the same block on the same batches.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use waterfill_model::{Model, Projection, device, side_by_side};

use crate::error::BenchError;
use crate::timing::time_together;

/// Figures of calibration; rates are medians.
#[derive(Debug, Clone, Serialize)]
pub struct CalibrationBench {
    /// Tokens of a batch, which is one sequence.
    pub tokens: usize,
    /// Batches side by side, for both.
    pub batches: usize,
    /// Weights of the block's linear layers.
    pub block_weights: usize,
    /// Tokens a second through the block's product.
    pub tokens_per_second: f64,
    /// The same by candle's automatic differentiation.
    pub candle_tokens_per_second: f64,
    /// The first over the second.
    pub ratio: f64,
    /// Arithmetic of the products that are needed, floating-point operations a second.
    pub flops: f64,
    /// Slowest and fastest over the median: ours, then candle's.
    pub spread: [[f64; 2]; 2],
}

/// Measures block 0 of a checkpoint on contexts of `tokens`.
///
/// # Errors
/// Checkpoints that cannot be read or run.
pub fn bench_calibration(dir: &Path, tokens: usize, repeats: usize) -> Result<CalibrationBench, BenchError> {
    let model = Model::open(dir, &device("cpu")?)?;
    let config = &model.config;
    let block = model.block(0)?;
    let batches = rayon::current_num_threads();
    let ids: Vec<Vec<u32>> = (0..2 * batches)
        .map(|b| (0..tokens).map(|t| ((t * 7919 + b * 104_729) % config.vocab) as u32).collect())
        .collect();
    let mut tensors = Vec::new();
    let rows: Vec<Vec<&[u32]>> = ids.iter().map(|row| vec![row.as_slice()]).collect();
    model.embed(&rows, |_, x| -> Result<(), BenchError> {
        tensors.push(x);
        Ok(())
    })?;
    // Other embeddings serve as gradients.
    let (inputs, gradients) = tensors.split_at(batches);
    let width = side_by_side(model.device(), config.vjp_bytes(tokens));
    let pairs: Vec<_> = inputs.iter().zip(gradients).collect();
    let mut ours = || {
        for group in pairs.chunks(width) {
            group.par_iter().for_each(|(x, g)| drop(block.vjp(x, g).expect("shapes fit")));
        }
    };
    let mut theirs = || pairs.par_iter().for_each(|(x, g)| drop(block.vjp_by_candle(x, g).expect("shapes fit")));
    let timings = time_together(repeats, &mut [&mut ours, &mut theirs]);
    let all = (tokens * batches) as f64;
    let sizes = Projection::ALL.map(|p| config.linear_shape(p).iter().product::<usize>());
    // The output of the last one is not needed.
    let (block_weights, down) = (sizes.iter().sum::<usize>(), sizes[Projection::Down as usize]);
    let operations = 2.0 * all * (2 * block_weights - down) as f64;
    let rate = |i: usize| all / timings[i].median;
    Ok(CalibrationBench {
        tokens,
        batches,
        block_weights,
        tokens_per_second: rate(0),
        candle_tokens_per_second: rate(1),
        ratio: timings[1].median / timings[0].median,
        flops: operations / timings[0].median,
        spread: [0, 1].map(|i| [timings[i].slowest / timings[i].median, timings[i].fastest / timings[i].median]),
    })
}
