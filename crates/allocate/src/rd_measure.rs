//! Measures the rate-distortion candidates of every tile: errors of the actual weights, code lengths of the actual tables.

use rayon::prelude::*;
use waterfill_calibrate::Sensitivity;
use waterfill_checkpoint::packed::PackedFormat;
use waterfill_codec::entropy::tables::class_of;
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::syntax::bit_shift::MAX_CODE_BITS;
use waterfill_codec::syntax::float_prefix::EntropyTables;
use waterfill_codec::syntax::float_prefix::{FloatPrefixCosts, FloatPrefixModel};
use waterfill_codec::syntax::level_costs::LevelCosts;
use waterfill_codec::{BitShiftTrellis, Dtype, Format, Loss, Rate, TILE, TensorPlan};
use waterfill_quadratic::LdlFactor;

use crate::information::{FoldRule, Information};
use crate::planes::{Planes, TrellisStep};
use crate::rd_candidate::{Candidates, RdCandidate, TensorCandidates};
use crate::scales::{ScaleVectors, plan_scales};

/// Steps of a tile span this many quarter octaves: from the finest INT8 step to all zeros.
const STEPS: i32 = 36;
/// Tiles that are measured before their candidates are put away.
const PART: usize = 1 << 14;
/// Quarter octaves by which shared steps may be finer than the largest weight of a tile allows INT4.
const CLIPPED: i32 = 12;
/// Weights count as this many steps at most: squared errors stay finite in single precision.
const MOST_STEPS: f32 = 1e15;
/// Scales of small floating-point formats tried, an octave apart.
const FLOAT_SCALES: i32 = 6;

/// How candidates are measured.
pub struct MeasureOptions<'a> {
    /// How calibration folds combine.
    pub fold_rule: FoldRule,
    /// Scale vectors of the matrix.
    pub scale_vectors: ScaleVectors,
    /// Share of the matrix' information that is added to every row: rows of tokens that calibration has not seen are not
    /// free. 0 of matrices whose rows are not tokens.
    pub unseen: f64,
    /// Multiplies all losses, see [`crate::sensitivity_floor`].
    pub loss_factor: f64,
    /// Formats that may be used; small floating-point formats are measured only if they are among these.
    pub formats: &'a [Format],
    /// What candidates hold where they are planes of a fixed width, each with the step that loses least.
    pub planes: Option<Planes>,
    /// Whether scales of rows and columns follow their spread, whatever errors cost, as suits levels of a fixed width.
    pub spread_scales: bool,
    /// Whether tiles share steps: then INT4 steps are measured too that clip a tile's largest weights.
    pub shared_steps: bool,
    /// How errors of a column spread over those after it, where quantization feeds them back.
    pub ldl: Option<&'a LdlFactor>,
}

/// Measures the candidates of every tile of a matrix: `weights` row-major `[rows, cols]`, exact values of `dtype`.
///
/// The predicted loss of errors `e` is `1/2 Σ_ij F_ij e_ij²` nats per token, with the tile's Fisher information spread
/// over its entries in proportion to that of their rows and columns; with error feedback `F_ij` falls by `D_j / H_jj`
/// ([`LdlFactor::share`]). Rates are code lengths of the codec's static tables.
///
/// # Panics
/// When the sensitivity is of another shape than `weights`.
pub fn measure_candidates(
    weights: &[f32],
    dtype: Dtype,
    sensitivity: &Sensitivity,
    options: &MeasureOptions,
) -> TensorCandidates {
    let mut info = Information::new(sensitivity, options.fold_rule, options.unseen);
    info.tiles.iter_mut().for_each(|f| *f *= options.loss_factor);
    // Kept without feedback: quantization factors the Hessian anew, with damping by lambda.
    let loss_weights = info.loss_weights();
    if let Some(ldl) = options.ldl {
        info.apply_feedback(ldl);
    }
    let plan = plan_scales(&info, weights, dtype, options.scale_vectors, options.spread_scales);
    let pattern_costs = FloatPrefixCosts::new(FloatPrefixModel::fixed(dtype));
    let floats: Vec<(Format, FloatPrefixCosts)> = options
        .formats
        .iter()
        .filter(|f| f.minifloat().is_some())
        .map(|&format| (format, FloatPrefixCosts::new(EntropyTables::codes(format))))
        .collect();
    let shared = options.shared_steps;
    let measure = |n: usize| {
        let tile = Tile::new(&plan, &info, weights, n);
        let mut candidates = match options.planes {
            None => tile.integer_candidates(shared),
            Some(Planes::Uniform) => tile.plane_candidates(),
            Some(Planes::Trellis(trellis)) => tile.trellis_candidates(trellis),
        };
        if shared {
            tile.add_clipped_candidates(&mut candidates);
        }
        floats.iter().for_each(|(format, costs)| tile.add_float_candidates(*format, costs, shared, &mut candidates));
        let bits: f64 = tile.pattern_bits(dtype, &pattern_costs, plan.step_base >> 1);
        let width = dtype.bits() as u8;
        candidates.push(RdCandidate { format: Format::Lossless, step: 0, width, loss: Loss(0.0), rate: Rate(bits) });
        candidates
    };
    let mut tiles = Candidates::default();
    for start in (0..plan.tiles.len()).step_by(PART) {
        let part = start..plan.tiles.len().min(start + PART);
        part.into_par_iter().map(measure).collect::<Vec<Vec<RdCandidate>>>().into_iter().for_each(|t| tiles.push(t));
    }
    TensorCandidates { plan, tiles, loss_weights }
}

