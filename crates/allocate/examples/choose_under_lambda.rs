//! Allocates bits to one matrix under a series of lambdas: the larger lambda, the fewer bits.
//!
//! Run with `cargo run --release -p waterfill-allocate --example choose_under_lambda`.

use ndarray::{Array1, Array2};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_allocate::{
    FoldRule, MeasureOptions, Policy, RateWeights, ScaleVectors, Selection, measure_candidates, select_weight,
};
use waterfill_calibrate::Sensitivity;
use waterfill_codec::{Dtype, Format, Lambda, TILE};

const ROWS: usize = 256;
const COLS: usize = 512;

/// Roughly Gaussian weights of a standard deviation of 0.02, values of bf16.
fn weights() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut gaussian = || (0..12).map(|_| rng.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0;
    (0..ROWS * COLS).map(|_| Dtype::Bf16.value_of(Dtype::Bf16.pattern_of(gaussian() * 0.02))).collect()
}

/// A sensitivity as calibration would find it: F_ij = row_i col_j, with rows that differ by a factor of 64.
fn sensitivity() -> Sensitivity {
    let row = |i: usize| 1e-3 * (6.0 * i as f64 / ROWS as f64).exp2();
    let rows = Array1::from_shape_fn(ROWS, row);
    let tile = |(r, _): (usize, usize)| (r * TILE..(r + 1) * TILE).map(row).sum::<f64>() * TILE as f64;
    Sensitivity {
        tile_fisher: vec![Array2::from_shape_fn((ROWS / TILE, COLS / TILE), tile)],
        row_fisher: &rows * COLS as f64,
        col_fisher: Array1::from_elem(COLS, rows.sum()),
        row_g2: rows,
        col_x2: Array1::ones(COLS),
        lookup_row_fisher: None,
    }
}

fn count(selection: &Selection, format: Format) -> usize {
    selection.chosen.iter().filter(|candidate| candidate.format == format).count()
}

fn main() -> Result<(), waterfill_allocate::AllocateError> {
    let formats = [Format::Int4, Format::Int8, Format::Lossless];
    let options = MeasureOptions {
        fold_rule: FoldRule::Mean,
        scale_vectors: ScaleVectors::None,
        unseen: 0.0,
        loss_factor: 1.0,
        formats: &formats,
        planes: None,
        spread_scales: false,
        shared_steps: false,
        ldl: None,
    };
    // Measured once, whatever lambda is.
    let candidates = measure_candidates(&weights(), Dtype::Bf16, &sensitivity(), &options);
    let policy = Policy {
        formats: formats.to_vec(),
        floors: vec![],
        margin: 0.0,
        rate: RateWeights::default(),
        corrections: Default::default(),
        structure: None,
    };
    println!("  lambda   bits/weight   loss, nats   int4  int8  lossless");
    for exponent in -9..=-3 {
        let lambda = 10f64.powi(exponent);
        let selection = select_weight("example", &candidates, &policy, Lambda(lambda))?;
        println!(
            "{lambda:8.0e} {:13.2} {:12.3e} {:6} {:5} {:9}",
            selection.rate.0 / (ROWS * COLS) as f64,
            selection.loss.0,
            count(&selection, Format::Int4),
            count(&selection, Format::Int8),
            count(&selection, Format::Lossless),
        );
    }
    Ok(())
}
