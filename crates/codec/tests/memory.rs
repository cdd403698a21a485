//! What decoding takes beyond its input and output stays within the stated 16 MiB a thread.

use waterfill_codec::{
    CodedTensor, Dtype, Elements, Format, Kernel, Predictor, TensorPlan, TilePlan, Transform, encode_lossless,
    encode_tensor,
};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const MOST: usize = 16 << 20;

fn peak(work: impl FnOnce()) -> usize {
    let profiler = dhat::Profiler::builder().testing().build();
    work();
    let peak = dhat::HeapStats::get().max_bytes;
    drop(profiler);
    peak
}

/// A tensor of the usual size, and the widest of which a slice of sixteen rows is allowed.
#[test]
fn a_thread_needs_sixteen_mebibytes_at_most() {
    for (rows, cols) in [(1024, 4096), (16, 1 << 18)] {
        let weights: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 31) as f32 - 15.0).collect();
        let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
        plan.sigma_base = 13;
        plan.row_scale = (0..rows).map(|i| i as i8 % 2).collect();
        plan.col_scale = (0..cols).map(|i| i as i8 % 2).collect();
        plan.tiles.iter_mut().enumerate().for_each(|(n, t)| {
            t.format = if n % 5 == 4 { Format::Lossless } else { Format::Int8 };
            t.step = n as i16 % 3;
            t.predictor = if n % 5 == 4 { Predictor::None } else { Predictor::Left };
            t.transform = match n % 5 {
                4 => Transform::default(),
                k => Transform { down: Kernel::COMMON[k], along: Kernel::Dct, side: 16 },
            };
        });
        let lossy = encode_tensor(&plan, &weights).unwrap();
        let bytes: Vec<u8> = weights.iter().flat_map(|w| ((w.to_bits() >> 16) as u16).to_le_bytes()).collect();
        let lossless = encode_lossless(&Elements { dtype: Dtype::Bf16, rows, cols, period: 1 }, &bytes).unwrap();
        for (name, coded) in [("lossy", lossy), ("lossless", lossless)] {
            let mut out = bytes.clone();
            let found = peak(|| {
                let tensor = CodedTensor::parse(&coded).unwrap();
                let mut rest = &mut out[..];
                for n in 0..tensor.slices() {
                    let (slice, after) = rest.split_at_mut(tensor.bytes(tensor.slice_rows(n).len()));
                    tensor.decode_slice(n, slice).unwrap();
                    rest = after;
                }
            });
            println!("{name} {rows}x{cols}: {} KiB", found >> 10);
            assert!(found <= MOST, "{name} {rows}x{cols}: {found} bytes");
        }
    }
}
