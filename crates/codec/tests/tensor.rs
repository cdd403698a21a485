//! Whole coded tensors: round trips over shapes and formats, an independent decoder of the
//! arithmetic, and damage.

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_codec::{
    CodecError, CodedTensor, Dtype, Format, Kernel, Palette, Parameters, Predictor, TensorPlan, TileMode, TilePlan,
    Transform, encode_tensor,
};

/// Deterministic weights, roughly Gaussian with sigma 0.02, exact in `dtype`.
fn weights(dtype: Dtype, count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
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
        step_base: -64,
        sigma_base: 10,
        row_scale: vector(rows, seed & 1 == 1),
        col_scale: vector(cols, seed & 2 == 2),
        row_sigma: vector(rows, seed & 4 == 4),
        col_sigma: vector(cols, seed & 8 == 8),
        tiles: (0..tiles)
            .map(|i| TilePlan {
                format: FORMATS[(i * 11 + seed as usize) % FORMATS.len()],
                step: (i % 9) as i16 - 4,
                sigma: i as i16 % 3 - 1,
                ..TilePlan::default()
            })
            .collect(),
        ..TensorPlan::uniform(dtype, rows, cols, TilePlan::default())
    }
}

const FORMATS: [Format; 8] = Format::ALL;

/// The same with every tool, on INT8 planes with a fine step; what decodes is then near the weights.
fn tooled_plan(dtype: Dtype, rows: usize, cols: usize, seed: u64) -> TensorPlan {
    let mut plan = mixed_plan(dtype, rows, cols, seed);
    plan.parameters = Parameters {
        linear: [30, 20, 5],
        centroids: [1, 2, 0],
        neighbours: (seed & 1 == 1).then_some([-4, -2, 0, 0, 1, 2, 3, 4]),
        dictionary: vec![(0..cols).map(|j| (j % 17) as i8 - 8).collect(); 2],
        dictionary_step: 3,
        filter: None,
        ..Parameters::default()
    };
    plan.parameters.bands.iter_mut().enumerate().for_each(|(i, b)| *b = (i % 6) as i8 - 3);
    let across = plan.tiles_across();
    for (i, tile) in plan.tiles.iter_mut().enumerate() {
        let mut random = ChaCha8Rng::seed_from_u64((i as u64) << 8 | seed);
        let mut draw = |n: u64| random.next_u64() % n;
        tile.format = Format::Int8;
        tile.step = -8;
        tile.predictor = match draw(10) {
            0 => Predictor::None,
            1 => Predictor::Left,
            2 => Predictor::Top,
            3 => Predictor::RowMean,
            4 => Predictor::ColMean,
            5 => Predictor::Linear,
            6 if i >= across && !(i / across).is_multiple_of(4) => Predictor::Row(draw(16) as u16 + 1),
            6 | 7 => Predictor::Dictionary(draw(2) as u8),
            8 => Predictor::Constant(draw(9) as i16 - 4),
            _ => Predictor::RankOne([draw(20) as i8 - 10; 16], [draw(20) as i8 - 10; 16]),
        };
        tile.coarse = draw(5) as u8;
        let kernel = |n: u64| Kernel::from_code(n as u8).unwrap();
        let (down, along) = (kernel(draw(4)), kernel(draw(4)));
        let full = plan.rows >= (i / across + 1) * 16 && plan.cols >= (i % across + 1) * 16;
        if full {
            let identity = down == Kernel::Identity && along == Kernel::Identity;
            tile.transform = Transform { down, along, side: if identity { 16 } else { 4 << draw(3) } };
            tile.mode = if draw(6) == 0 { TileMode::BitPlanes } else { TileMode::Coded };
        }
    }
    plan
}

