//! Rotary positions (Su et al. 2021) and their scaling for long contexts.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

use crate::config::ModelConfig;

/// What is done to rotary frequencies for contexts beyond the pre-trained one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All are divided by the factor (Chen et al. 2023).
    Linear(f64),
    /// Llama 3.1: low frequencies are divided by the factor, high ones kept, those between blended.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Turns over the original context below which a frequency is low.
        low: f64,
        /// Turns above which it is high.
        high: f64,
        /// Positions of pre-training.
        original: f64,
    },
}

/// `rope_scaling` or `rope_parameters` of `config.json`.
#[derive(Deserialize)]
pub(crate) struct Scaling {
    /// Older files say `type`.
    #[serde(alias = "type")]
    rope_type: Option<String>,
    pub rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Scaling {
    /// The scaling, or what is wrong with it.
    pub fn resolve(&self) -> std::result::Result<RopeScaling, String> {
        let kind = self.rope_type.as_deref().unwrap_or("default");
        let positive = |key: &str, value: Option<f64>| match value {
            Some(v) if v > 0.0 && v.is_finite() => Ok(v),
            other => Err(format!("rope scaling {kind:?} with {key} {other:?}, expected a positive number")),
        };
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear(positive("factor", self.factor)?)),
            "llama3" => {
                let (low, high) = (
                    positive("low_freq_factor", self.low_freq_factor)?,
                    positive("high_freq_factor", self.high_freq_factor)?,
                );
                if low >= high {
                    return Err(format!("rope scaling with low_freq_factor {low}, expected less than {high}"));
                }
                let original = positive("original_max_position_embeddings", self.original_max_position_embeddings)?;
                Ok(RopeScaling::Llama3 { factor: positive("factor", self.factor)?, low, high, original })
            }
            other => Err(format!("rope scaling {other:?}, supported: default, linear, llama3")),
        }
    }
}

/// Positions over one radian, for each pair of a head's entries.
fn periods(config: &ModelConfig) -> Vec<f64> {
    let period = |i: usize| {
        let plain = config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64);
        match config.rope_scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear(factor) => plain * factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let turns = original / (2.0 * std::f64::consts::PI * plain);
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                plain / (keep + (1.0 - keep) / factor)
            }
        }
    };
    (0..config.head_dim / 2).map(period).collect()
}

/// Tables `[positions, head_dim / 2]` up to some position.
#[derive(Clone)]
pub(crate) struct Tables {
    positions: usize,
    pub cos: Tensor,
    pub sin: Tensor,
    /// The same for the kernels.
    pub plain: [Arc<Vec<f32>>; 2],
}

/// Rotary positions of a model, shared by its blocks; tables grow with the contexts that are used.
#[derive(Clone)]
pub struct Rotary {
    periods: Arc<Vec<f64>>,
    dtype: DType,
    device: Device,
    tables: Arc<Mutex<Option<Tables>>>,
}

impl Rotary {
    /// Positions of a model, with the element type and device of `like`.
    pub fn new(config: &ModelConfig, like: &Tensor) -> Self {
        let periods = Arc::new(periods(config));
        Self { periods, dtype: like.dtype(), device: like.device().clone(), tables: Arc::default() }
    }

    /// Tables of at least the first `positions` positions.
    pub(crate) fn tables(&self, positions: usize) -> Result<Tables> {
        let mut tables = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*tables {
            Some(found) if found.positions >= positions => Ok(found.clone()),
            _ => {
                let made = self.build(positions.next_multiple_of(256))?;
                *tables = Some(made.clone());
                Ok(made)
            }
        }
    }

    fn build(&self, positions: usize) -> Result<Tables> {
        let angles: Vec<f64> =
            (0..positions).flat_map(|p| self.periods.iter().map(move |period| p as f64 / period)).collect();
        let table = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f64> = angles.iter().map(|&a| f(a)).collect();
            Tensor::from_vec(values, (positions, self.periods.len()), &Device::Cpu)?
                .to_dtype(self.dtype)?
                .to_device(&self.device)
        };
        let plain = |f: fn(f64) -> f64| Arc::new(angles.iter().map(|&a| f(a) as f32).collect());
        Ok(Tables {
            positions,
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
            plain: [plain(f64::cos), plain(f64::sin)],
        })
    }
}
