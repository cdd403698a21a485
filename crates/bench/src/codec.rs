//! Speed and size of the codec, against zstd on the same bytes.

use std::collections::BTreeMap;

use serde::Serialize;
use waterfill_codec::{CodecError, CodedTensor, Dtype, Elements, encode_lossless};

use crate::timing::{AT_ONCE, Timing, decode_with, pool, time_together};
use crate::{levels, source};

/// Figures of the codec. Rates are medians.
#[derive(Debug, Clone, Serialize)]
pub struct CodecBench {
    /// A 4096x4096 matrix N(0, 0.02) in bf16, everything counted.
    pub lossless_gaussian_bits_per_weight: f64,
    /// Rate of decoding over that of zstd -3.
    pub lossless_decode_vs_zstd3: f64,
    /// Rate of encoding over that of zstd -3.
    pub lossless_encode_vs_zstd3: f64,
    /// Bytes of bf16 a second.
    pub lossless_decode_bytes_per_second: f64,
    /// Bytes of bf16 a second.
    pub lossless_encode_bytes_per_second: f64,
    /// Integer tiles of about four bits with row and column scales, to bf16.
    pub level_decode_weights_per_second: f64,
    /// The same weights with every tile transformed.
    pub transform_decode_weights_per_second: f64,
    /// All predictors, transforms and rate-distortion optimised quantization.
    pub search_encode_weights_per_second: f64,
    /// Decoding with two threads over decoding with one: the smaller of lossless and levels.
    pub two_thread_speedup: f64,
    /// Time of decoding one slice of the lossless matrix over its share of the whole.
    pub random_access_overhead: f64,
    /// Bits per weight of zstd -3 on the same bytes.
    pub zstd3_bits_per_weight: f64,
    /// Slowest and fastest over the median, for every timed figure.
    pub spread: BTreeMap<&'static str, [f64; 2]>,
}

/// Measures everything; `side` is that of the lossless matrix, 4096 for the published figures.
///
/// # Errors
/// None unless the codec fails on what it wrote itself.
pub fn bench_codec(side: usize, repeats: usize) -> Result<CodecBench, CodecError> {
    let mut spread = BTreeMap::new();
    let mut note = |name, timing: &Timing| {
        spread.insert(name, [timing.slowest / timing.median, timing.fastest / timing.median]);
    };
    let plain = source::gaussian_bf16(side * side);
    let elements = Elements { dtype: Dtype::Bf16, rows: side, cols: side, period: 1 };
    let bytes = encode_lossless(&elements, &plain)?;
    let coded = CodedTensor::parse(&bytes)?;
    let mut out = vec![0; plain.len()];
    let (one, two) = (pool(1), pool(2));
    decode_with(&one, &coded, &mut out);
    if out != plain {
        return Err(CodecError::Digest);
    }
    let mut zstd = zstd::bulk::compress(&plain, 3).expect("memory");
    let zstd3_bits_per_weight = zstd.len() as f64 * 8.0 / (side * side) as f64;
    let (packed, mut again) = (zstd.clone(), out.clone());
    let mut both = out.clone();
    let timings = time_together(
        repeats,
        &mut [
            &mut || decode_with(&one, &coded, &mut out),
            &mut || drop(zstd::bulk::decompress_to_buffer(&packed, &mut again)),
            &mut || drop(encode_lossless(&elements, &plain)),
            &mut || drop(zstd::bulk::compress_to_buffer(&plain, &mut zstd, 3)),
            &mut || decode_with(&two, &coded, &mut both),
        ],
    );
    let [decode, zstd_decode, encode, zstd_encode, decode_two] = &timings[..] else { unreachable!("five timings") };
    for (name, timing) in [
        ("lossless_decode", decode),
        ("zstd3_decode", zstd_decode),
        ("lossless_encode", encode),
        ("zstd3_encode", zstd_encode),
        ("lossless_decode_two_threads", decode_two),
    ] {
        note(name, timing);
    }
    let decode_once = decode.median / AT_ONCE as f64;
    // A slice in the middle; its share of the whole decoded alone.
    let middle = coded.slices() / 2;
    let mut slice = vec![0; coded.bytes(coded.slice_rows(middle).len())];
    let share = slice.len() as f64 / plain.len() as f64;
    let alone = &time_together(repeats * 4, &mut [&mut || drop(coded.decode_slice(middle, &mut slice))])[0];
    note("one_slice", alone);

    let levels = levels::measure(repeats, &one, &two)?;
    levels.timings.iter().for_each(|(name, timing)| note(name, timing));
    Ok(CodecBench {
        lossless_gaussian_bits_per_weight: bytes.len() as f64 * 8.0 / (side * side) as f64,
        lossless_decode_vs_zstd3: zstd_decode.median / decode_once,
        lossless_encode_vs_zstd3: zstd_encode.median / encode.median,
        lossless_decode_bytes_per_second: plain.len() as f64 / decode_once,
        lossless_encode_bytes_per_second: plain.len() as f64 / encode.median,
        level_decode_weights_per_second: levels.level_rate,
        transform_decode_weights_per_second: levels.transform_rate,
        search_encode_weights_per_second: levels.search_rate,
        two_thread_speedup: (decode.median / decode_two.median).min(levels.two_thread_speedup),
        random_access_overhead: alone.median / (decode_once * share),
        zstd3_bits_per_weight,
        spread,
    })
}
