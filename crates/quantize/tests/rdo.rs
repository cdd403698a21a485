//! Every tool is found on weights made for it, and a search never costs more than none.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use waterfill_allocate::PlannedWeight;
use waterfill_codec::{CodedTensor, Dtype, Format, Lambda, TensorPlan, TilePlan};
use waterfill_quadratic::LossWeights;
use waterfill_quantize::rdo::{Preset, Tool, Usage, encode_rdo};

const ROWS: usize = 64;
const COLS: usize = 96;

/// Number `n` of a sequence of roughly Gaussian ones: sums of twelve uniform numbers.
fn noise(n: usize) -> f32 {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    rng.set_word_pos(12 * n as u128);
    (0..12).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
}

/// A weight whose tiles are all INT8 with a step of one, a bit of which costs as much as an error of
/// `lambda` squared steps.
fn planned(lambda: f64) -> PlannedWeight {
    let mut plan = TensorPlan::uniform(Dtype::F32, ROWS, COLS, TilePlan::default());
    plan.sigma_base = 12;
    let loss_weights = LossWeights {
        tiles: vec![1.0; plan.tiles.len()],
        rows: vec![1.0; ROWS],
        cols: vec![1.0; COLS],
        lookup: vec![],
    };
    PlannedWeight {
        plan,
        loss_weights,
        lambda: Lambda(lambda),
        allow_int4: false,
        sharing: Default::default(),
        widths: vec![],
    }
}

/// J = error + lambda * bits of the whole coded tensor, and what it uses.
fn coded(weight: &PlannedWeight, weights: &[f32], tools: &[Tool]) -> (f64, Usage) {
    let tools: BTreeSet<Tool> = tools.iter().copied().collect();
    let bytes = encode_rdo(weight, weights, &tools, true).unwrap();
    let (decoded, tiles) = CodedTensor::parse(&bytes).unwrap().decode().unwrap();
    let values = decoded.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let error: f64 = values.zip(weights).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (error + weight.lambda.0 * bytes.len() as f64 * 8.0, Usage::of(&tiles, &weight.plan))
}

fn weights(value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..ROWS * COLS).map(|n| value(n / COLS, n % COLS)).collect()
}

#[test]
fn tools_are_found_where_they_fit() {
    let outer = |r: usize, c: usize| 40.0 * noise(r + 16 * (c / 16)) * noise(5000 + c) / 2.0;
    let wave = |r: usize, c: usize| 60.0 * (0.21 * (r % 16) as f32).cos() + 0.1 * noise(r * COLS + c);
    let cases: [(&[Tool], &str, Vec<f32>); 12] = [
        (&[Tool::Skip], "skip", weights(|r, c| 0.2 * noise(r * COLS + c))),
        (&[Tool::Skip, Tool::Constant], "constant", weights(|r, c| 30.0 + 0.2 * noise(r * COLS + c))),
        (&[Tool::Top, Tool::Skip], "top", weights(|_, c| 9.0 * noise(c))),
        (&[Tool::ColMean], "col-mean", weights(|r, c| 9.0 * noise(c) + 0.5 * noise(r * COLS + c))),
        (&[Tool::Left, Tool::Skip], "left", weights(|r, _| 9.0 * noise(r))),
        (&[Tool::RowMean], "row-mean", weights(|r, c| 9.0 * noise(r) + 0.5 * noise(r * COLS + c))),
        (&[Tool::Linear], "linear", weights(|r, c| 20.0 * noise(r) + 9.0 * noise(900 + c))),
        (
            &[Tool::RowCopy, Tool::Skip],
            "row-copy",
            weights(|r, c| if r < 16 { 9.0 * noise(r * COLS + c) } else { 9.0 * noise(7 * COLS + c) }),
        ),
        (
            &[Tool::Palette],
            "palette",
            weights(|r, c| [0.0, -70.0, 3.0, 91.0][(noise(r * COLS + c).abs() * 40.0) as usize % 4]),
        ),
        (&[Tool::RankOne], "rank-one", weights(outer)),
        (&[Tool::Dct, Tool::Spread], "dct", weights(wave)),
        (
            &[Tool::BitPlanes],
            "bit-planes",
            weights(|r, c| if (r / 4 + c / 4) % 16 == 0 { 30.0 * noise(r * COLS + c) } else { 0.0 }),
        ),
    ];
    let weight = planned(0.05);
    for (tools, name, weights) in cases {
        let (plain, _) = coded(&weight, &weights, &[]);
        let (searched, usage) = coded(&weight, &weights, tools);
        assert!(searched < plain, "{name}: {searched} with, {plain} without");
        assert!(usage.0.get(name).is_some_and(|&n| n > 0), "{name}: {usage:?}");
    }
}

