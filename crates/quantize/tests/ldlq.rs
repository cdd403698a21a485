//! Error feedback on matrices whose loss is known.

use ndarray::Array2;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_allocate::{PlannedWeight, Sharing};
use waterfill_codec::{CodedTensor, Dtype, Format, Lambda, TensorPlan, TilePlan, Trellis};
use waterfill_quadratic::{Curvature, Hessian, LossWeights, QuadraticLoss};
use waterfill_quantize::ldlq::{LdlqOptions, encode_ldlq};

const ROWS: usize = 300;
const COLS: usize = 200;

/// Number `n` of a sequence of roughly Gaussian ones: sums of twelve uniform numbers.
fn noise(n: usize) -> f32 {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    rng.set_word_pos(12 * n as u128);
    (0..12).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
}

fn weights() -> Vec<f32> {
    (0..ROWS * COLS).map(noise).collect()
}

/// Inputs that follow each other, columns of very different size.
fn correlated(zero: impl Fn(usize) -> bool) -> Hessian {
    let size = |j: usize| if zero(j) { 0.0 } else { 1.0 + (j % 7) as f32 };
    Hessian::from_dense(&Array2::from_shape_fn((COLS, COLS), |(i, j)| {
        0.9f32.powi(i.abs_diff(j) as i32) * size(i) * size(j)
    }))
}

fn planned(hessian: &Hessian, rows: Vec<f32>, lambda: f64) -> PlannedWeight {
    let tile = TilePlan { format: Format::Int8, ..TilePlan::default() };
    let mut plan = TensorPlan::uniform(Dtype::F32, ROWS, COLS, tile);
    plan.row_scale = vec![0; ROWS];
    plan.col_scale = vec![0; COLS];
    let mean = hessian.diagonal.sum() / COLS as f32;
    let cols = hessian.diagonal.iter().map(|d| d / mean).collect();
    let loss_weights = LossWeights { tiles: vec![1.0; plan.tiles.len()], rows, cols, lookup: vec![] };
    PlannedWeight {
        plan,
        loss_weights,
        lambda: Lambda(lambda),
        allow_int4: true,
        sharing: Default::default(),
        widths: vec![],
    }
}

fn inputs(hessian: &Hessian) -> Curvature<'_> {
    Curvature { hessian: Some(hessian), gradient_covariance: None }
}

