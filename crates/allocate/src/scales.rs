//! Row and column scales from sensitivities, and the spread model of the entropy coder from
//! weights.

use waterfill_codec::encoder::sigma_fit::{self, fit_sigma, log2_mean, quarter_octaves, rms, sigma_vector};
use waterfill_codec::{Dtype, TILE, TensorPlan, TilePlan, scale};

use crate::information::Information;

/// Largest row or column index, quarter octaves: twelve octaves either way. Channels that a model has scaled (by norms, or for
/// smoothness) lie six octaves and more from the others.
const MAX_SCALE: f64 = 48.0;

/// Scale vectors that a matrix has next to the steps of its tiles, each only where it pays for its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleVectors {
    /// None.
    None,
    /// One for its rows.
    Row,
    /// One for its rows and one for its columns.
    RowColumn,
}

/// Everything of a plan that does not depend on lambda: scales, spreads, bases; tiles hold their
/// spread and nothing else yet.
pub(crate) fn plan_scales(
    info: &Information,
    weights: &[f32],
    dtype: Dtype,
    vectors: ScaleVectors,
    spread_scales: bool,
) -> TensorPlan {
    let (rows, cols) = (info.rows, info.cols);
    let (mut row_scale, mut col_scale) = (Vec::new(), Vec::new());
    if vectors != ScaleVectors::None {
        row_scale = water_fill(&info.by_row, cols);
    }
    if vectors == ScaleVectors::RowColumn {
        col_scale = water_fill(&info.by_col, rows);
    }
    let (row_rms, col_rms) = fit_sigma(weights, rows, cols);
    let row_sigma = sigma_vector(&row_rms, cols);
    let col_sigma = sigma_vector(&col_rms, rows);
    // In a plane of a fixed width the best step of a weight follows its spread, whatever errors cost.
    match vectors {
        ScaleVectors::RowColumn if spread_scales => (row_scale, col_scale) = (row_sigma.clone(), col_sigma.clone()),
        // What columns do not take, rows do.
        ScaleVectors::Row if spread_scales => {
            let of_row = |row: &[f32]| rms(row.iter().map(|&w| f64::from(w)));
            let of_rows: Vec<f64> = weights.chunks(cols.max(1)).map(of_row).collect();
            row_scale = sigma_vector(&of_rows, cols);
        }
        _ => {}
    }
    let sigma = |i: usize, j: usize| {
        let entry = |v: &[i8], n: usize| v.get(n).map_or(0.0, |&x| f64::from(x));
        ((entry(&row_sigma, i) + entry(&col_sigma, j)) / 4.0).exp2()
    };
    let all = rms(weights.iter().enumerate().map(|(n, &w)| f64::from(w) / sigma(n / cols, n % cols)));
    // The base step is a quarter of the spread: near three bits, where tile indices are small.
    let step_base = (scale::nearest_index(all) - 16).clamp(-scale::MAX_INDEX / 2, scale::MAX_INDEX / 2);
    let sigma_base = ((all.max(f64::MIN_POSITIVE).log2() * 8.0 - f64::from(step_base)) / 2.0).round();
    let mut plan = TensorPlan {
        step_base,
        sigma_base: sigma_base.clamp(-1000.0, 1000.0) as i32,
        row_scale,
        col_scale,
        row_sigma: row_sigma.clone(),
        col_sigma: col_sigma.clone(),
        ..TensorPlan::uniform(dtype, rows, cols, TilePlan::default())
    };
    let across = plan.tiles_across();
    for (n, tile) in plan.tiles.iter_mut().enumerate() {
        let (top, left) = (n / across * TILE, n % across * TILE);
        let inside = (top..rows.min(top + TILE)).flat_map(|i| (left..cols.min(left + TILE)).map(move |j| (i, j)));
        let tile_rms = rms(inside.map(|(i, j)| f64::from(weights[i * cols + j]) / sigma(i, j)));
        tile.sigma = quarter_octaves(tile_rms / all.max(f64::MIN_POSITIVE), 40.0) as i16;
    }
    plan
}

