//! Error feedback on matrices whose loss is known.

use ndarray::Array2;
use waterfill_allocate::{Factor, Importance, PlannedWeight, Sharing};
use waterfill_calibrate::SecondMomentMatrix;
use waterfill_codec::{CodedTensor, Dtype, Format, Lambda, TensorPlan, TilePlan, Trellis};
use waterfill_quantize::feedback::{FeedbackOptions, QuadraticLoss, SecondMoments, encode_with_feedback};

const ROWS: usize = 300;
const COLS: usize = 200;

/// Roughly Gaussian: sums of twelve uniform numbers.
fn noise(n: usize) -> f32 {
    let uniform = |k: usize| {
        let x = ((n * 12 + k) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((x ^ x >> 32) >> 40) as f32 / (1 << 24) as f32
    };
    (0..12).map(uniform).sum::<f32>() - 6.0
}

fn weights() -> Vec<f32> {
    (0..ROWS * COLS).map(noise).collect()
}

/// Inputs that follow each other, columns of very different size.
fn correlated(zero: impl Fn(usize) -> bool) -> SecondMomentMatrix {
    let size = |j: usize| if zero(j) { 0.0 } else { 1.0 + (j % 7) as f32 };
    SecondMomentMatrix::from_dense(&Array2::from_shape_fn((COLS, COLS), |(i, j)| {
        0.9f32.powi(i.abs_diff(j) as i32) * size(i) * size(j)
    }))
}

fn planned(moment: &SecondMomentMatrix, rows: Vec<f32>, price: f64) -> PlannedWeight {
    let tile = TilePlan { format: Format::Int8, ..TilePlan::default() };
    let mut plan = TensorPlan::uniform(Dtype::F32, ROWS, COLS, tile);
    plan.row_scale = vec![0; ROWS];
    plan.col_scale = vec![0; COLS];
    let mean = moment.diagonal.sum() / COLS as f32;
    let cols = moment.diagonal.iter().map(|d| d / mean).collect();
    let importance = Importance { tiles: vec![1.0; plan.tiles.len()], rows, cols, lookup: vec![] };
    PlannedWeight { plan, importance, price: Lambda(price), narrow: true, sharing: Default::default() }
}

fn inputs(moment: &SecondMomentMatrix) -> SecondMoments<'_> {
    SecondMoments { input: Some(moment), output: None }
}

fn options(states: Option<u32>) -> FeedbackOptions {
    let trellis = states.and_then(Trellis::new);
    FeedbackOptions { trellis, rounding: 0.3, widen: true, escape: false, damping: 0.01, restraint: 0.0, sparse: false }
}

/// Bits per weight, and the loss of the decoded tensor.
fn measured(weight: &PlannedWeight, moment: &SecondMomentMatrix, coded: &[u8]) -> (f64, f64) {
    let (decoded, _) = CodedTensor::parse(coded).unwrap().decode().unwrap();
    let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let errors: Vec<f32> = decoded.chunks_exact(4).zip(weights()).map(|(b, w)| value(b) - w).collect();
    assert!(errors.iter().all(|e| e.is_finite()));
    let loss = QuadraticLoss::new(&weight.importance, 16, inputs(moment)).of(errors);
    (coded.len() as f64 * 8.0 / (ROWS * COLS) as f64, loss)
}

/// At the same price feedback spends about as many bits as the same quantiser without, and loses less;
/// a trellis loses about as much and spends fewer.
#[test]
fn feedback_and_trellis_pay() {
    let moment = correlated(|_| false);
    let weight = planned(&moment, vec![1.0; ROWS], 0.02);
    let alone = encode_with_feedback(&weight, &weights(), SecondMoments::default(), &options(None)).unwrap();
    let (alone_bits, alone_loss) = measured(&weight, &moment, &alone);
    let mut last = f64::INFINITY;
    for states in [None, Some(2), Some(3), Some(8)] {
        let fed = encode_with_feedback(&weight, &weights(), inputs(&moment), &options(states)).unwrap();
        let (bits, loss) = measured(&weight, &moment, &fed);
        // One bit is worth a factor of four.
        let worth = alone_bits - bits + (alone_loss / loss).log2() / 2.0;
        assert!(worth > 0.8, "{states:?}: {bits} bits, loss {loss}; alone {alone_bits}, {alone_loss}");
        let equivalent = bits + loss.log2() / 2.0;
        assert!(equivalent < last, "{states:?}: {equivalent} after {last}");
        last = equivalent;
    }
}

/// The loss at the price is the water level's: price / (2 ln 2) for every weight.
#[test]
fn the_price_sets_the_loss() {
    let moment = correlated(|_| false);
    for (states, price) in [(None, 0.02), (None, 0.002), (Some(3), 0.02), (Some(3), 0.002)] {
        let weight = planned(&moment, vec![1.0; ROWS], price);
        let fed = encode_with_feedback(&weight, &weights(), inputs(&moment), &options(states)).unwrap();
        let (_, loss) = measured(&weight, &moment, &fed);
        let expected = price / (2.0 * std::f64::consts::LN_2) * (ROWS * COLS) as f64;
        assert!((loss / expected - 1.0).abs() < 0.3, "{states:?} at {price}: {loss}, expected {expected}");
    }
}