/// A tile in units of its step at index 0.
struct Tile<'a> {
    plan: &'a TensorPlan,
    /// Its index.
    n: usize,
    weights: Vec<f32>,
    /// Weight over its step.
    scaled: Vec<f32>,
    /// Half the Fisher information times the squared step.
    half_fisher: Vec<f32>,
    /// Spread in steps at index 0, quarter octaves.
    class: Vec<i32>,
    /// Quarter octaves of row and column scales.
    units: Vec<i32>,
    /// Largest magnitude of `scaled`.
    largest: f32,
}

impl<'a> Tile<'a> {
    fn new(plan: &'a TensorPlan, info: &Information, weights: &[f32], n: usize) -> Self {
        let across = plan.tiles_across();
        let (top, left) = (n / across * TILE, n % across * TILE);
        let (rows, cols) = (top..plan.rows.min(top + TILE), left..plan.cols.min(left + TILE));
        let row_sum: f64 = info.by_row[rows.clone()].iter().sum();
        let col_sum: f64 = info.by_col[cols.clone()].iter().sum();
        let density = info.tiles[n] / (row_sum * col_sum).max(f64::MIN_POSITIVE);
        let entry = |v: &[i8], i: usize| v.get(i).map_or(0, |&x| i32::from(x));
        let (scaled, half_fisher, class, units) = Default::default();
        let mut tile = Self { plan, n, weights: vec![], scaled, half_fisher, class, units, largest: 0.0 };
        for i in rows {
            for j in cols.clone() {
                let units = entry(&plan.row_scale, i) + entry(&plan.col_scale, j);
                let sigma = entry(&plan.row_sigma, i) + entry(&plan.col_sigma, j);
                let step = scale(plan.step_base + UNIT * units);
                let weight = weights[i * plan.cols + j];
                let fisher = density * info.by_row[i] * info.by_col[j];
                tile.weights.push(weight);
                tile.scaled.push((weight / step).clamp(-MOST_STEPS, MOST_STEPS));
                tile.half_fisher.push((0.5 * fisher * f64::from(step).powi(2)) as f32);
                tile.units.push(units);
                tile.class.push(plan.sigma_base + i32::from(plan.tiles[n].sigma) + sigma - units);
            }
        }
        tile.largest = tile.scaled.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        tile
    }

    /// Smallest step index of a format at which the largest weight does not exceed `limit` steps, of those that the
    /// format can have; of the scale grid's ends, where weights are beyond them, the nearest.
    fn finest(&self, format: Format, limit: f32) -> i32 {
        let steps = self.plan.steps(self.n, format);
        let wanted = (4.0 * (self.largest.max(f32::MIN_POSITIVE) / limit).log2()).ceil() as i32;
        wanted.min(*steps.end()).max(*steps.start())
    }

    /// Candidates of growing steps up to the first that makes all levels zero. A tile of zeros has one candidate, at the
    /// base step, or at the finest of all where `shared` steps are chosen from what all tiles have.
    fn integer_candidates(&self, shared: bool) -> Vec<RdCandidate> {
        let costs = LevelCosts::get();
        let mut candidates = Vec::with_capacity(STEPS as usize + 8);
        let finest = match self.largest {
            0.0 if !shared => 0,
            _ => self.finest(Format::Int8, 127.4),
        };
        for step in finest..=(finest + STEPS - 1).min(*self.plan.steps(self.n, Format::Int8).end()) {
            let (candidate, zero) = self.integer_candidate(costs, step, (-127.0, 127.0));
            candidates.push(candidate);
            if zero {
                break;
            }
        }
        candidates
    }

