//! Whole coded tensors: round trips over shapes and formats, an independent decoder of the
//! arithmetic, and damage.

use proptest::prelude::*;
use waterfill_codec::{CodecError, CodedTensor, Dtype, Format, TensorPlan, TilePlan, encode_tensor, fp8};

/// Deterministic weights, roughly Gaussian with spread 0.02, exact in `dtype`.
fn weights(dtype: Dtype, count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count)
        .map(|_| {
            let sum: f32 = (0..12).map(|_| uniform()).sum();
            dtype.value_of(dtype.pattern_of((sum - 6.0) * 0.02))
        })
        .collect()
}

/// A plan with every format and uneven steps and scales.
fn mixed_plan(dtype: Dtype, rows: usize, cols: usize, seed: u64) -> TensorPlan {
    let vector = |n: usize, on: bool| (0..if on { n } else { 0 }).map(|i| ((i * 7 + 3) % 5) as i8 - 2).collect();
    let tiles = rows.div_ceil(16) * cols.div_ceil(16);
    TensorPlan {
        dtype,
        rows,
        cols,
        step_base: -64,
        spread_base: 10,
        row_scale: vector(rows, seed & 1 == 1),
        col_scale: vector(cols, seed & 2 == 2),
        row_spread: vector(rows, seed & 4 == 4),
        col_spread: vector(cols, seed & 8 == 8),
        tiles: (0..tiles)
            .map(|i| {
                let format = Format::from_code((i as u64 * 11 + seed) as u8 % 4).unwrap();
                // Lossless tiles carry on their left neighbour's step; FP8 and lossless have no spread.
                let spread = if format.level_range().is_some() { i as i16 % 3 - 1 } else { 0 };
                TilePlan { format, step: (i % 9) as i16 - 4, spread }
            })
            .collect(),
    }
}

/// What the specification says a weight becomes, in f64.
fn expected(plan: &TensorPlan, row: usize, col: usize, w: f32) -> f64 {
    let tile = plan.tile_at(row, col);
    let entry = |v: &Vec<i8>, i: usize| v.get(i).map_or(0.0, |&x| f64::from(x));
    let units = f64::from(tile.step) + entry(&plan.row_scale, row) + entry(&plan.col_scale, col);
    let step = ((f64::from(plan.step_base) + 2.0 * units) / 8.0).exp2();
    match tile.format {
        Format::Int4 => (f64::from(w) / step).round().clamp(-8.0, 7.0) * step,
        Format::Int8 => (f64::from(w) / step).round().clamp(-127.0, 127.0) * step,
        Format::Fp8 => f64::from(fp8::decode(fp8::encode((f64::from(w) * 16.0 / step) as f32))) * step / 16.0,
        Format::Lossless => f64::from(w),
    }
}

fn values(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    bytes
        .chunks_exact(dtype.bytes())
        .map(|b| dtype.value_of(b.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x))))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn decoding_gives_what_the_plan_says(rows in 1usize..90, cols in 1usize..70, seed in 0u64..16, kind in 0usize..3) {
        let dtype = [Dtype::Bf16, Dtype::F16, Dtype::F32][kind];
        let plan = mixed_plan(dtype, rows, cols, seed);
        let weights = weights(dtype, rows * cols, seed);
        let bytes = encode_tensor(&plan, &weights).unwrap();
        let (decoded, tiles) = CodedTensor::parse(&bytes).unwrap().decode().unwrap();
        let decoded = values(&decoded, dtype);
        prop_assert_eq!(decoded.len(), rows * cols);
        // Relative precision of the type, and of the 16-bit mantissas.
        let epsilon = match dtype { Dtype::Bf16 => 1.0 / 256.0, Dtype::F16 => 1.0 / 1024.0, Dtype::F32 => 2e-5 };
        for row in 0..rows {
            for col in 0..cols {
                let (got, want) = (f64::from(decoded[row * cols + col]), expected(&plan, row, col, weights[row * cols + col]));
                let tile = plan.tile_at(row, col);
                prop_assert_eq!(tiles[row / 16 * cols.div_ceil(16) + col / 16].format, tile.format);
                // A weight on a decision boundary may take either neighbour: the error then equals.
                let w = f64::from(weights[row * cols + col]);
                let same = (got - want).abs() <= want.abs() * epsilon + 1e-6;
                let tie = ((got - w).abs() - (want - w).abs()).abs() <= want.abs() * epsilon + 1e-6;
                prop_assert!(same || tie, "row {row} col {col} {:?}: {got} instead of {want}", tile);
                if tile.format == Format::Lossless {
                    prop_assert_eq!(got, w);
                }
            }
        }
    }
}

