//! Steps at the water level: what every weight may lose at a lambda.

use waterfill_allocate::{Sharing, water_fill};
use waterfill_codec::encoder::sigma_fit::log2_mean;
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::{Format, Lambda, TensorPlan, TilePlan};
use waterfill_quadratic::{LossWeights, water_damping};

/// Mean squared error of a scalar quantizer in squared steps, and of a trellis in those of its union
/// quantizer.
const SCALAR_ERROR: f64 = 1.0 / 12.0;
const TRELLIS_ERROR: f64 = 0.275;
/// Largest level planned for a plane of eight bits, or of four; feedback adds to the weights, which takes the rest.
const PEAK: f32 = 120.0;
const PEAK_INT4: f32 = 7.0;
/// Quarter octaves by which a step may be too coarse: beyond, five bits more cost less than the error.
const LOSSLESS: f32 = 6.0;
/// Largest scale index of a tile, eighths of an octave.
const LIMIT: f64 = 320.0;

/// The water level: loss of a weight, nats, at which the slope of a Gaussian source's distortion over its rate, `2 ln 2`
/// times the distortion, is lambda (Cover & Thomas, 10.3.3).
fn water_level(lambda: Lambda) -> f64 {
    lambda.0 / (2.0 * std::f64::consts::LN_2)
}

/// Freedom in the choice of steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Freedom {
    /// Tiles may become lossless.
    pub allow_lossless: bool,
    /// Which tiles have one step.
    pub sharing: Sharing,
}

/// Sets scale vectors and steps of a plan with allocated formats and steps, so that every weight loses the water level; a
/// plan with a trellis then has planes of eight bits. Tiles that exceed the range of their plane get coarser steps, or
/// become lossless where `freedom` allows it. Returns the loss that this adds, as a share of the loss at the water level.
pub fn set_steps(
    plan: &mut TensorPlan,
    loss_weights: &LossWeights,
    lambda: Lambda,
    weights: &[f32],
    freedom: Freedom,
) -> f64 {
    if plan.tiles.iter().any(|t| t.format.level_range().is_some()) {
        for (scales, loss_weights, others) in
            [(&mut plan.col_scale, &loss_weights.cols, plan.rows), (&mut plan.row_scale, &loss_weights.rows, plan.cols)]
        {
            if !scales.is_empty() {
                *scales = water_fill(&alive(loss_weights), others);
            }
        }
    }
    set_tile_steps(plan, loss_weights, lambda, weights, freedom)
}

/// As [`set_steps`] with the scales of rows and columns that the plan has.
pub fn set_tile_steps(
    plan: &mut TensorPlan,
    loss_weights: &LossWeights,
    lambda: Lambda,
    weights: &[f32],
    Freedom { allow_lossless, sharing }: Freedom,
) -> f64 {
    let integer: Vec<usize> = (0..plan.tiles.len()).filter(|&n| plan.tiles[n].format.level_range().is_some()).collect();
    if integer.is_empty() {
        return 0.0;
    }
    let trellis = plan.parameters.trellis.is_some();
    let error = if trellis { TRELLIS_ERROR } else { SCALAR_ERROR };
    let log_tile =
        log2_mean(integer.iter().map(|&n| f64::from(loss_weights.tiles[n]))).unwrap_or(f64::MIN_POSITIVE.log2());
    let left = LeftToTiles::new(plan, loss_weights);
    // Eighths of an octave of the step, half of log2 of its square.
    let wanted = |n: usize| {
        let index = 4.0 * ((water_level(lambda) / error).log2() - log_tile - left.log2(n));
        index.clamp(-LIMIT, LIMIT).round() as i32
    };
    let mean = integer.iter().map(|&n| i64::from(wanted(n))).sum::<i64>().div_euclid(integer.len() as i64) as i32;
    let sigma = plan.sigma_base + plan.step_base.div_euclid(2);
    plan.step_base = mean;
    plan.sigma_base = sigma - mean.div_euclid(2);
    let mut added = 0.0;
    for unit in sharing.units(plan) {
        let unit: Vec<usize> = unit.into_iter().filter(|n| plan.tiles[*n].format.level_range().is_some()).collect();
        let average = |of: &dyn Fn(usize) -> i32| {
            unit.iter().map(|&n| i64::from(of(n))).sum::<i64>().div_euclid(unit.len().max(1) as i64) as i32
        };
        let index = average(&wanted);
        for &n in &unit {
            let tile = &mut plan.tiles[n];
            tile.step = (f64::from(index - mean) / f64::from(UNIT)).round() as i16;
            tile.format = if trellis { Format::Int8 } else { tile.format };
        }
        let excess = |n: usize| {
            let peak_level = if plan.tiles[n].format == Format::Int8 { PEAK } else { PEAK_INT4 };
            (4.0 * (peak(plan, n, weights) / peak_level).log2()).ceil().max(0.0)
        };
        let mut excess = unit.iter().map(|&n| excess(n)).fold(0.0, f32::max);
        if sharing != Sharing::Tile && unit.iter().any(|&n| plan.tiles[n].format != Format::Int8) {
            excess = least_loss(plan, &unit, loss_weights, weights, excess as i16).into();
        }
        for &n in &unit {
            if allow_lossless && excess > LOSSLESS {
                plan.tiles[n].format = Format::Lossless;
            } else {
                plan.tiles[n].step = plan.tiles[n].step.saturating_add(excess as i16);
            }
            let steps = plan.steps(n, plan.tiles[n].format);
            let tile = &mut plan.tiles[n];
            tile.step = i32::from(tile.step).min(*steps.end()).max(*steps.start()) as i16;
            added += f64::from((excess.min(LOSSLESS) / 2.0).exp2() - 1.0);
        }
    }
    added / integer.len() as f64
}

