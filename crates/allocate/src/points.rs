//! Rate-distortion points of every tile: measured errors of the actual weights, code lengths of
//! the actual tables.

use rayon::prelude::*;
use waterfill_calibrate::Sensitivity;
use waterfill_codec::gaussian::{LevelTables, class_of};
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::{Dtype, Format, Loss, Rate, TILE, TensorPlan, fp8};

use crate::policy::{Granularity, ShardRule};
use crate::scales::{Information, plan_scales};

/// Steps of a tile span this many quarter octaves: from the finest INT8 step to all zeros.
const STEPS: i32 = 36;
/// FP8 scales tried, an octave apart; the first is the smallest that does not saturate.
const FP8_SCALES: i32 = 6;

/// One way to code a tile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Number format. INT8 points whose levels all fit INT4 are listed as INT4.
    pub format: Format,
    /// Step index, quarter octaves over the plan's base.
    pub step: i16,
    /// Predicted loss, nats per token.
    pub loss: Loss,
    /// Coded bits of the samples, without the tile's header.
    pub rate: Rate,
}

/// Points of one tile.
pub type TilePoints = Vec<Point>;

/// Points of one weight matrix.
#[derive(Debug, Clone)]
pub struct WeightPoints {
    /// Scales and spreads; tile formats and steps are still open.
    pub plan: TensorPlan,
    /// Points of every tile, in raster order.
    pub tiles: Vec<TilePoints>,
}

/// Measures the points of a weight matrix `weights` (row-major `[rows, cols]`).
///
/// The predicted loss of an error e is 1/2 sum_ij F_ij e_ij^2; within a tile, F is the tile's
/// information spread in proportion to its rows' and columns'. `unseen` is the share of
/// information that an embedding row gets without having occurred, 0 elsewhere; `raise` multiplies
/// all losses, see [`raises`].
pub fn measure_points(
    weights: &[f32],
    dtype: Dtype,
    sensitivity: &Sensitivity,
    rule: ShardRule,
    granularity: Granularity,
    unseen: f64,
    raise: f64,
) -> WeightPoints {
    let mut info = Information::new(sensitivity, rule, unseen);
    info.tiles.iter_mut().for_each(|f| *f *= raise);
    let plan = plan_scales(&info, weights, dtype, granularity);
    let tiles: Vec<Tile> = (0..plan.tiles.len()).into_par_iter().map(|n| Tile::new(&plan, &info, weights, n)).collect();
    let exponent_bits = exponent_bits(weights, dtype);
    let fp8_bits = fp8_bits(&tiles);
    let points = tiles
        .par_iter()
        .map(|tile| {
            let mut points = tile.integer_points();
            tile.add_fp8_points(&fp8_bits, &mut points);
            let raw = f64::from(dtype.raw_bits());
            let bits =
                tile.weights.iter().map(|&w| exponent_bits[usize::from(dtype.split(dtype.pattern_of(w)).0)] + raw);
            points.push(Point { format: Format::Lossless, step: 0, loss: Loss(0.0), rate: Rate(bits.sum()) });
            points
        })
        .collect();
    WeightPoints { plan, tiles: points }
}

/// Predicted loss of setting a whole weight matrix to zero.
pub fn erasure_loss(weights: &[f32], sensitivity: &Sensitivity, rule: ShardRule) -> Loss {
    let info = Information::new(sensitivity, rule, 0.0);
    let across = info.cols.div_ceil(TILE);
    let block = |by: &[f64], n: usize| by[n * TILE..by.len().min((n + 1) * TILE)].iter().sum::<f64>();
    let rows: Vec<f64> = (0..info.rows.div_ceil(TILE)).map(|n| block(&info.by_row, n)).collect();
    let cols: Vec<f64> = (0..across).map(|n| block(&info.by_col, n)).collect();
    let mut loss = 0.0;
    for (i, line) in weights.chunks_exact(info.cols).enumerate() {
        for (j, &w) in line.iter().enumerate() {
            let density =
                info.tiles[i / TILE * across + j / TILE] / (rows[i / TILE] * cols[j / TILE]).max(f64::MIN_POSITIVE);
            loss += 0.5 * density * info.by_row[i] * info.by_col[j] * f64::from(w).powi(2);
        }
    }
    Loss(loss)
}

/// Factors that raise every weight matrix to `floor` times the median erasure loss.
///
/// The quadratic model sees only small errors. Attention that is saturated or nearly uniform has
/// almost no gradient, so that the model would let its projections be erased, which then changes
/// what the heads attend to. No matrix is taken to be less important, for the energy it carries,
/// than a share of the usual one.
pub fn raises(erasures: &[Loss], floor: f64) -> Vec<f64> {
    let mut sorted: Vec<f64> = erasures.iter().map(|l| l.0).collect();
    sorted.sort_by(f64::total_cmp);
    let least = floor * sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    erasures.iter().map(|l| if l.0 > 0.0 { (least / l.0).clamp(1.0, 1e6) } else { 1.0 }).collect()
}

/// A tile in units of its step at index 0.
struct Tile {
    weights: Vec<f32>,
    /// Weight over its step.
    scaled: Vec<f32>,
    /// Half the Fisher information times the squared step.
    importance: Vec<f32>,
    /// Table class (quarter octaves) at step index 0.
    class: Vec<i32>,
    /// Largest magnitude of `scaled`.
    largest: f32,
}