/// What the specification says a weight becomes, in f64.
fn expected(plan: &TensorPlan, row: usize, col: usize, w: f32) -> f64 {
    let tile = plan.tile_at(row, col);
    let entry = |v: &Vec<i8>, i: usize| v.get(i).map_or(0.0, |&x| f64::from(x));
    let units = f64::from(tile.step) + entry(&plan.row_scale, row) + entry(&plan.col_scale, col);
    let step = ((f64::from(plan.step_base) + 2.0 * units) / 8.0).exp2();
    match (tile.format.level_range(), tile.format.minifloat()) {
        (Some((low, high)), _) => (f64::from(w) / step).round().clamp(low.into(), high.into()) * step,
        (_, Some(float)) => {
            let step = step * (-f64::from(float.scale_shift()) / 8.0).exp2();
            f64::from(float.decode(float.encode((f64::from(w) / step) as f32))) * step
        }
        _ => f64::from(w),
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
    fn decoding_gives_what_the_plan_says(rows in 1usize..90, cols in 1usize..70, seed in 0u64..16, dtype in 0usize..3) {
        let dtype = [Dtype::Bf16, Dtype::F16, Dtype::F32][dtype];
        let plan = mixed_plan(dtype, rows, cols, seed);
        let weights = weights(dtype, rows * cols, seed);
        let bytes = encode_tensor(&plan, &weights).unwrap();
        let (decoded, tiles) = CodedTensor::parse(&bytes).unwrap().decode().unwrap();
        let decoded = values(&decoded, dtype);
        prop_assert_eq!(decoded.len(), rows * cols);
        // Relative precision of the type, and of the 16-bit mantissas.
        let epsilon = match dtype { Dtype::Bf16 => 1.0 / 256.0, Dtype::F16 => 1.0 / 1024.0, _ => 2e-5 };
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// With steps much finer than the weights every tool must come close to them, and what one side
    /// predicts the other must too: `decode` compares with the encoder's digest.
    #[test]
    fn every_tool_comes_close_to_the_weights(rows in 1usize..140, cols in 1usize..70, seed in 0u64..16) {
        let plan = tooled_plan(Dtype::F32, rows, cols, seed);
        let weights = weights(Dtype::F32, rows * cols, seed);
        let bytes = encode_tensor(&plan, &weights).unwrap();
        let (decoded, tiles) = CodedTensor::parse(&bytes).unwrap().decode().unwrap();
        prop_assert_eq!(&tiles, &plan.tiles);
        for (i, (got, want)) in values(&decoded, Dtype::F32).into_iter().zip(&weights).enumerate() {
            let (row, col) = (i / cols, i % cols);
            let tile = plan.tile_at(row, col);
            let step = f64::from(plan.scale_index(tile, row, col)) / 8.0;
            // A transform spreads errors of half a quantiser step over 256 weights.
            let limit = step.exp2() * (0.6 + (f64::from(tile.coarse) / 4.0).exp2() * if tile.transform.is_identity() { 0.7 } else { 4.0 });
            let clipped = step.exp2() * 127.0 < f64::from(want.abs());
            prop_assert!(clipped || f64::from((got - want).abs()) <= limit, "row {row} col {col} {tile:?}: {got} for {want}");
        }
    }

    #[test]
    fn tiles_of_other_sides_are_read_back(rows in 1usize..140, cols in 1usize..140, side in 0usize..4) {
        let side = [8, 16, 32, 64][side];
        let mut plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
        plan.tile = side;
        plan.step_base = -64;
        plan.tiles = (0..rows.div_ceil(side) * cols.div_ceil(side))
            .map(|i| TilePlan {
                step: i as i16 % 5,
                predictor: if i % 2 == 0 { Predictor::Left } else { Predictor::None },
                format: if i % 3 == 0 { Format::Lossless } else { Format::Int8 },
                ..TilePlan::default()
            })
            .map(|t| if t.format == Format::Lossless { TilePlan { format: t.format, ..TilePlan::default() } } else { t })
            .collect();
        let bytes = encode_tensor(&plan, &weights(Dtype::Bf16, rows * cols, 3)).unwrap();
        CodedTensor::parse(&bytes).unwrap().decode().unwrap();
    }
}

#[test]
fn skipped_constant_and_palette_tiles_hold_what_they_say() {
    let modes = [
        (TileMode::Skip, Predictor::None),
        (TileMode::Skip, Predictor::Constant(5)),
        (TileMode::Palette(Palette { len: 3, values: [-2, 0, 9, 0, 0, 0, 0, 0] }), Predictor::None),
        (TileMode::Skip, Predictor::Left),
    ];
    let mut plan = TensorPlan::uniform(Dtype::F32, 16, 64, TilePlan::default());
    plan.tiles.iter_mut().zip(modes).for_each(|(t, (mode, predictor))| (t.mode, t.predictor) = (mode, predictor));
    let weights: Vec<f32> = (0..16 * 64).map(|i| [0.2, 8.6, -1.4, 100.0][i % 4]).collect();
    let bytes = encode_tensor(&plan, &weights).unwrap();
    let (decoded, _) = CodedTensor::parse(&bytes).unwrap().decode().unwrap();
    let line = &values(&decoded, Dtype::F32)[..64];
    assert!(line[..16].iter().all(|&v| v == 0.0) && line[16..32].iter().all(|&v| v == 5.0));
    assert_eq!(line[32..36], [0.0, 9.0, -2.0, 9.0]);
    assert!(line[48..].iter().all(|&v| v == 9.0));
    assert!(bytes.len() < 240, "{} bytes", bytes.len());
}

#[test]
fn equal_tiles_share_headers() {
    let tile =
        |i: usize| TilePlan { step: if i / 64 % 8 < 4 { 3 } else { -2 }, mode: TileMode::Skip, ..TilePlan::default() };
    let mut plan = TensorPlan::uniform(Dtype::Bf16, 1024, 1024, TilePlan::default());
    plan.tiles = (0..4096).map(tile).collect();
    let bytes = encode_tensor(&plan, &vec![0.0; 1 << 20]).unwrap();
    let coded = CodedTensor::parse(&bytes).unwrap();
    assert!(coded.plan().parameters.merge);
    assert_eq!(coded.decode().unwrap().1, plan.tiles);
    assert!(bytes.len() < 1200, "{} bytes for 4096 tiles", bytes.len());
}

#[test]
fn empty_tensors_are_read_back() {
    for (rows, cols) in [(0, 5), (5, 0), (0, 0)] {
        let plan = TensorPlan::uniform(Dtype::Bf16, rows, cols, TilePlan::default());
        let bytes = encode_tensor(&plan, &[]).unwrap();
        assert_eq!(CodedTensor::parse(&bytes).unwrap().decode().unwrap(), (vec![], vec![]));
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
    let mut tail = vec![0; coded.bytes(coded.slice_rows(n).len())];
    coded.decode_slice(n, &mut tail).unwrap();
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
    let mut plan = mixed_plan(Dtype::Bf16, 40, 33, 15);
    plan.tiles[4..].copy_from_slice(&tooled_plan(Dtype::Bf16, 40, 33, 15).tiles[4..]);
    plan.parameters = tooled_plan(Dtype::Bf16, 40, 33, 15).parameters;
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
    for (at, value, field) in [(8, 1u32 << 25, "rows"), (12, 1 << 23, "weights of a slice")] {
        let mut large = bytes.clone();
        large[at..at + 4].copy_from_slice(&value.to_le_bytes());
        match CodedTensor::parse(&large).err() {
            Some(CodecError::Field { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field} = {value}: {other:?}"),
        }
    }
}

#[test]
fn tools_of_later_versions_are_named() {
    let coded = encode_tensor(&TensorPlan::uniform(Dtype::Bf16, 4, 4, TilePlan::default()), &[0.5; 16]).unwrap();
    let mut header = waterfill_codec::syntax::header::Header::parse(&coded).unwrap();
    let start = waterfill_codec::syntax::header::Header::bytes(1);
    for (bit, name) in [(18, "rotation"), (21, "base"), (30, "unknown")] {
        header.tools.0 |= 1 << bit;
        let bytes = [&header.write(&coded[start..start + header.side_bytes]), &coded[start..]].concat();
        let message = CodedTensor::parse(&bytes).err().unwrap().to_string();
        assert!(message.contains(name), "{message}");
        header.tools.0 &= !(1 << bit);
    }
}
