//! Speed of whole coded tensors of 1024x1024 on one thread, in weights a second.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_codec::{CodedTensor, Dtype, Format, TensorPlan, TilePlan, encode_tensor};

const SIDE: usize = 1024;

/// Roughly Gaussian weights with a sigma of 0.02: sums of twelve uniform numbers.
fn weights() -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut uniform = || (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
    let exact = |w: f32| Dtype::Bf16.value_of(Dtype::Bf16.pattern_of(w));
    (0..SIDE * SIDE).map(|_| exact(((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02)).collect()
}

/// Every tile in one format; the step is a quarter of the sigma, about four bits.
fn plan(format: Format) -> TensorPlan {
    let tile = TilePlan { format, ..TilePlan::default() };
    TensorPlan { step_base: -61, sigma_base: 8, ..TensorPlan::uniform(Dtype::Bf16, SIDE, SIDE, tile) }
}

fn tensors(criterion: &mut Criterion) {
    let weights = weights();
    for format in Format::ALL {
        let plan = plan(format);
        let bytes = encode_tensor(&plan, &weights).expect("a plan of the right shape");
        let mut group = criterion.benchmark_group(format.name());
        group.throughput(Throughput::Elements(weights.len() as u64)).sample_size(10);
        group.bench_function("encode", |b| b.iter(|| encode_tensor(&plan, &weights)));
        group.bench_function("decode", |b| b.iter(|| CodedTensor::parse(&bytes).and_then(|c| c.decode())));
        group.finish();
        let rate = bytes.len() as f64 * 8.0 / weights.len() as f64;
        println!("{}: {rate:.3} bits per weight", format.name());
    }
}

criterion_group!(benches, tensors);
criterion_main!(benches);