    /// Candidate at a step with levels cut to a range, and whether all of them are zero.
    fn integer_candidate(&self, costs: &LevelCosts, step: i32, (least, most): (f32, f32)) -> (RdCandidate, bool) {
        let size = (step as f32 / 4.0).exp2();
        let inverse = 1.0 / size;
        let (mut error, mut bits, mut low, mut high) = (0.0f32, 0.0f32, 0.0f32, 0.0f32);
        for ((&x, &half_fisher), &class) in self.scaled.iter().zip(&self.half_fisher).zip(&self.class) {
            let scaled = x * inverse;
            let level = scaled.round_ties_even().clamp(least, most);
            error += half_fisher * (scaled - level).powi(2);
            bits += costs.cost(class_of(class - step), level as i32);
            low = low.min(level);
            high = high.max(level);
        }
        let candidate = RdCandidate {
            format: narrowest(low as i32, high as i32),
            step: step as i16,
            width: PackedFormat::of_range(low as i32, high as i32).level_bits().unwrap_or(8) as u8,
            loss: Loss(f64::from(error) * f64::from(size).powi(2)),
            rate: Rate(f64::from(bits)),
        };
        (candidate, low == 0.0 && high == 0.0)
    }

    /// For each width of a plane the step that loses least: what levels are clipped to costs less than coarser steps for all.
    fn plane_candidates(&self) -> Vec<RdCandidate> {
        let costs = LevelCosts::get();
        let best = |format: &PackedFormat| {
            let bits = format.level_bits()?;
            let (least, most) = format.level_range()?;
            let held = match self.largest {
                0.0 => 0,
                _ => self.finest(Format::Int8, most as f32 + 0.4),
            };
            let first = (held - CLIPPED).max(*self.plan.steps(self.n, Format::Int8).start());
            let range = (least as f32, most as f32);
            let candidates = (first..=held).map(|step| self.integer_candidate(costs, step, range).0);
            let best = candidates.min_by(|a, b| a.loss.0.total_cmp(&b.loss.0))?;
            Some(RdCandidate { width: bits as u8, format: narrowest(least, most), ..best })
        };
        PackedFormat::INTEGERS.iter().filter_map(best).collect()
    }

    /// For each number of bits the step that loses least.
    fn trellis_candidates(&self, trellis: BitShiftTrellis) -> Vec<RdCandidate> {
        let steps = TrellisStep::measure(&self.scaled, &self.half_fisher, &self.plan.steps(self.n, Format::Int8));
        let candidate = |bits: u8| {
            let (step, loss) = TrellisStep::best(&steps, trellis, bits)?;
            let format = narrowest(-1 << (bits - 1), (1 << (bits - 1)) - 1);
            let rate = Rate(f64::from(bits) * self.scaled.len() as f64);
            Some(RdCandidate { format, step: step as i16, width: bits, loss: Loss(loss), rate })
        };
        (1..=MAX_CODE_BITS).filter_map(candidate).collect()
    }

    /// INT4 with steps too fine for the tile's largest weights, which other tiles of the same step may want.
    fn add_clipped_candidates(&self, candidates: &mut Vec<RdCandidate>) {
        let held = self.finest(Format::Int4, 7.49);
        let first = (held - CLIPPED).max(*self.plan.steps(self.n, Format::Int4).start());
        let clipped = (first..held).map(|step| self.integer_candidate(LevelCosts::get(), step, (-8.0, 7.0)).0);
        candidates.extend(clipped.map(|candidate| RdCandidate { format: Format::Int4, ..candidate }));
    }

    /// A small floating-point format with scales an octave apart from the finest scale that does not
    /// saturate.
    fn add_float_candidates(
        &self,
        format: Format,
        costs: &FloatPrefixCosts,
        shared: bool,
        candidates: &mut Vec<RdCandidate>,
    ) {
        let Some(kind) = format.minifloat() else { return };
        let shift = kind.scale_shift() / UNIT;
        let finest = self.finest(format, kind.max() * (-shift as f32 / 4.0).exp2());
        // Scales that several tiles can have lie on one grid, and reach further.
        let (finest, count) =
            if shared { ((finest + 3).div_euclid(4) * 4, 2 * FLOAT_SCALES) } else { (finest, FLOAT_SCALES) };
        let most = *self.plan.steps(self.n, format).end();
        for step in (0..count).map(|n| finest + 4 * n).filter(|&step| step <= most) {
            let size = ((step - shift) as f32 / 4.0).exp2();
            let (mut error, mut rate) = (0.0, 0.0);
            for ((&x, &half_fisher), &class) in self.scaled.iter().zip(&self.half_fisher).zip(&self.class) {
                let code = kind.encode(x / size);
                error += f64::from(half_fisher * (x - kind.decode(code) * size).powi(2));
                let magnitude = u32::from(code) & ((1 << kind.magnitude_bits()) - 1);
                rate += f64::from(costs.bits(class - step + shift, magnitude));
            }
            if format == Format::Fp4 {
                rate += self.scaled.len() as f64;
            }
            let width = format.resident_bits(self.plan.dtype) as u8;
            candidates.push(RdCandidate { format, step: step as i16, width, loss: Loss(error), rate: Rate(rate) });
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
