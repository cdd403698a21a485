//! Codes a tile of Gaussian weights in every number format and prints size and error:
//! `cargo run --release -p waterfill-codec --example code_tile`

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_codec::{CodedTensor, Dtype, Format, TILE, TensorPlan, TilePlan, encode_tensor};

fn main() -> waterfill_codec::Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut uniform = || f64::from(random.next_u32()) / f64::from(u32::MAX);
    // A sum of twelve uniform numbers is close to a standard Gaussian (Irwin 1927).
    let mut weight = || (((0..12).map(|_| uniform()).sum::<f64>() - 6.0) * 0.02) as f32;
    let exact = |w: f32| Dtype::Bf16.value_of(Dtype::Bf16.pattern_of(w));
    let weights: Vec<f32> = (0..TILE * TILE).map(|_| exact(weight())).collect();
    println!("{:10} {:>12} {:>16}", "format", "bits/weight", "rms error/sigma");
    for format in Format::ALL {
        let tile = TilePlan { format, ..TilePlan::default() };
        // A step of 2^(-61/8) = 0.005 and a sigma of 2^(8/4) = 4 steps.
        let uniform = TensorPlan::uniform(Dtype::Bf16, TILE, TILE, tile);
        let plan = TensorPlan { step_base: -61, sigma_base: 8, ..uniform };
        let bytes = encode_tensor(&plan, &weights)?;
        let (decoded, _) = CodedTensor::parse(&bytes)?.decode()?;
        let value = |b: &[u8]| Dtype::Bf16.value_of(u16::from_le_bytes([b[0], b[1]]).into());
        let errors = decoded.chunks_exact(2).zip(&weights).map(|(b, w)| f64::from(value(b) - w).powi(2));
        let rms = (errors.sum::<f64>() / weights.len() as f64).sqrt();
        // Header, side information and states are those of a whole tensor: they are 60 bytes and more.
        let rate = plan.slice_rate(0, &weights)?.0 / weights.len() as f64;
        println!("{:10} {rate:12.2} {:16.4}", format.name(), rms / 0.02);
    }
    Ok(())
}
