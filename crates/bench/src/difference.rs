//! Differences between checkpoints: coded bits against the entropy given the base's exponent, and XOR under zstd.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::Dtype;
use waterfill_codec::syntax::difference::{SLICE, decode_difference, difference_entropy, encode_difference};

use waterfill_quantize::find_factors;

use crate::error::BenchError;
use crate::source::Gaussians;

/// Rank of the low-rank change.
const RANK: usize = 16;

/// One kind of change. Bits are a weight.
#[derive(Debug, Clone, Serialize)]
pub struct DifferenceRow {
    /// The change.
    pub change: String,
    /// Share of the weights whose pattern changed.
    pub changed: f64,
    /// Coded, factors of low rank included where they are found.
    pub coded: f64,
    /// Entropy of the ordered difference given the base's exponent.
    pub entropy: f64,
    /// XOR of both files under zstd -19.
    pub xor_zstd19: f64,
    /// Millions of weights coded and decoded in a second on one core.
    pub speed: [f64; 2],
}

/// Changes of a matrix of `side` x `side` bf16 weights, N(0, 0.02).
///
/// # Errors
/// A faulty coder.
pub fn bench_difference(side: usize) -> Result<Vec<DifferenceRow>, BenchError> {
    let mut source = Gaussians::new(1);
    let base: Vec<f32> =
        source.by_ref().take(side * side).map(|g| half::bf16::from_f32((g * 0.02) as f32).to_f32()).collect();
    let mut some = |share: f64, size: &dyn Fn(f32) -> f64| -> Vec<f32> {
        let mut change = |&w: &f32| match source.uniform() < share {
            true => (f64::from(w) + source.next().unwrap_or_default() * size(w)) as f32,
            false => w,
        };
        base.iter().map(&mut change).collect()
    };
    let rows = [
        // A thousandth of a weight is less than half a step of bf16: most of it rounds away.
        ("N(0, 1e-3 |w|) to 2.65 %", some(0.0265, &|w| 1e-3 * f64::from(w.abs()))),
        ("N(0, 1e-2 |w|) to 2.65 %", some(0.0265, &|w| 1e-2 * f64::from(w.abs()))),
        ("N(0, 1e-4) to all", some(1.0, &|_| 1e-4)),
    ];
    let mut rows =
        rows.into_iter().map(|(n, fine_tune)| row(n, &base, &fine_tune, side)).collect::<Result<Vec<_>, _>>()?;
    // A merged LoRA whose products are as large as the change before.
    let mut factor = || source.by_ref().take(RANK * side).map(|g| g as f32).collect::<Vec<f32>>();
    let (left, right) = (factor(), factor());
    let size = 1e-4 / (RANK as f32).sqrt();
    let product = |(line, left): (&[f32], &[f32])| {
        let change = |j: usize| left.iter().zip(right[j * RANK..].iter()).map(|(l, r)| l * r).sum::<f32>() * size;
        line.iter().enumerate().map(|(j, w)| w + change(j)).collect::<Vec<f32>>()
    };
    let merged: Vec<f32> = base.chunks(side).zip(left.chunks(RANK)).flat_map(product).collect();
    rows.push(row("product of rank 16, 1e-4", &base, &merged, side)?);
    Ok(rows)
}

/// Bytes of two checkpoints' XOR under zstd -19, a shard of the second after the other; tensors that the first does not have,
/// or has in another size, as they are.
///
/// # Errors
/// Checkpoints that cannot be read.
pub fn xor_bytes(base: &Path, fine_tune: &Path) -> Result<u64, BenchError> {
    let (base, fine_tune) = (Checkpoint::open(base)?, Checkpoint::open(fine_tune)?);
    let mut all = Vec::new();
    for info in fine_tune.tensors() {
        let mut own = fine_tune.read_raw(&info.name)?;
        let before = if base.contains(&info.name) { base.read_raw(&info.name)? } else { vec![] };
        if before.len() == own.len() {
            own.iter_mut().zip(&before).for_each(|(a, b)| *a ^= b);
        }
        all.extend(own);
    }
    Ok(zstd::bulk::compress(&all, 19).map_err(|_| BenchError::Round)?.len() as u64)
}

fn row(change: &str, base: &[f32], fine_tune: &[f32], side: usize) -> Result<DifferenceRow, BenchError> {
    let bytes = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|&v| (Dtype::Bf16.pattern_of(v) as u16).to_le_bytes()).collect()
    };
    let rounded = |values: &[f32]| -> Vec<f32> {
        values.iter().map(|&v| Dtype::Bf16.value_of(Dtype::Bf16.pattern_of(v))).collect()
    };
    let count = base.len() as f64;
    let values = [rounded(base), rounded(fine_tune)];
    let (base, fine_tune) = (bytes(base), bytes(fine_tune));
    let entropy = difference_entropy(Dtype::Bf16, &base, &fine_tune)?;
    let xor: Vec<u8> = base.iter().zip(&fine_tune).map(|(a, b)| a ^ b).collect();
    let start = Instant::now();
    let factors = find_factors([side, side], Dtype::Bf16, &values[0], &values[1]).pop();
    let base = factors.as_ref().map_or(base.clone(), |f| f.add_to(Dtype::Bf16, &base));
    let streams = encode_difference(Dtype::Bf16, &base, &fine_tune)?;
    let coding = start.elapsed().as_secs_f64();
    let mut found = vec![0; base.len()];
    let start = Instant::now();
    let parts = found.chunks_mut(SLICE * 2).zip(base.chunks(SLICE * 2));
    for ((out, base), stream) in parts.zip(&streams) {
        decode_difference(Dtype::Bf16, base, stream, out)?;
    }
    let decoding = start.elapsed().as_secs_f64();
    if found != fine_tune {
        return Err(BenchError::Round);
    }
    let packed = zstd::bulk::compress(&xor, 19).map_err(|_| BenchError::Round)?;
    let differ = xor.chunks_exact(2).filter(|x| **x != [0, 0]).count();
    let bits = |bytes: usize| bytes as f64 * 8.0 / count;
    Ok(DifferenceRow {
        change: change.into(),
        changed: differ as f64 / count,
        coded: bits(factors.map_or(0, |f| f.len()) + streams.iter().map(Vec::len).sum::<usize>()),
        entropy: entropy / count,
        xor_zstd19: bits(packed.len()),
        speed: [count / coding / 1e6, count / decoding / 1e6],
    })
}
