//! Rate-distortion points of every tile: measured errors of the actual weights, code lengths of
//! the actual tables.

use std::ops::Range;

use rayon::prelude::*;
use waterfill_calibrate::Sensitivity;
use waterfill_codec::entropy::tables::class_of;
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::syntax::float_prefix::{EntropyTables, FloatPrefixCosts, FloatPrefixModel};
use waterfill_codec::syntax::level_costs::LevelCosts;
use waterfill_codec::{Dtype, Format, Loss, Rate, TILE, TensorPlan};

use crate::candidates::Candidates;
use crate::factor::Factor;
use crate::policy::{Granularity, ShardRule};
use crate::scales::{Information, plan_scales};

/// Steps of a tile span this many quarter octaves: from the finest INT8 step to all zeros.
const STEPS: i32 = 36;
/// Tiles that are measured before their points are put away.
const PART: usize = 1 << 14;
/// Quarter octaves by which shared steps may be finer than the largest weight of a tile allows INT4.
const CLIPPED: i32 = 12;
/// Scales of small floating-point formats tried, an octave apart.
const FLOAT_SCALES: i32 = 6;

/// One way to code a tile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Number format; of integer formats the narrowest that holds the levels.
    pub format: Format,
    /// Step index, quarter octaves over the plan's base.
    pub step: i16,
    /// Predicted loss, nats per token.
    pub loss: Loss,
    /// Coded bits of the samples, without the tile's header.
    pub rate: Rate,
}

/// Points of one tile.
type TilePoints = Vec<Point>;

/// Points of one weight matrix.
#[derive(Debug, Clone)]
pub struct WeightPoints {
    /// Scales and spreads; tile formats and steps are still open.
    pub plan: TensorPlan,
    /// Points of every tile.
    pub tiles: Candidates,
    /// What errors cost.
    pub importance: Importance,
}

/// What errors of a weight matrix cost: an error e at (i, j) in tile t loses
/// tiles\[t\] rows\[i\] cols\[j\] e^2 nats per token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Importance {
    /// By tile, in raster order.
    pub tiles: Vec<f32>,
    /// By row.
    pub rows: Vec<f32>,
    /// By column.
    pub cols: Vec<f32>,
    /// Of an embedding, the share of each row's that comes from looking it up, where errors of columns
    /// do not add up; else empty.
    pub lookup: Vec<f32>,
}

impl Importance {
    /// Half the information, each tile's spread over its rows and columns in proportion to theirs.
    fn new(info: &Information) -> Self {
        let across = info.cols.div_ceil(TILE);
        // Rows and columns around one: products of single-precision numbers stay in range.
        let normal = |by: &[f64]| {
            let mean = (by.iter().sum::<f64>() / by.len().max(1) as f64).max(f64::MIN_POSITIVE);
            by.iter().map(|v| (v / mean) as f32).collect::<Vec<f32>>()
        };
        let (rows, cols) = (normal(&info.by_row), normal(&info.by_col));
        let part = |by: &[f32], n: usize| by[n * TILE..by.len().min((n + 1) * TILE)].iter().sum::<f32>();
        let tiles = info.tiles.iter().enumerate().map(|(n, fisher)| {
            let sum = f64::from(part(&rows, n / across)) * f64::from(part(&cols, n % across));
            (0.5 * fisher / sum.max(f64::MIN_POSITIVE)) as f32
        });
        Self { tiles: tiles.collect(), rows, cols, lookup: info.lookup.clone() }
    }

    /// Share of the whole matrix that comes from looking rows up.
    pub fn lookup_share(&self) -> f64 {
        let all: f64 = self.rows.iter().map(|&r| f64::from(r)).sum();
        let part: f64 = self.rows.iter().zip(&self.lookup).map(|(&r, &s)| f64::from(r * s)).sum();
        part / all.max(f64::MIN_POSITIVE)
    }
}

/// How points are measured.
pub struct PointRules<'a> {
    /// How calibration shards combine.
    pub shards: ShardRule,
    /// Which scales carry sensitivities.
    pub granularity: Granularity,
    /// Share of the information that an embedding row gets without having occurred, 0 elsewhere.
    pub unseen: f64,
    /// Factor of all losses, see [`raises`].
    pub raise: f64,
    /// Formats; of small floating-point formats only these are measured.
    pub formats: &'a [Format],
    /// Whether tiles share steps: then some are measured that do not hold a tile's largest weights.
    pub shared: bool,
    /// How errors of a column spread over those after it, where encoding feeds them back.
    pub factor: Option<&'a Factor>,
}