/// Columns without inputs, rows without gradients, and a matrix that is not one of second moments.
#[test]
fn degenerate_sensitivities_are_survived() {
    for states in [None, Some(3)] {
        let dead = correlated(|j| j.is_multiple_of(3) || j > 150);
        let rows = (0..ROWS).map(|i| if i % 4 == 0 { 0.0 } else { 1.0 }).collect();
        let weight = planned(&dead, rows, 0.02);
        let fed = encode_with_feedback(&weight, &weights(), inputs(&dead), &options(states)).unwrap();
        let (bits, loss) = measured(&weight, &dead, &fed);
        assert!(bits < 4.0 && loss < 0.05 * (ROWS * COLS) as f64, "{bits} bits, loss {loss}");
        let nothing = correlated(|_| true);
        let weight = planned(&correlated(|_| false), vec![1.0; ROWS], 0.02);
        let fed = encode_with_feedback(&weight, &weights(), inputs(&nothing), &options(states)).unwrap();
        assert!(measured(&weight, &nothing, &fed).0 < 4.0);
    }
    // Not positive definite: damping grows until it is.
    let indefinite =
        Array2::from_shape_fn((COLS, COLS), |(i, j)| if i == j { 1.0 } else { 0.9 * (-1f32).powi((i * j) as i32) });
    let factor = Factor::new(&SecondMomentMatrix::from_dense(&indefinite), 0.0, 0.01);
    assert!(factor.damping > 0.01, "{}", factor.damping);
    assert!(factor.diagonal.iter().all(|d| d.is_finite() && *d > 0.0));
}

/// Tiles that may be INT4 are where their levels fit, and decode to the same.
#[test]
fn small_levels_take_four_bits() {
    let moment = correlated(|_| false);
    let weight = planned(&moment, vec![1.0; ROWS], 1.0);
    let code = |narrow: bool| {
        let weight = PlannedWeight { narrow, ..planned(&moment, vec![1.0; ROWS], 1.0) };
        let coded = encode_with_feedback(&weight, &weights(), inputs(&moment), &options(Some(3))).unwrap();
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
    let moment = correlated(|_| false);
    for (format, sharing, columns) in [
        (Format::Int4, Sharing::Columns(40 * 16), COLS),
        (Format::Int4, Sharing::Columns(48), COLS),
        (Format::Int8, Sharing::Columns(usize::MAX), COLS),
        (Format::Int8, Sharing::Matrix, COLS),
    ] {
        let mut weight = PlannedWeight { sharing, narrow: false, ..planned(&moment, vec![1.0; ROWS], 0.02) };
        weight.plan.col_scale.clear();
        weight.plan.tiles.iter_mut().for_each(|t| t.format = format);
        weight.importance.tiles.iter_mut().enumerate().for_each(|(n, t)| *t = 1.0 + (n % 5) as f32);
        let settings = FeedbackOptions { escape: true, ..options(Some(3)) };
        let coded = encode_with_feedback(&weight, &weights(), inputs(&moment), &settings).unwrap();
        let (bits, loss) = measured(&weight, &moment, &coded);
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

/// H = (I+U) D (I+U)^T, written out.
#[test]
fn the_factor_multiplies_to_the_matrix() {
    let moment = correlated(|_| false);
    let factor = Factor::new(&moment, 0.1, 0.02);
    let (range, upper) = factor.block(5).unwrap();
    assert_eq!(range, 0..COLS);
    let unit = |k: usize, j: usize| if k == j { 1.0 } else { f64::from(upper[k * COLS + j]) };
    let h = moment.block(0);
    let mean = f64::from(moment.diagonal.sum()) / COLS as f64 / 0.9;
    for (i, j) in (0..COLS).step_by(13).flat_map(|i| (0..COLS).step_by(7).map(move |j| (i, j))) {
        let product: f64 = (i.max(j)..COLS).map(|k| unit(i, k) * f64::from(factor.diagonal[k]) * unit(j, k)).sum();
        let expected = f64::from(h[[i, j]]) + if i == j { mean * 0.12 } else { 0.0 };
        assert!((product - expected).abs() < 1e-3, "{i} {j}: {product}, expected {expected}");
    }
}

/// Rows whose outputs are correlated take over from each other, across slices too: what is gained is half of
/// the mean of log2(G_ii / D_ii) bits, nearly.
#[test]
fn feedback_over_rows_pays() {
    let input = correlated(|_| false);
    let output = SecondMomentMatrix::from_dense(&Array2::from_shape_fn((ROWS, ROWS), |(i, k)| {
        (if i == k { 1.0 } else { 0.7 }) * (1.0 + (i % 3) as f32) * (1.0 + (k % 3) as f32)
    }));
    let both = SecondMoments { input: Some(&input), output: Some(&output) };
    let mean = output.diagonal.sum() / ROWS as f32;
    let weight = planned(&input, output.diagonal.iter().map(|g| g / mean).collect(), 0.02);
    for states in [None, Some(3)] {
        let equivalent = |moments: SecondMoments| {
            let fed = encode_with_feedback(&weight, &weights(), moments, &options(states)).unwrap();
            let (decoded, _) = CodedTensor::parse(&fed).unwrap().decode().unwrap();
            let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let errors: Vec<f32> = decoded.chunks_exact(4).zip(weights()).map(|(b, w)| value(b) - w).collect();
            let loss = QuadraticLoss::new(&weight.importance, 16, both).of(errors);
            fed.len() as f64 * 8.0 / (ROWS * COLS) as f64 + loss.log2() / 2.0
        };
        let with_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| encode_with_feedback(&weight, &weights(), both, &options(states)).unwrap())
        };
        assert!(with_threads(1) == with_threads(3), "{states:?}: slices side by side see each other's errors");
        let (columns, all) = (equivalent(inputs(&input)), equivalent(both));
        // The others foretell seven tenths of a row: half of log2(1 / 0.3) is 0.87 bits, less damping.
        assert!(columns - all > 0.5, "{states:?}: {all} bits, {columns} with feedback over columns alone");
    }
}
