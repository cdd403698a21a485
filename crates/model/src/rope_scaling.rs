//! `rope_scaling` of `config.json`: how rotary frequencies change for contexts beyond the pre-trained one.

use serde::Deserialize;

/// Change of the rotary frequencies for contexts beyond the pre-trained one.
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
    rope_type: Option<String>,
    /// What older files say; files that were read as such and saved again have both.
    #[serde(rename = "type")]
    older_type: Option<String>,
    pub rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Scaling {
    /// The scaling, or what is wrong with it.
    pub fn resolve(&self) -> std::result::Result<RopeScaling, String> {
        let kind = self.rope_type.as_deref().or(self.older_type.as_deref()).unwrap_or("default");
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