/// Quarter octaves, at most `most`, by which the common step of tiles is best made coarser: clipping a few large levels may
/// cost less than a coarser step for all.
fn least_loss(plan: &TensorPlan, unit: &[usize], loss_weights: &LossWeights, weights: &[f32], most: i16) -> i16 {
    let loss = |more: i16| {
        let mut sum = 0.0;
        for &n in unit {
            let (rows, cols) = plan.tile_range(n);
            let (least, highest) = plan.tiles[n].format.level_range().unwrap_or_default();
            let tile = TilePlan { step: plan.tiles[n].step + more, ..plan.tiles[n] };
            for row in rows {
                for col in cols.clone() {
                    let step = scale(plan.scale_index(&tile, row, col));
                    let weight = weights[row * plan.cols + col];
                    let level = (weight / step).round().clamp(least as f32, highest as f32);
                    let share = loss_weights.tiles[n] * loss_weights.rows[row] * loss_weights.cols[col];
                    sum += f64::from(share * (weight - level * step).powi(2));
                }
            }
        }
        sum
    };
    let losses = (0..=most).map(|more| (loss(more), more));
    losses.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |(_, more)| more)
}

/// Weights of rows or columns, at least a millionth of their mean: a dead one must not get an infinite step.
fn alive(loss_weights: &[f32]) -> Vec<f64> {
    let mean = loss_weights.iter().map(|&v| f64::from(v)).sum::<f64>() / loss_weights.len().max(1) as f64;
    loss_weights.iter().map(|&v| f64::from(v).max(1e-6 * mean).max(f64::MIN_POSITIVE)).collect()
}

/// Weights left to the steps of tiles by row and column scales, which end at twelve octaves.
struct LeftToTiles {
    rows: Vec<f64>,
    cols: Vec<f64>,
}

impl LeftToTiles {
    fn new(plan: &TensorPlan, loss_weights: &LossWeights) -> Self {
        let means = |by: &[f32], scales: &[i8]| {
            let left =
                |(i, &v): (usize, &f32)| f64::from(v) * (f64::from(scales.get(i).copied().unwrap_or(0)) / 2.0).exp2();
            let left: Vec<f64> = by.iter().enumerate().map(left).collect();
            left.chunks(plan.tile).map(|part| part.iter().sum::<f64>() / part.len() as f64).collect()
        };
        Self { rows: means(&loss_weights.rows, &plan.row_scale), cols: means(&loss_weights.cols, &plan.col_scale) }
    }

    fn log2(&self, n: usize) -> f64 {
        let across = self.cols.len();
        (self.rows[n / across] * self.cols[n % across]).max(1e-30).log2()
    }
}

/// Largest weight of a tile in steps.
fn peak(plan: &TensorPlan, n: usize, weights: &[f32]) -> f32 {
    let (rows, cols) = plan.tile_range(n);
    let tile = &plan.tiles[n];
    let at = |row: usize, col: usize| weights[row * plan.cols + col].abs() / scale(plan.scale_index(tile, row, col));
    rows.flat_map(|row| cols.clone().map(move |col| (row, col))).fold(0.0, |m, (row, col)| at(row, col).max(m))
}

/// Damping by the water level, for rows and for columns: [`waterfill_quadratic::water_damping`].
pub fn relative_water_levels(
    plan: &TensorPlan,
    loss_weights: &LossWeights,
    lambda: Lambda,
    weights: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    water_damping(weights, loss_weights, plan.tile, water_level(lambda))
}
