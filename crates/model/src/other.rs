//! Architectures that can be evaluated but not calibrated: candle-transformers' own models, whole in
//! memory. They return logits of the last position only, so a text goes through them token by
//! token, with their caches of keys and values.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models as m;
use serde::de::DeserializeOwned;
use waterfill_checkpoint::Checkpoint;

use crate::error::{ModelError, Result};
use crate::family::architectures;
use crate::generate::Reader;

/// Logits after `ids` `[rows, tokens]` that begin at a position.
type Step = Box<dyn FnMut(&Tensor, usize) -> CandleResult<Tensor>>;

/// Makes a model from the text of its `config.json` and its weights.
type Make = fn(&str, VarBuilder) -> CandleResult<Step>;

fn parse<C: DeserializeOwned>(text: &str) -> CandleResult<C> {
    serde_json::from_str(text).map_err(|e| candle_core::Error::Msg(format!("config.json: {e}")))
}

/// A model whose `new` takes configuration and weights, and `forward` ids and a position.
macro_rules! usual {
    ($config:ty, $model:ty) => {
        |text, weights| {
            let mut model = <$model>::new(&parse::<$config>(text)?, weights)?;
            Ok(Box::new(move |ids, position| model.forward(ids, position)))
        }
    };
}

/// As above, where `new` wants to know about flash attention first.
macro_rules! gemma {
    ($config:ty, $model:ty) => {
        |text, weights| {
            let mut model = <$model>::new(false, &parse::<$config>(text)?, weights)?;
            Ok(Box::new(move |ids, position| model.forward(ids, position)))
        }
    };
}

/// Names in `config.json`, and what makes the model.
const MODELS: [(&str, Make); 18] = [
    ("DeepseekV2ForCausalLM", usual!(m::deepseek2::DeepSeekV2Config, m::deepseek2::DeepSeekV2)),
    ("FalconForCausalLM", |text, weights| {
        let mut model = m::falcon::Falcon::load(weights, parse(text)?)?;
        Ok(Box::new(move |ids, _| model.forward(ids)))
    }),
    ("GemmaForCausalLM", gemma!(m::gemma::Config, m::gemma::Model)),
    ("Gemma2ForCausalLM", gemma!(m::gemma2::Config, m::gemma2::Model)),
    ("Gemma3ForCausalLM", gemma!(m::gemma3::Config, m::gemma3::Model)),
    ("Glm4ForCausalLM", usual!(m::glm4_new::Config, m::glm4_new::ModelForCausalLM)),
    ("HeliumForCausalLM", usual!(m::helium::Config, m::helium::Model)),
    ("MixtralForCausalLM", usual!(m::mixtral::Config, m::mixtral::Model)),
    ("OlmoForCausalLM", usual!(m::olmo::Config, m::olmo::Model)),
    ("Olmo2ForCausalLM", usual!(m::olmo2::Config, m::olmo2::Model)),
    ("PhiForCausalLM", |text, weights| {
        let mut model = m::phi::Model::new(&parse(text)?, weights)?;
        Ok(Box::new(move |ids, _| model.forward(ids)))
    }),
    ("Phi3ForCausalLM", usual!(m::phi3::Config, m::phi3::Model)),
    ("Qwen2MoeForCausalLM", usual!(m::qwen2_moe::Config, m::qwen2_moe::Model)),
    ("Qwen3MoeForCausalLM", usual!(m::qwen3_moe::Config, m::qwen3_moe::ModelForCausalLM)),
    ("RecurrentGemmaForCausalLM", usual!(m::recurrent_gemma::Config, m::recurrent_gemma::Model)),
    ("SmolLM3ForCausalLM", usual!(m::smol::smollm3::Config, m::smol::smollm3::ModelForCausalLM)),
    ("StableLmForCausalLM", usual!(m::stable_lm::Config, m::stable_lm::Model)),
    ("Starcoder2ForCausalLM", usual!(m::starcoder2::Config, m::starcoder2::Model)),
];

/// Names that `config.json` may have.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(name, _)| *name)
}