/// 300 rows of 512 columns: two slices, eight lanes.
fn large() -> (TensorPlan, Vec<f32>, Vec<u8>) {
    let plan = mixed_plan(Dtype::Bf16, 300, 512, 15);
    let weights = weights(Dtype::Bf16, 300 * 512, 1);
    let bytes = encode_tensor(&plan, &weights).unwrap();
    (plan, weights, bytes)
}

#[test]
fn a_slice_decodes_alone() {
    let (_, _, bytes) = large();
    let coded = CodedTensor::parse(&bytes).unwrap();
    assert!(coded.slices() > 1);
    let (all, _) = coded.decode().unwrap();
    let n = coded.slices() - 1;
    let (patterns, _) = coded.decode_slice(n).unwrap();
    let tail: Vec<u8> = patterns.iter().flat_map(|&p| (p as u16).to_le_bytes()).collect();
    assert_eq!(tail, all[coded.slice_rows(n).start * 512 * 2..]);
}

#[test]
fn the_counted_rate_is_the_written_size() {
    let (plan, weights, bytes) = large();
    let counted: f64 = (0..plan.slices()).map(|n| plan.slice_rate(n, &weights).unwrap().0).sum::<f64>()
        + plan.side_rate(&weights).unwrap().0;
    let written = bytes.len() as f64 * 8.0;
    assert!((counted / written - 1.0).abs() < 0.001, "{counted} bits counted, {written} written");
}

#[test]
fn every_flipped_bit_is_noticed() {
    let plan = mixed_plan(Dtype::Bf16, 40, 33, 15);
    let bytes = encode_tensor(&plan, &weights(Dtype::Bf16, 40 * 33, 2)).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let result = CodedTensor::parse(&damaged).and_then(|c| c.decode());
        assert!(result.is_err(), "flip of bit {bit} of {} went unnoticed", bytes.len() * 8);
    }
}

#[test]
fn every_truncation_is_an_error() {
    let plan = mixed_plan(Dtype::F16, 20, 40, 3);
    let bytes = encode_tensor(&plan, &weights(Dtype::F16, 800, 2)).unwrap();
    for length in 0..bytes.len() {
        assert!(CodedTensor::parse(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let plan = mixed_plan(Dtype::F32, 4, 5, 0);
    let mut weights = weights(Dtype::F32, 20, 1);
    weights[13] = f32::NAN;
    let error = encode_tensor(&plan, &weights).unwrap_err();
    assert_eq!(error, CodecError::NotFinite { row: 2, col: 3, value: "NaN".into() });
}

/// A header that is consistent in itself but asks for more than a decoder may be made to hold.
#[test]
fn sizes_beyond_the_limits_are_refused_before_allocation() {
    let plan = mixed_plan(Dtype::Bf16, 16, 16, 0);
    let bytes = encode_tensor(&plan, &weights(Dtype::Bf16, 256, 2)).unwrap();
    for (at, value, field) in [(8, 1u32 << 25, "rows"), (12, 0, "cols"), (12, 1 << 23, "weights of a slice")] {
        let mut large = bytes.clone();
        large[at..at + 4].copy_from_slice(&value.to_le_bytes());
        match CodedTensor::parse(&large).err() {
            Some(CodecError::Field { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field} = {value}: {other:?}"),
        }
    }
}
