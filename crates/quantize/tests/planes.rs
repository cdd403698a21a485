//! Levels of a fixed number of bits, with error feedback.

use ndarray::Array2;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_allocate::PlannedWeight;
use waterfill_checkpoint::packed::PackedTensor;
use waterfill_codec::{CodedTensor, Dtype, Format, Lambda, TensorPlan, TilePlan};
use waterfill_quadratic::{Curvature, Hessian, LossWeights, QuadraticLoss};
use waterfill_quantize::ldlq::{LdlqOptions, encode_ldlq};

const ROWS: usize = 96;
const COLS: usize = 176;
const WIDTHS: [u8; 7] = [2, 3, 4, 5, 6, 7, 8];

/// Roughly Gaussian numbers: sums of twelve uniform ones.
fn weights() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut uniform = || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
    (0..ROWS * COLS).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn hessian() -> Hessian {
    Hessian::from_dense(&Array2::from_shape_fn((COLS, COLS), |(i, j)| 0.9f32.powi(i.abs_diff(j) as i32)))
}

/// A plan of planes that hold nearly three standard deviations.
fn planned(widths: Vec<u8>) -> PlannedWeight {
    let tile = TilePlan { format: Format::Int8, ..TilePlan::default() };
    let mut plan = TensorPlan::uniform(Dtype::F32, ROWS, COLS, tile);
    for (tile, width) in plan.tiles.iter_mut().zip(&widths) {
        tile.step = 4 * (3 - i16::from(*width)) - 2;
    }
    let loss_weights = LossWeights {
        tiles: vec![1.0; plan.tiles.len()],
        rows: vec![1.0; ROWS],
        cols: vec![1.0; COLS],
        lookup: vec![],
    };
    PlannedWeight { plan, loss_weights, lambda: Lambda(0.0), allow_int4: true, sharing: Default::default(), widths }
}

fn options() -> LdlqOptions {
    LdlqOptions {
        trellis: None,
        rounding: 0.3,
        allow_int8: true,
        allow_lossless: false,
        damping: 0.01,
        error_penalty: 0.0,
        sparse: false,
        draft: false,
    }
}

/// Loss of `coded`, and its tiles.
fn loss(coded: &[u8], weights: &[f32], planned: &PlannedWeight, hessian: &Hessian) -> (f64, PackedTensor) {
    let coded = CodedTensor::parse(coded).unwrap();
    let (bytes, _) = coded.decode().unwrap();
    let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let errors = values.zip(weights).map(|(is, was)| is - was).collect();
    let curvature = Curvature { hessian: Some(hessian), gradient_covariance: None };
    let model = QuadraticLoss::new(&planned.loss_weights, 16, curvature);
    (model.of(errors), PackedTensor::of_coded(&coded).unwrap().unwrap())
}

#[test]
fn tiles_are_held_in_the_bits_that_are_planned() {
    let (weights, hessian) = (weights(), hessian());
    let tiles = ROWS.div_ceil(16) * COLS.div_ceil(16);
    let planned = planned((0..tiles).map(|n| WIDTHS[n * 5 % 7]).collect());
    let curvature = Curvature { hessian: Some(&hessian), gradient_covariance: None };
    let coded = encode_ldlq(&planned, &weights, curvature, &options()).unwrap();
    let (_, packed) = loss(&coded, &weights, &planned, &hessian);
    let across = COLS.div_ceil(16);
    let mut exactly = 0;
    for bucket in &packed.buckets {
        let bits = bucket.format.level_bits().unwrap();
        for [row, column] in bucket.places() {
            let width = u32::from(planned.widths[row * across + column]);
            assert!(bits <= width, "tile ({row}, {column}): {bits} bits, planned {width}");
            exactly += usize::from(bits == width);
        }
    }
    assert!(exactly * 10 > tiles * 9, "{exactly} of {tiles} tiles use all bits");
}

/// One bit more leaves a quarter of the loss, about: clipping takes a larger share of it as planes get wider, and four levels cannot be even.
#[test]
fn every_bit_divides_the_loss_and_steps_are_fitted() {
    let (weights, hessian) = (weights(), hessian());
    let tiles = ROWS.div_ceil(16) * COLS.div_ceil(16);
    let curvature = Curvature { hessian: Some(&hessian), gradient_covariance: None };
    let mut before: Option<f64> = None;
    for width in WIDTHS {
        let plan = planned(vec![width; tiles]);
        let fitted = loss(&encode_ldlq(&plan, &weights, curvature, &options()).unwrap(), &weights, &plan, &hessian).0;
        if let Some(before) = before {
            assert!((2.4..5.0).contains(&(before / fitted)), "{width} bits: {before} to {fitted}");
        }
        // Steps that are off by half an octave are found again.
        let mut coarse = planned(vec![width; tiles]);
        coarse.plan.tiles.iter_mut().for_each(|tile| tile.step += 2);
        let coded = encode_ldlq(&coarse, &weights, curvature, &options()).unwrap();
        let again = loss(&coded, &weights, &coarse, &hessian).0;
        assert!((again / fitted - 1.0).abs() < 0.05, "{width} bits: {fitted}, from coarser steps {again}");
        before = Some(fitted);
    }
}