/// Scale vector with steps proportional to `1 / sqrt(information)` around its geometric mean, quarter octaves, clamped to
/// twelve octaves either way: reverse water-filling (Cover & Thomas, 10.3.3) for components that are all above the water.
///
/// `information` is the Fisher information of each row (or column), `others` the number of weights in it. Empty when the
/// gain, `1/2 log2(arithmetic mean / geometric mean)` bits a weight, does not pay for the entries.
pub fn water_fill(information: &[f64], others: usize) -> Vec<i8> {
    let mean = information.iter().sum::<f64>() / information.len() as f64;
    let Some(log_mean) = log2_mean(information.iter().copied()) else { return Vec::new() };
    if (mean.log2() - log_mean) / 2.0 * others as f64 <= sigma_fit::ENTRY_BITS {
        return Vec::new();
    }
    information.iter().map(|v| (-2.0 * (v.log2() - log_mean)).round().clamp(-MAX_SCALE, MAX_SCALE) as i8).collect()
}

#[cfg(test)]
mod tests {
    use waterfill_calibrate::Sensitivity;

    use super::*;
    use crate::information::FoldRule;

    #[test]
    fn scales_follow_the_inverse_root_of_the_information() {
        let information: Vec<f64> = (0..64).map(|i| if i % 2 == 0 { 1.0 } else { 16.0 }).collect();
        let scales = water_fill(&information, 1000);
        // A factor of 16 in information is a factor of 4 in step: 8 quarter octaves.
        assert!(scales.iter().enumerate().all(|(i, &s)| s == if i % 2 == 0 { 4 } else { -4 }), "{scales:?}");
        assert!(water_fill(&[1.0; 64], 1000).is_empty());
        assert!(water_fill(&information, 2).is_empty(), "two weights a row cannot pay for its scale");
        // Dead rows take nothing from the others.
        let some_dead: Vec<f64> = information.iter().copied().chain([0.0; 8]).collect();
        let scales = water_fill(&some_dead, 1000);
        assert_eq!((scales[0], scales[1], scales[70]), (4, -4, 48));
        assert!(water_fill(&[0.0; 8], 1000).is_empty());
    }

    /// Levels of a fixed width reach as far as their row does; where rates are free, what errors cost decides.
    #[test]
    fn scales_of_planes_follow_the_spread_of_rows() {
        let (rows, cols) = (64, 256);
        let sensitivity = Sensitivity {
            tile_fisher: vec![vec![[1.0; 16]; rows / TILE].into()],
            row_fisher: (0..rows).map(|i| if i % 2 == 0 { 1.0 } else { 16.0 }).collect::<Vec<f64>>().into(),
            col_fisher: vec![1.0; cols].into(),
            row_g2: vec![1.0; rows].into(),
            col_x2: vec![1.0; cols].into(),
            lookup_row_fisher: None,
        };
        let info = Information::new(&sensitivity, FoldRule::Mean, 0.0);
        // The first half of the rows is four times as wide.
        let weight = |n: usize| ((n * 37 % 101) as f32 - 50.0) * if n / cols < rows / 2 { 4.0 } else { 1.0 };
        let weights: Vec<f32> = (0..rows * cols).map(weight).collect();
        for vectors in [ScaleVectors::Row, ScaleVectors::RowColumn] {
            let plan = plan_scales(&info, &weights, Dtype::F32, vectors, true);
            let differences: Vec<i8> =
                (0..rows / 2).map(|i| plan.row_scale[i] - plan.row_scale[i + rows / 2]).collect();
            assert!(differences.iter().all(|d| (7..=9).contains(d)), "{vectors:?}: {differences:?}");
            assert!(vectors == ScaleVectors::RowColumn || plan.col_scale.is_empty());
        }
        let plan = plan_scales(&info, &weights, Dtype::F32, ScaleVectors::Row, false);
        assert_eq!(plan.row_scale[0] - plan.row_scale[1], 8, "a sixteenth of the information, four times the step");
    }
}
