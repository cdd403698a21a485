//! Which transforms of a tile deserve a closer look: all are tried, with rate and distortion from a model
//! that is a few sums, and those of the lowest cost are searched with the codec's own code lengths.

use std::sync::OnceLock;

use waterfill_codec::entropy::tables::{CLASSES, UNIT_CLASS, class_of};
use waterfill_codec::recon::transform::{Basis, basis, forward_along, forward_down};
use waterfill_codec::syntax::level_costs::LevelCosts;
use waterfill_codec::syntax::tile_plan::{BANDS, band};
use waterfill_codec::{Kernel, TILE, TensorPlan, Transform};

use super::input::RdoInput;
use super::tools::Tool;

/// Transforms that are searched after the model has ranked all.
const KEPT: usize = 3;

/// A transform of a tile of residuals.
pub struct Transformed {
    pub transform: Transform,
    pub coefficients: [f32; 256],
    /// Energy of the coefficients over what their spreads say, each one's mean.
    pub energy: f32,
}

/// Weights of error and bits in the modelled cost.
pub struct CostModel {
    /// Nats for a squared step.
    pub error: f32,
    /// Nats for a bit.
    pub bit: f32,
    /// Whether levels are chosen by rate too.
    pub rdoq: bool,
    /// Whether a tile's spread follows its energy.
    pub sigma: bool,
}

struct Entry {
    transform: Transform,
    /// Index of the kernel along rows, and of the basis down columns.
    along: usize,
    down: Option<Basis>,
    bands: [u8; 256],
}

/// The transforms that tools allow.
pub struct Transforms {
    /// Bases along rows, each computed once for all bases down columns.
    alongs: Vec<Option<Basis>>,
    entries: Vec<Entry>,
}

impl Transforms {
    /// Everything that the tools allow but the identity.
    pub fn new(plan: &TensorPlan, input: &RdoInput) -> Self {
        let of = [(Tool::Dct, Kernel::Dct), (Tool::Dst, Kernel::Dst), (Tool::Hadamard, Kernel::Hadamard)];
        let used = of.into_iter().filter(|(t, _)| input.tools.contains(t)).map(|(_, k)| k);
        let kernels: Vec<Kernel> = std::iter::once(Kernel::Identity).chain(used).collect();
        let sides: &[u8] = if input.tools.contains(&Tool::Split) { &[16, 8, 4] } else { &[16] };
        let mut this = Self { alongs: vec![None], entries: Vec::new() };
        let kept = |kernel, side| (kernel != Kernel::Identity).then(|| *basis(kernel, side));
        for &side in sides {
            for &along in &kernels {
                if along != Kernel::Identity {
                    this.alongs.push(kept(along, side));
                }
                let index = if along == Kernel::Identity { 0 } else { this.alongs.len() - 1 };
                for &down in &kernels {
                    this.push(Transform { down, along, side }, index, kept(down, side));
                }
            }
        }
        if let Some(learned) = plan.parameters.learned.as_deref() {
            this.push(Transform { down: Kernel::Learned, along: Kernel::Identity, side: 16 }, 0, Some(*learned));
        }
        this
    }

    fn push(&mut self, transform: Transform, along: usize, down: Option<Basis>) {
        if !transform.is_identity() {
            let bands = std::array::from_fn(|k| band(transform, k / TILE, k % TILE) as u8);
            self.entries.push(Entry { transform, along, down, bands });
        }
    }

    /// True when no tile can be transformed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The transforms of `residual` of lowest modelled cost, in no order. `spreads` are those of bands, in
    /// quarter octaves over the quantizer's step.
    #[inline(always)]
    pub fn best(&self, residual: &[f32; 256], sigmas: &[i32; BANDS], cost_model: &CostModel) -> Vec<Transformed> {
        let rates = rate_models();
        let inverse = sigmas.map(|s| (-s as f32 / 2.0).exp2());
        let mut best: Vec<(f32, Transformed)> = Vec::with_capacity(KEPT + 1);
        let mut along = (0, *residual);
        for entry in &self.entries {
            if entry.along != along.0 {
                let from = &self.alongs[entry.along];
                along = (entry.along, from.as_ref().map_or(*residual, |b| forward_along(b, residual)));
            }
            let coefficients = entry.down.as_ref().map_or(along.1, |b| forward_down(b, &along.1));
            let mut energy = 0.0;
            for (c, &band) in coefficients.iter().zip(&entry.bands) {
                energy += c * c * inverse[usize::from(band)];
            }
            energy /= 256.0;
            let change = if cost_model.sigma { sigma_change(energy) } else { 0 };
            let models = sigmas.map(|s| rates[class_of(s + i32::from(change))]);
            let cost = modelled(&coefficients, &entry.bands, &models, cost_model);
            if best.len() < KEPT || best.iter().any(|b| cost < b.0) {
                if best.len() == KEPT {
                    let worst = (0..KEPT).max_by(|&a, &b| best[a].0.total_cmp(&best[b].0)).expect("some are kept");
                    best.swap_remove(worst);
                }
                best.push((cost, Transformed { transform: entry.transform, coefficients, energy }));
            }
        }
        best.into_iter().map(|b| b.1).collect()
    }
}

/// By how much a tile's spread changes where its energy is `energy` times what the spread says.
pub fn sigma_change(energy: f32) -> i16 {
    (2.0 * energy.max(1e-6).log2()).round() as i16
}

/// Cost of the coefficients' levels: bits of a level grow with its square, as a Gaussian's do, so that the
/// best level is near the coefficient divided by one and the cost of its square.
#[inline(always)]
fn modelled(coefficients: &[f32; 256], bands: &[u8; 256], models: &[[f32; 2]; BANDS], cost_model: &CostModel) -> f32 {
    let ratio = if cost_model.rdoq { cost_model.bit / cost_model.error.max(1e-30) } else { 0.0 };
    let (mut errors, mut bits) = ([0.0f32; 16], [0.0f32; 16]);
    for (chunk, bands) in coefficients.chunks_exact(16).zip(bands.chunks_exact(16)) {
        for k in 0..16 {
            let [zero, square] = models[usize::from(bands[k])];
            let shrunk = chunk[k] / (1.0 + ratio * square);
            // Adding and taking away 3 * 2^22 rounds to the nearest.
            let level = (shrunk + 12_582_912.0) - 12_582_912.0;
            errors[k] += (chunk[k] - level).powi(2);
            bits[k] += zero + square * level * level;
        }
    }
    cost_model.error * errors.iter().sum::<f32>() + cost_model.bit * bits.iter().sum::<f32>()
}

/// For every class, bits of a level of zero and what a squared level adds.
fn rate_models() -> &'static [[f32; 2]; CLASSES] {
    static MODELS: OnceLock<[[f32; 2]; CLASSES]> = OnceLock::new();
    MODELS.get_or_init(|| {
        let costs = LevelCosts::get();
        std::array::from_fn(|class| {
            let sigma = ((class as i32 - UNIT_CLASS) as f32 / 4.0).exp2();
            let level = (1.5 * sigma).round().clamp(1.0, 127.0);
            let zero = costs.cost(class, 0);
            [zero, (costs.cost(class, level as i32) - zero) / (level * level)]
        })
    })
}