/// Measures the points of a weight matrix `weights` (row-major `[rows, cols]`).
///
/// The predicted loss of an error e is 1/2 sum_ij F_ij e_ij^2; within a tile, F is the tile's
/// information spread in proportion to its rows' and columns'.
pub fn measure_points(weights: &[f32], dtype: Dtype, sensitivity: &Sensitivity, rules: &PointRules) -> WeightPoints {
    let mut info = Information::new(sensitivity, rules.shards, rules.unseen);
    info.tiles.iter_mut().for_each(|f| *f *= rules.raise);
    // What errors cost is kept without feedback: encoding factors anew, by the price of a bit.
    let importance = rules.factor.map(|_| Importance::new(&info));
    if let Some(factor) = rules.factor {
        info.feed_back(factor);
    }
    let importance = importance.unwrap_or_else(|| Importance::new(&info));
    let plan = plan_scales(&info, weights, dtype, rules.granularity);
    let pattern_costs = FloatPrefixCosts::new(FloatPrefixModel::fixed(dtype));
    let floats: Vec<(Format, FloatPrefixCosts)> = rules
        .formats
        .iter()
        .filter(|f| f.minifloat().is_some())
        .map(|&format| (format, FloatPrefixCosts::new(EntropyTables::codes(format))))
        .collect();
    let points = |n: usize| {
        let tile = Tile::new(&plan, &info, weights, n);
        let mut points = tile.integer_points();
        if rules.shared {
            tile.add_clipped_points(&mut points);
        }
        floats.iter().for_each(|(format, costs)| tile.add_float_points(*format, costs, rules.shared, &mut points));
        let bits: f64 = tile.pattern_bits(dtype, &pattern_costs, plan.step_base >> 1);
        points.push(Point { format: Format::Lossless, step: 0, loss: Loss(0.0), rate: Rate(bits) });
        points
    };
    let mut tiles = Candidates::default();
    for start in (0..plan.tiles.len()).step_by(PART) {
        let part = start..plan.tiles.len().min(start + PART);
        part.into_par_iter().map(points).collect::<Vec<TilePoints>>().into_iter().for_each(|t| tiles.push(t));
    }
    WeightPoints { plan, tiles, importance }
}

