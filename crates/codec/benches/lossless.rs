//! Speed of coding a Gaussian bf16 matrix without loss, on one thread, in bytes a second.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_codec::{CodedTensor, Dtype, Elements, encode_lossless};

const SIDE: usize = 2048;

/// Roughly Gaussian patterns with a sigma of 0.02: sums of twelve uniform numbers.
fn bytes() -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut uniform = || (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
    let mut weight = || ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02;
    (0..SIDE * SIDE).flat_map(|_| (Dtype::Bf16.pattern_of(weight()) as u16).to_le_bytes()).collect()
}

fn lossless(criterion: &mut Criterion) {
    let bytes = bytes();
    let elements = Elements { dtype: Dtype::Bf16, rows: SIDE, cols: SIDE, period: 1 };
    let coded = encode_lossless(&elements, &bytes).expect("a shape that fits");
    let mut out = vec![0; bytes.len()];
    let mut group = criterion.benchmark_group("bf16");
    group.throughput(Throughput::Bytes(bytes.len() as u64)).sample_size(10);
    group.bench_function("encode", |b| b.iter(|| encode_lossless(&elements, &bytes)));
    group.bench_function("decode slices", |b| {
        b.iter(|| {
            let coded = CodedTensor::parse(&coded).expect("what was encoded");
            for n in 0..coded.slices() {
                let rows = coded.slice_rows(n);
                let (start, end) = (coded.bytes(rows.start), coded.bytes(rows.end));
                coded.decode_slice(n, &mut out[start..end]).expect("what was encoded");
            }
        });
    });
    group.finish();
}

criterion_group!(benches, lossless);
criterion_main!(benches);
