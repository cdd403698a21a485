//! Perplexity of architectures that run token by token.

use candle_core::{DType, Device};
use rayon::prelude::*;
use waterfill_model::Windows;
use waterfill_model::other::OtherModel;
use waterfill_store::{Progress, Work};

use crate::error::Result;
use crate::statistics::Estimate;
use crate::text::{TextResult, log_sum_exp};

/// Sequences that go through the model together.
const ROWS: usize = 8;

/// Measures an original model that cannot be calibrated; a group of sequences is a unit of `work`.
///
/// # Errors
/// As the tensor library says, files that cannot be written.
pub fn evaluate_other(
    model: &OtherModel,
    windows: &Windows,
    work: &Work,
    progress: &dyn Progress,
) -> Result<TextResult> {
    let groups: Vec<&[Vec<u32>]> = windows.rows.chunks(ROWS).collect();
    progress.start("text", (groups.len() * windows.context) as u64);
    let one = |(n, rows): (usize, &&[Vec<u32>])| -> Result<Vec<f64>> {
        let unit = format!("rows-{n}");
        if let Some(kept) = work.unit(&unit).and_then(|bytes| parse(&bytes, rows.len())) {
            progress.advance(windows.context as u64);
            return Ok(kept);
        }
        let inputs: Vec<&[u32]> = rows.iter().map(|r| &r[..windows.context]).collect();
        let mut sums = vec![0.0; rows.len()];
        let each = |position: usize, logits: candle_core::Tensor| -> Result<()> {
            let logits: Vec<Vec<f32>> = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2()?;
            for ((sum, row), logits) in sums.iter_mut().zip(rows.iter()).zip(&logits) {
                *sum += log_sum_exp(logits).0 - f64::from(logits[row[position + 1] as usize]);
            }
            progress.advance(1);
            Ok(())
        };
        model.run(&inputs, each)?;
        work.keep(&unit, &sums.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>())?;
        Ok(sums)
    };
    let sums = groups.par_iter().enumerate().map(one).collect::<Result<Vec<Vec<f64>>>>()?.concat();
    let nll = Estimate::of(&sums.iter().map(|s| s / windows.context as f64).collect::<Vec<_>>());
    let same = |value: f64| Estimate::of(&vec![value; sums.len()]);
    Ok(TextResult {
        sequences: sums.len(),
        context: windows.context,
        nll,
        perplexity: nll.mean.exp(),
        kl: same(0.0),
        top1: same(1.0),
        nll_change: same(0.0),
    })
}

fn parse(bytes: &[u8], rows: usize) -> Option<Vec<f64>> {
    let values = bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")));
    (bytes.len() == 8 * rows).then(|| values.collect())
}