/// Predicted loss of setting a whole weight matrix to zero; `read` gives the values of some rows.
///
/// # Errors
/// Those of `read`.
pub fn erasure_loss<E>(
    read: impl Fn(Range<usize>) -> std::result::Result<Vec<f32>, E>,
    sensitivity: &Sensitivity,
    rule: ShardRule,
) -> std::result::Result<Loss, E> {
    let info = Information::new(sensitivity, rule, 0.0);
    let across = info.cols.div_ceil(TILE);
    let block = |by: &[f64], n: usize| by[n * TILE..by.len().min((n + 1) * TILE)].iter().sum::<f64>();
    let rows: Vec<f64> = (0..info.rows.div_ceil(TILE)).map(|n| block(&info.by_row, n)).collect();
    let cols: Vec<f64> = (0..across).map(|n| block(&info.by_col, n)).collect();
    let mut loss = 0.0;
    for top in (0..info.rows).step_by(TILE) {
        let weights = read(top..info.rows.min(top + TILE))?;
        for (i, line) in weights.chunks_exact(info.cols).enumerate().map(|(i, line)| (top + i, line)) {
            for (j, &w) in line.iter().enumerate() {
                let energy = (rows[i / TILE] * cols[j / TILE]).max(f64::MIN_POSITIVE);
                let density = info.tiles[i / TILE * across + j / TILE] / energy;
                loss += 0.5 * density * info.by_row[i] * info.by_col[j] * f64::from(w).powi(2);
            }
        }
    }
    Ok(Loss(loss))
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
    /// Spread in steps at index 0, quarter octaves.
    class: Vec<i32>,
    /// Quarter octaves of row and column scales.
    units: Vec<i32>,
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
        let mut tile =
            Self { weights: vec![], scaled: vec![], importance: vec![], class: vec![], units: vec![], largest: 0.0 };
        for i in rows {
            for j in cols.clone() {
                let units = entry(&plan.row_scale, i) + entry(&plan.col_scale, j);
                let sigma = entry(&plan.row_sigma, i) + entry(&plan.col_sigma, j);
                let step = scale(plan.step_base + UNIT * units);
                let weight = weights[i * plan.cols + j];
                let fisher = density * info.by_row[i] * info.by_col[j];
                tile.weights.push(weight);
                tile.scaled.push(weight / step);
                tile.importance.push((0.5 * fisher * f64::from(step).powi(2)) as f32);
                tile.units.push(units);
                tile.class.push(plan.sigma_base + i32::from(plan.tiles[n].sigma) + sigma - units);
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
        let costs = LevelCosts::get();
        let mut points = Vec::with_capacity(STEPS as usize + 8);
        let finest = self.finest(127.4);
        for step in finest..finest + STEPS {
            let (point, zero) = self.integer_point(costs, step, (-127.0, 127.0));
            points.push(point);
            if zero {
                break;
            }
        }
        points
    }

    /// Point at a step with levels cut to a range, and whether all of them are zero.
    fn integer_point(&self, costs: &LevelCosts, step: i32, (least, most): (f32, f32)) -> (Point, bool) {
        let size = (step as f32 / 4.0).exp2();
        let inverse = 1.0 / size;
        let (mut error, mut bits, mut low, mut high) = (0.0f32, 0.0f32, 0.0f32, 0.0f32);
        for ((&x, &importance), &class) in self.scaled.iter().zip(&self.importance).zip(&self.class) {
            let scaled = x * inverse;
            let level = scaled.round_ties_even().clamp(least, most);
            error += importance * (scaled - level).powi(2);
            bits += costs.cost(class_of(class - step), level as i32);
            low = low.min(level);
            high = high.max(level);
        }
        let point = Point {
            format: narrowest(low as i32, high as i32),
            step: step as i16,
            loss: Loss(f64::from(error) * f64::from(size).powi(2)),
            rate: Rate(f64::from(bits)),
        };
        (point, low == 0.0 && high == 0.0)
    }

    /// Points of INT4 whose steps are too fine for the largest weights, which tiles beside this one may want.
    fn add_clipped_points(&self, points: &mut TilePoints) {
        let held = self.finest(7.49);
        let clipped = (held - CLIPPED..held).map(|step| self.integer_point(LevelCosts::get(), step, (-8.0, 7.0)).0);
        points.extend(clipped.map(|point| Point { format: Format::Int4, ..point }));
    }

    /// Points of a small floating-point format, an octave apart from the finest scale that does not
    /// saturate.
    fn add_float_points(&self, format: Format, costs: &FloatPrefixCosts, shared: bool, points: &mut TilePoints) {
        let Some(kind) = format.minifloat() else { return };
        let shift = kind.scale_shift() / UNIT;
        let finest = self.finest(kind.max() * (-shift as f32 / 4.0).exp2());
        // Scales that several tiles can have lie on one grid, and reach further.
        let (finest, count) =
            if shared { ((finest + 3).div_euclid(4) * 4, 2 * FLOAT_SCALES) } else { (finest, FLOAT_SCALES) };
        for step in (0..count).map(|n| finest + 4 * n) {
            let size = ((step - shift) as f32 / 4.0).exp2();
            let (mut error, mut rate) = (0.0, 0.0);
            for ((&x, &importance), &class) in self.scaled.iter().zip(&self.importance).zip(&self.class) {
                let code = kind.encode(x / size);
                error += f64::from(importance * (x - kind.decode(code) * size).powi(2));
                let magnitude = u32::from(code) & ((1 << kind.magnitude_bits()) - 1);
                rate += f64::from(costs.bits(class - step + shift, magnitude));
            }
            if format == Format::Fp4 {
                rate += self.scaled.len() as f64;
            }
            points.push(Point { format, step: step as i16, loss: Loss(error), rate: Rate(rate) });
        }
    }

    /// Bits of the original patterns; `base` is the base step's index in quarter octaves.
    fn pattern_bits(&self, dtype: Dtype, costs: &FloatPrefixCosts, base: i32) -> f64 {
        let sigmas = self.class.iter().zip(&self.units).map(|(class, units)| class + units + base);
        let heads = self.weights.iter().map(|&w| dtype.split(dtype.pattern_of(w)).0);
        sigmas.zip(heads).map(|(sigma, head)| f64::from(costs.bits(sigma, head))).sum()
    }
}

/// Narrowest integer format whose range holds the levels.
fn narrowest(low: i32, high: i32) -> Format {
    let fits = |f: &Format| f.level_range().is_some_and(|(least, most)| least <= low && high <= most);
    [Format::Int2, Format::Int3, Format::Int4].into_iter().find(fits).unwrap_or(Format::Int8)
}
