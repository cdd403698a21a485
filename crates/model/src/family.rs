//! Families of models by the architecture that `config.json` names.

use std::path::Path;

use serde::Deserialize;

use crate::error::{ModelError, Result};

/// A family whose models can be calibrated: one block structure, four sets of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3.
    Llama,
    /// Mistral: attention may look at a window of keys.
    Mistral,
    /// Qwen 2 and 2.5: q, k and v have biases.
    Qwen2,
    /// Qwen 3: each head of queries and keys passes an RMSNorm.
    Qwen3,
}

/// Architectures that can be calibrated, as `config.json` names them.
pub const ARCHITECTURES: [&str; 4] = [
    Family::Llama.architecture(),
    Family::Mistral.architecture(),
    Family::Qwen2.architecture(),
    Family::Qwen3.architecture(),
];

/// Architectures that can be evaluated but not calibrated ([`crate::other`] runs them).
pub(crate) const EVALUATED_ONLY: [&str; 18] = [
    "DeepseekV2ForCausalLM",
    "FalconForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Glm4ForCausalLM",
    "HeliumForCausalLM",
    "MixtralForCausalLM",
    "OlmoForCausalLM",
    "Olmo2ForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "RecurrentGemmaForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
];

impl Family {
    /// All families.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// Its name in `architectures` of `config.json`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The family of an architecture; `None` when it cannot be calibrated.
    pub fn of(architecture: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.architecture() == architecture)
    }
}

/// Names in `architectures` of the `config.json` in `dir`.
///
/// # Errors
/// A missing or malformed file.
pub fn architectures(dir: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Names {
        #[serde(default)]
        architectures: Vec<String>,
    }
    let path = dir.join("config.json");
    let unsupported = |reason: String| ModelError::Unsupported { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|e| unsupported(e.to_string()))?;
    Ok(serde_json::from_str::<Names>(&text).map_err(|e| unsupported(e.to_string()))?.architectures)
}