impl Tile {
    fn new(plan: &TensorPlan, info: &Information, weights: &[f32], n: usize) -> Self {
        let across = plan.tiles_across();
        let (top, left) = (n / across * TILE, n % across * TILE);
        let (rows, cols) = (top..plan.rows.min(top + TILE), left..plan.cols.min(left + TILE));
        let row_sum: f64 = info.by_row[rows.clone()].iter().sum();
        let col_sum: f64 = info.by_col[cols.clone()].iter().sum();
        let density = info.tiles[n] / (row_sum * col_sum).max(f64::MIN_POSITIVE);
        let entry = |v: &[i8], i: usize| v.get(i).map_or(0, |&x| i32::from(x));
        let mut tile = Self { weights: vec![], scaled: vec![], importance: vec![], class: vec![], largest: 0.0 };
        for i in rows {
            for j in cols.clone() {
                let units = entry(&plan.row_scale, i) + entry(&plan.col_scale, j);
                let spread = entry(&plan.row_spread, i) + entry(&plan.col_spread, j);
                let step = scale(plan.step_base + UNIT * units).expect("bases and indices are clamped");
                let weight = weights[i * plan.cols + j];
                let fisher = density * info.by_row[i] * info.by_col[j];
                tile.weights.push(weight);
                tile.scaled.push(weight / step);
                tile.importance.push((0.5 * fisher * f64::from(step).powi(2)) as f32);
                tile.class.push(plan.spread_base + i32::from(plan.tiles[n].spread) + spread - units);
            }
        }
        tile.largest = tile.scaled.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        tile
    }

    /// Smallest step index at which the largest weight does not exceed `limit` steps.
    fn finest(&self, limit: f32) -> i32 {
        (4.0 * (self.largest.max(1e-12) / limit).log2()).ceil().clamp(-400.0, 400.0) as i32
    }

    fn integer_points(&self) -> TilePoints {
        let tables = LevelTables::get();
        let mut points = Vec::with_capacity(STEPS as usize + 8);
        let finest = self.finest(127.4);
        for step in finest..finest + STEPS {
            let size = (step as f32 / 4.0).exp2();
            let inverse = 1.0 / size;
            let (mut error, mut bits, mut low, mut high) = (0.0f32, 0.0f32, 0.0f32, 0.0f32);
            for ((&x, &importance), &class) in self.scaled.iter().zip(&self.importance).zip(&self.class) {
                let scaled = x * inverse;
                let level = scaled.round_ties_even().clamp(-127.0, 127.0);
                error += importance * (scaled - level).powi(2);
                bits += tables.cost(class_of(class - step), level as i32);
                low = low.min(level);
                high = high.max(level);
            }
            points.push(Point {
                format: if low >= -8.0 && high <= 7.0 { Format::Int4 } else { Format::Int8 },
                step: step as i16,
                loss: Loss(f64::from(error) * f64::from(size).powi(2)),
                rate: Rate(f64::from(bits)),
            });
            if low == 0.0 && high == 0.0 {
                break;
            }
        }
        points
    }

    fn fp8_steps(&self) -> impl Iterator<Item = i32> + use<> {
        let finest = self.finest(fp8::MAX / 16.0);
        (0..FP8_SCALES).map(move |n| finest + 4 * n)
    }

    fn add_fp8_points(&self, bits: &[[f64; 16]; FP8_SCALES as usize], points: &mut TilePoints) {
        for (step, bits) in self.fp8_steps().zip(bits) {
            let size = (step as f32 / 4.0).exp2() / 16.0;
            let (mut error, mut rate) = (0.0, 0.0);
            for (&x, &importance) in self.scaled.iter().zip(&self.importance) {
                let code = fp8::encode(x / size);
                error += f64::from(importance * (x - fp8::decode(code) * size).powi(2));
                rate += 4.0 + bits[usize::from(code >> 3 & 15)];
            }
            points.push(Point { format: Format::Fp8, step: step as i16, loss: Loss(error), rate: Rate(rate) });
        }
    }
}

/// Code length of every FP8 exponent at every scale offset, from the tensor's own statistics:
/// the adaptive models of a slice converge to them.
fn fp8_bits(tiles: &[Tile]) -> [[f64; 16]; FP8_SCALES as usize] {
    let mut counts = [[1u64; 16]; FP8_SCALES as usize];
    for tile in tiles {
        for (step, counts) in tile.fp8_steps().zip(&mut counts) {
            let inverse = 16.0 / (step as f32 / 4.0).exp2();
            tile.scaled.iter().for_each(|x| counts[usize::from(fp8::encode(x * inverse) >> 3 & 15)] += 1);
        }
    }
    counts.map(|counts| {
        let total: u64 = counts.iter().sum();
        counts.map(|c| (total as f64 / c as f64).log2())
    })
}

/// Code length of every exponent in a codebook over the whole tensor.
fn exponent_bits(weights: &[f32], dtype: Dtype) -> Vec<f64> {
    let mut counts = [0u64; 256];
    weights.iter().for_each(|&w| counts[usize::from(dtype.split(dtype.pattern_of(w)).0)] += 1);
    counts.iter().map(|&c| (weights.len() as f64 / c.max(1) as f64).log2()).collect()
}