/// A model of one of these architectures, its weights in memory as f32.
pub struct OtherModel {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Most positions.
    pub positions: usize,
    path: PathBuf,
    text: String,
    make: Make,
    weights: VarBuilder<'static>,
    device: Device,
}

impl OtherModel {
    /// Opens the checkpoint directory `dir` and reads all its weights, coded or not.
    ///
    /// # Errors
    /// Checkpoints that cannot be read, and other architectures.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        let path = dir.join("config.json");
        let unsupported = |reason: String| ModelError::Unsupported { path: path.clone(), reason };
        let found = architectures(dir)?;
        let make = MODELS.iter().find(|(name, _)| found == [*name]).map(|(_, make)| *make);
        let make = make.ok_or_else(|| {
            unsupported(format!("architectures {found:?}; supported: {}", names().collect::<Vec<_>>().join(", ")))
        })?;
        let text = std::fs::read_to_string(&path).map_err(|e| unsupported(e.to_string()))?;
        let config: serde_json::Value = serde_json::from_str(&text).map_err(|e| unsupported(e.to_string()))?;
        let size = |key: &str| {
            let value = config[key].as_u64().filter(|&n| n > 0);
            value.map(|n| n as usize).ok_or_else(|| unsupported(format!("{key} is {}, expected a size", config[key])))
        };
        let vocab = size("vocab_size")?;
        let positions = size("max_position_embeddings").unwrap_or(2048);
        let checkpoint = Checkpoint::open(dir)?;
        let mut tensors = std::collections::HashMap::new();
        for info in checkpoint.tensors() {
            let values = checkpoint.read_f32(&info.name, &info.shape)?;
            tensors.insert(info.name.clone(), Tensor::from_vec(values, info.shape.as_slice(), device)?);
        }
        let weights = VarBuilder::from_tensors(tensors, DType::F32, device);
        let this = Self { vocab, positions, path, text, make, weights, device: device.clone() };
        drop(this.start()?);
        Ok(this)
    }

    /// A model that has seen nothing yet; weights are shared.
    fn start(&self) -> Result<Step> {
        let failed = |e: candle_core::Error| ModelError::Unsupported { path: self.path.clone(), reason: e.to_string() };
        (self.make)(&self.text, self.weights.clone()).map_err(failed)
    }

    /// A text of no tokens yet.
    ///
    /// # Errors
    /// As [`OtherModel::open`].
    pub fn reader(&self) -> Result<OtherReader> {
        Ok(OtherReader { step: self.start()?, position: 0, device: self.device.clone() })
    }

    /// Calls `each` with position and logits `[rows, vocab]` after every token of equally long rows.
    ///
    /// # Errors
    /// As the tensor library says, and those of `each`.
    pub fn run<E: From<ModelError>>(
        &self,
        rows: &[&[u32]],
        mut each: impl FnMut(usize, Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut step = self.start()?;
        for position in 0..rows.first().map_or(0, |r| r.len()) {
            let ids: Vec<u32> = rows.iter().map(|r| r[position]).collect();
            let logits = Tensor::from_vec(ids, (rows.len(), 1), &self.device)
                .and_then(|ids| step(&ids, position)?.reshape((rows.len(), ())))
                .map_err(ModelError::from)?;
            each(position, logits)?;
        }
        Ok(())
    }
}

/// A text that an [`OtherModel`] has read: a prompt first, then single tokens.
pub struct OtherReader {
    step: Step,
    position: usize,
    device: Device,
}

impl Reader for OtherReader {
    fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let ids = Tensor::new(tokens, &self.device)?.unsqueeze(0)?;
        let logits = (self.step)(&ids, self.position)?;
        self.position += tokens.len();
        Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }
}

#[cfg(test)]
mod tests {
    use candle_nn::VarMap;
    use serde_json::{Value, json};

    use super::*;

    /// Configurations of these are refused with their name.
    #[test]
    fn names_are_those_that_families_know_of() {
        assert!(names().eq(crate::family::EVALUATED_ONLY));
    }

