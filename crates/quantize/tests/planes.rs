//! Levels of a fixed number of bits, with error feedback.

use ndarray::Array2;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_allocate::{PlannedWeight, trellis_error};
use waterfill_checkpoint::packed::PackedTensor;
use waterfill_codec::{BitShiftTrellis, CodedTensor, Dtype, Format, Lambda, TensorPlan, TilePlan};
use waterfill_quadratic::{Curvature, GradientCovariance, Hessian, LossWeights, QuadraticLoss};
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
        bit_shift: None,
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

/// A plan of codes whose levels are spread as weights are.
fn planned_codes(widths: Vec<u8>) -> PlannedWeight {
    let mut planned = planned(widths);
    planned.plan.tiles.iter_mut().for_each(|tile| tile.step = -25);
    planned
}

fn trellis() -> LdlqOptions {
    LdlqOptions { bit_shift: BitShiftTrellis::new(12), ..options() }
}

#[test]
fn codes_of_a_trellis_have_the_bits_that_are_planned() {
    let (weights, hessian) = (weights(), hessian());
    let tiles = ROWS.div_ceil(16) * COLS.div_ceil(16);
    let planned = planned_codes((0..tiles).map(|n| 1 + (n * 5 % 8) as u8).collect());
    let curvature = Curvature { hessian: Some(&hessian), gradient_covariance: None };
    let coded = encode_ldlq(&planned, &weights, curvature, &trellis()).unwrap();
    let (_, packed) = loss(&coded, &weights, &planned, &hessian);
    assert_eq!(packed.buckets.len(), 8);
    let across = COLS.div_ceil(16);
    for bucket in &packed.buckets {
        for [row, column] in bucket.places() {
            assert_eq!(bucket.format.code_bits(), Some(planned.widths[row * across + column].into()));
        }
    }
    // Nearly all of the file is codes.
    let codes: usize = planned.widths.iter().map(|&bits| 32 * usize::from(bits)).sum();
    assert!(coded.len() < codes + codes / 20 + 100, "{} bytes, {codes} of codes", coded.len());
}

/// Squared error of what `coded` decodes to, over the energy of the weights.
fn relative_error(coded: &[u8], weights: &[f32]) -> f64 {
    let (bytes, _) = CodedTensor::parse(coded).unwrap().decode().unwrap();
    let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let error: f64 = values.zip(weights).map(|(is, was)| f64::from(is - was).powi(2)).sum();
    error / weights.iter().map(|w| f64::from(w * w)).sum::<f64>()
}

/// What allocation is told that codes lose, they lose; and that is far less than uniform levels do.
#[test]
fn codes_lose_what_allocation_expects() {
    let weights = weights();
    let tiles = ROWS.div_ceil(16) * COLS.div_ceil(16);
    for (state_bits, bits) in (1..=8).map(|bits| (12, bits)).chain([10, 14].into_iter().flat_map(|l| [(l, 2), (l, 4)]))
    {
        let states = BitShiftTrellis::new(state_bits).unwrap();
        let trellis = || LdlqOptions { bit_shift: Some(states), ..options() };
        let of = |plan: PlannedWeight, options: &LdlqOptions| {
            relative_error(&encode_ldlq(&plan, &weights, Curvature::default(), options).unwrap(), &weights)
        };
        let (found, expected) = (of(planned_codes(vec![bits; tiles]), &trellis()), trellis_error(states, bits));
        // Columns of 96 rows start from one state, from which few levels are reached before all its bits are codes.
        let most = if bits == 1 { 1.5 } else { 1.3 };
        assert!((0.9..most).contains(&(found / expected)), "{bits} bits: {found}, expected {expected}");
        if bits > 1 {
            let uniform = of(planned(vec![bits; tiles]), &options());
            // At eight bits levels are hardly finer than uniform ones.
            let most = if bits == 8 { 1.0 } else { 0.8 };
            assert!(found < most * uniform, "{bits} bits: {found}, uniform levels {uniform}");
        }
    }
}

/// Rows make up for each other's errors although a path is settled for many rows at a time.
#[test]
fn rows_feed_errors_back_through_a_trellis() {
    let (weights, hessian) = (weights(), hessian());
    let rows = Array2::from_shape_fn((ROWS, ROWS), |(i, j)| 0.95f32.powi(i.abs_diff(j) as i32 / 8));
    let covariance = GradientCovariance::from_dense(&rows);
    let plan = planned_codes(vec![3; ROWS.div_ceil(16) * COLS.div_ceil(16)]);
    let both = Curvature { hessian: Some(&hessian), gradient_covariance: Some(&covariance) };
    let columns = Curvature { gradient_covariance: None, ..both };
    let model = QuadraticLoss::new(&plan.loss_weights, 16, both);
    let of = |curvature| {
        let coded = encode_ldlq(&plan, &weights, curvature, &trellis()).unwrap();
        let (bytes, _) = CodedTensor::parse(&coded).unwrap().decode().unwrap();
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        model.of(values.zip(&weights).map(|(is, was)| is - was).collect())
    };
    let (fed, alone) = (of(both), of(columns));
    assert!(fed < 0.9 * alone, "{fed} with feedback over rows, {alone} without");
}