#[test]
fn a_dictionary_row_is_found() {
    let (rows, cols) = (256, 64);
    let weights: Vec<f32> = (0..rows * cols)
        .map(|n| {
            let (r, c) = (n / cols, n % cols);
            if r % 64 < 32 { 12.0 * noise(c) + 0.4 * noise(n) } else { 12.0 * noise(n) }
        })
        .collect();
    let mut weight = planned(0.05);
    weight.plan = TensorPlan { sigma_base: 14, ..TensorPlan::uniform(Dtype::F32, rows, cols, TilePlan::default()) };
    weight.loss_weights =
        LossWeights { tiles: vec![1.0; 64], rows: vec![1.0; rows], cols: vec![1.0; cols], lookup: vec![] };
    let (plain, _) = coded(&weight, &weights, &[]);
    let (searched, usage) = coded(&weight, &weights, &[Tool::Dictionary, Tool::Spread]);
    assert!(usage.0["dictionary"] > 10, "{usage:?}");
    assert!(searched < plain * 0.9, "{searched} with, {plain} without");
}

#[test]
fn presets_and_research_tools_decode_to_what_was_encoded() {
    let weights = weights(|r, c| 3.0 * noise(r * COLS + c) + 4.0 * noise(9000 + c));
    let mut weight = planned(0.02);
    for (n, tile) in weight.plan.tiles.iter_mut().enumerate() {
        tile.format = [Format::Int8, Format::Int4, Format::Lossless, Format::Fp8][n % 4];
        tile.step = (n % 3) as i16;
    }
    let (plain, _) = coded(&weight, &weights, &[]);
    for preset in [Preset::Fast, Preset::Balanced, Preset::Best] {
        let tools: Vec<Tool> = preset.tools().into_iter().collect();
        let (searched, _) = coded(&weight, &weights, &tools);
        assert!(searched <= plain * 1.01, "{preset:?}: {searched} with, {plain} without");
    }
    // Plainly Gaussian weights have nothing for most tools, which then cost next to nothing. Shared
    // parameters cost what they are.
    let regroups = |t: &Tool| matches!(t, Tool::Tile8 | Tool::Tile32 | Tool::Tile64);
    for tool in Tool::ALL.into_iter().filter(|t| !regroups(t)) {
        let (searched, _) = coded(&weight, &weights, &[tool, Tool::Centroids]);
        assert!(searched <= plain * 1.06, "{tool:?}: {searched} with, {plain} without");
    }
}

#[test]
fn centroids_restore_what_priced_rounding_shrinks() {
    let weights = weights(|r, c| 1.2 * noise(r * COLS + c));
    let weight = planned(0.1);
    let mean = |tools: &[Tool]| {
        let bytes = encode_rdo(&weight, &weights, &tools.iter().copied().collect(), true).unwrap();
        let (decoded, _) = CodedTensor::parse(&bytes).unwrap().decode().unwrap();
        let values = decoded.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        values.zip(&weights).map(|(a, b)| f64::from(a * b.signum())).sum::<f64>() / weights.len() as f64
    };
    let original: f64 = weights.iter().map(|w| f64::from(w.abs())).sum::<f64>() / weights.len() as f64;
    let (shrunk, restored) = (mean(&[Tool::Rdoq]), mean(&[Tool::Rdoq, Tool::Centroids]));
    assert!(shrunk < original * 0.98, "{shrunk} of {original}");
    assert!((restored - original).abs() < (shrunk - original).abs(), "{restored} against {shrunk} of {original}");
}