    /// A small configuration with the keys of all architectures.
    fn config(name: &str) -> Value {
        let text = r#"{
            
            "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "norm_epsilon": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": false, "mlp_bias": false, "use_bias": true, "tie_word_embeddings": false,
            "sliding_window": 64, "use_sliding_window": false, "max_window_layers": 2, "use_flash_attn": false,
            "partial_rotary_factor": 0.5, "qk_layernorm": false, "use_cache": true, "use_qkv_bias": false,
            "bos_token_id": 1, "eos_token_id": 2, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2,
            "rope_local_base_freq": 10000.0, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
            "num_local_experts": 4, "num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1, "norm_topk_prob": true,
            "attention_window_size": 64, "conv1d_width": 4, "logits_soft_cap": 30.0, "lru_width": 32,
            "block_types": ["recurrent", "attention"], "n_shared_experts": 1, "n_routed_experts": 4,
            "qk_rope_head_dim": 8, "kv_lora_rank": 16, "v_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 1,
            "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax", "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5, "hidden_dropout": 0.0, "attention_dropout": 0.0, "alibi": false,
            "new_decoder_architecture": false, "multi_query": true, "parallel_attn": true, "bias": false}"#;
        let mut config: Value = serde_json::from_str(text).unwrap();
        config["architectures"] = json!([name]);
        if name == "GemmaForCausalLM" {
            config["hidden_activation"] = Value::Null;
        }
        if name == "Phi3ForCausalLM" {
            config["partial_rotary_factor"] = Value::Null;
        }
        if name == "DeepseekV2ForCausalLM" {
            // As published; candle's division by the sum has shapes that do not fit.
            config["norm_topk_prob"] = false.into();
        }
        if name == "RecurrentGemmaForCausalLM" {
            config["num_key_value_heads"] = 1.into();
        }
        config
    }

    /// Every architecture: logits token by token equal those of the text in one piece.
    #[test]
    fn every_architecture_steps_as_it_reads() {
        for (name, make) in MODELS {
            let dir = tempfile::tempdir().unwrap();
            let text = config(name).to_string();
            // The model itself names the weights that it wants.
            let map = VarMap::new();
            let builder = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
            let _ = make(&text, builder).unwrap_or_else(|e| panic!("{name}: {e}"));
            for (key, variable) in map.data().lock().unwrap().iter() {
                let n = key.bytes().map(usize::from).sum::<usize>();
                let value = |i: usize| ((i + 17 * n) as f64 * 12.9898).sin() as f32 * 0.4;
                let values: Vec<f32> = (0..variable.elem_count()).map(value).collect();
                variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap()).unwrap();
            }
            map.save(dir.path().join("model.safetensors")).unwrap();
            std::fs::write(dir.path().join("config.json"), &text).unwrap();

            let model = OtherModel::open(dir.path(), &Device::Cpu).unwrap_or_else(|e| panic!("{name}: {e}"));
            let row: Vec<u32> = (0..9).map(|i| (i * 31 + 7) % 90).collect();
            let mut stepped = Vec::new();
            let each = |position: usize, logits: Tensor| {
                assert_eq!(position, stepped.len());
                stepped.push(logits.to_vec2::<f32>().unwrap().remove(0));
                Ok::<(), ModelError>(())
            };
            model.run(&[&row], each).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!((stepped.len(), stepped[0].len()), (9, 90), "{name}");
            let ids = Tensor::from_vec(row, (1, 9), &Device::Cpu).unwrap();
            if name == "Gemma3ForCausalLM" {
                // candle's cannot take several tokens at once into its windowed caches.
                continue;
            }
            let whole = model.start().unwrap()(&ids, 0).unwrap_or_else(|e| panic!("{name}: {e}"));
            let whole: Vec<f32> = whole.flatten_all().unwrap().to_vec1().unwrap();
            let last = &stepped[8];
            let scale = last.iter().fold(0f32, |m, v| m.max(v.abs()));
            let worst = last.iter().zip(&whole[whole.len() - 90..]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(scale > 0.0 && worst < 1e-4 * scale, "{name}: {worst} of {scale}");
        }
    }
}