fn options(states: Option<u32>) -> LdlqOptions {
    let trellis = states.and_then(Trellis::new);
    LdlqOptions {
        trellis,
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

/// Bits per weight, and the loss of the decoded tensor.
fn measured(weight: &PlannedWeight, hessian: &Hessian, coded: &[u8]) -> (f64, f64) {
    let (decoded, _) = CodedTensor::parse(coded).unwrap().decode().unwrap();
    let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let errors: Vec<f32> = decoded.chunks_exact(4).zip(weights()).map(|(b, w)| value(b) - w).collect();
    assert!(errors.iter().all(|e| e.is_finite()));
    let loss = QuadraticLoss::new(&weight.loss_weights, 16, inputs(hessian)).of(errors);
    (coded.len() as f64 * 8.0 / (ROWS * COLS) as f64, loss)
}

/// At the same lambda feedback spends about as many bits as the same quantizer without, and loses less;
/// a trellis loses about as much and spends fewer.
#[test]
fn feedback_and_trellis_pay() {
    let hessian = correlated(|_| false);
    let weight = planned(&hessian, vec![1.0; ROWS], 0.02);
    let alone = encode_ldlq(&weight, &weights(), Curvature::default(), &options(None)).unwrap();
    let (alone_bits, alone_loss) = measured(&weight, &hessian, &alone);
    let mut last = f64::INFINITY;
    for states in [None, Some(2), Some(3), Some(8)] {
        let fed = encode_ldlq(&weight, &weights(), inputs(&hessian), &options(states)).unwrap();
        let (bits, loss) = measured(&weight, &hessian, &fed);
        // One bit is worth a factor of four.
        let worth = alone_bits - bits + (alone_loss / loss).log2() / 2.0;
        assert!(worth > 0.8, "{states:?}: {bits} bits, loss {loss}; alone {alone_bits}, {alone_loss}");
        let equivalent = bits + loss.log2() / 2.0;
        assert!(equivalent < last, "{states:?}: {equivalent} after {last}");
        last = equivalent;
    }
}

/// The loss at the lambda is the water level's: lambda / (2 ln 2) for every weight.
#[test]
fn lambda_sets_the_loss() {
    let hessian = correlated(|_| false);
    for (states, lambda) in [(None, 0.02), (None, 0.002), (Some(3), 0.02), (Some(3), 0.002)] {
        let weight = planned(&hessian, vec![1.0; ROWS], lambda);
        let fed = encode_ldlq(&weight, &weights(), inputs(&hessian), &options(states)).unwrap();
        let (_, loss) = measured(&weight, &hessian, &fed);
        let expected = lambda / (2.0 * std::f64::consts::LN_2) * (ROWS * COLS) as f64;
        assert!((loss / expected - 1.0).abs() < 0.3, "{states:?} at {lambda}: {loss}, expected {expected}");
    }
}

/// Columns without inputs and rows without gradients.
#[test]
fn degenerate_sensitivities_are_survived() {
    for states in [None, Some(3)] {
        let dead = correlated(|j| j.is_multiple_of(3) || j > 150);
        let rows = (0..ROWS).map(|i| if i % 4 == 0 { 0.0 } else { 1.0 }).collect();
        let weight = planned(&dead, rows, 0.02);
        let fed = encode_ldlq(&weight, &weights(), inputs(&dead), &options(states)).unwrap();
        let (bits, loss) = measured(&weight, &dead, &fed);
        assert!(bits < 4.0 && loss < 0.05 * (ROWS * COLS) as f64, "{bits} bits, loss {loss}");
        let nothing = correlated(|_| true);
        let weight = planned(&correlated(|_| false), vec![1.0; ROWS], 0.02);
        let fed = encode_ldlq(&weight, &weights(), inputs(&nothing), &options(states)).unwrap();
        assert!(measured(&weight, &nothing, &fed).0 < 4.0);
    }
}

/// Tiles that may be INT4 are where their levels fit, and decode to the same.
#[test]
fn small_levels_take_four_bits() {
    let hessian = correlated(|_| false);
    let weight = planned(&hessian, vec![1.0; ROWS], 1.0);
    let code = |allow_int4: bool| {
        let weight = PlannedWeight { allow_int4, ..planned(&hessian, vec![1.0; ROWS], 1.0) };
        let coded = encode_ldlq(&weight, &weights(), inputs(&hessian), &options(Some(3))).unwrap();
        CodedTensor::parse(&coded).unwrap().decode().unwrap()
    };
    let ((wide, all), (narrow, tiles)) = (code(false), code(true));
    assert!(wide == narrow);
    assert!(all.iter().all(|t| t.format == Format::Int8));
    let int4 = tiles.iter().filter(|t| t.format == Format::Int4).count();
    assert!(int4 > tiles.len() / 2, "{int4} of {}", tiles.len());
    assert_eq!(weight.plan.tiles.len(), tiles.len());
}

/// Steps that tiles share are the same wherever they are shared, and levels stay in the range of the one format.
#[test]
fn shared_steps_hold_in_groups() {
    let hessian = correlated(|_| false);
    for (format, sharing, columns) in [
        (Format::Int4, Sharing::Columns(40 * 16), COLS),
        (Format::Int4, Sharing::Columns(48), COLS),
        (Format::Int8, Sharing::Columns(usize::MAX), COLS),
        (Format::Int8, Sharing::Matrix, COLS),
    ] {
        let mut weight = PlannedWeight { sharing, allow_int4: false, ..planned(&hessian, vec![1.0; ROWS], 0.02) };
        weight.plan.col_scale.clear();
        weight.plan.tiles.iter_mut().for_each(|t| t.format = format);
        weight.loss_weights.tiles.iter_mut().enumerate().for_each(|(n, t)| *t = 1.0 + (n % 5) as f32);
        let settings = LdlqOptions { allow_lossless: true, ..options(Some(3)) };
        let coded = encode_ldlq(&weight, &weights(), inputs(&hessian), &settings).unwrap();
        let (bits, loss) = measured(&weight, &hessian, &coded);
        assert!(bits < 5.0 && loss < 0.2 * (ROWS * COLS) as f64, "{sharing:?}: {bits} bits, loss {loss}");
        let coded = CodedTensor::parse(&coded).unwrap();
        let across = COLS.div_ceil(16);
        let mut steps = Vec::new();
        for slice in 0..coded.slices() {
            let decoded = coded.decode_planes(slice).unwrap();
            assert!(decoded.tiles.iter().all(|t| t.format == format), "{sharing:?}");
            let range = if format == Format::Int4 { -8..=7 } else { -127..=127 };
            assert!(decoded.plane.iter().all(|level| range.contains(level)), "{sharing:?}");
            steps.extend(decoded.tiles.iter().map(|t| t.step));
        }
        let rows = steps.chunks(across);
        let whole = |row: &[i16]| row.chunks(columns.div_ceil(16)).all(|part| part.iter().all(|s| *s == part[0]));
        assert!(rows.clone().all(whole), "{sharing:?}: {steps:?}");
        if sharing == Sharing::Matrix {
            assert!(steps.iter().all(|s| *s == steps[0]));
        }
    }
}

/// Rows whose outputs are correlated take over from each other, across slices too: what is gained is half of
/// the mean of log2(G_ii / D_ii) bits, nearly.
#[test]
fn feedback_over_rows_pays() {
    let input = correlated(|_| false);
    let output = Hessian::from_dense(&Array2::from_shape_fn((ROWS, ROWS), |(i, k)| {
        (if i == k { 1.0 } else { 0.7 }) * (1.0 + (i % 3) as f32) * (1.0 + (k % 3) as f32)
    }));
    let both = Curvature { hessian: Some(&input), gradient_covariance: Some(&output) };
    let mean = output.diagonal.sum() / ROWS as f32;
    let weight = planned(&input, output.diagonal.iter().map(|g| g / mean).collect(), 0.02);
    for states in [None, Some(3)] {
        let equivalent = |curvature: Curvature| {
            let fed = encode_ldlq(&weight, &weights(), curvature, &options(states)).unwrap();
            let (decoded, _) = CodedTensor::parse(&fed).unwrap().decode().unwrap();
            let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let errors: Vec<f32> = decoded.chunks_exact(4).zip(weights()).map(|(b, w)| value(b) - w).collect();
            let loss = QuadraticLoss::new(&weight.loss_weights, 16, both).of(errors);
            fed.len() as f64 * 8.0 / (ROWS * COLS) as f64 + loss.log2() / 2.0
        };
        let with_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| encode_ldlq(&weight, &weights(), both, &options(states)).unwrap())
        };
        assert!(with_threads(1) == with_threads(3), "{states:?}: slices side by side see each other's errors");
        let (columns, all) = (equivalent(inputs(&input)), equivalent(both));
        // The others foretell seven tenths of a row: half of log2(1 / 0.3) is 0.87 bits, less damping.
        assert!(columns - all > 0.5, "{states:?}: {all} bits, {columns} with feedback over columns alone");
    }
}
