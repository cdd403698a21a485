//! Rotary positions (Su et al. 2021) and their scaling for long contexts.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor};

use crate::config::ModelConfig;
use crate::rope_scaling::RopeScaling;

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
