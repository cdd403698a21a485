//! Training files: a generated world, a network, steps and rates.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Note;
use crate::calibrate::default_seed;
use crate::config::default_store;
use crate::error::{ConfigError, Problem, Result};
use crate::keys::checked;
use crate::merge::merged;

/// One model to train.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the folder in the store.
    pub name: String,
    /// Folder of all artifacts.
    #[serde(default = "default_store")]
    pub store: String,
    /// Directory that gets the finished model and its log.
    pub out: String,
    /// The world it learns about.
    pub world: WorldConfig,
    /// Checkpoint directory to start from instead of random weights.
    #[serde(default)]
    pub from: Option<String>,
    /// The network, unless `from` says it.
    #[serde(default)]
    pub network: Option<NetworkConfig>,
    /// Steps and rates.
    pub train: TrainSettings,
}

/// A generated world and the files that are written from it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorldConfig {
    /// Seed of everything in it.
    pub seed: u64,
    /// Years that passed: some people move and change their work each year.
    #[serde(default)]
    pub year: u64,
    /// Kind of prose.
    #[serde(default)]
    pub style: StyleName,
    /// Bytes of training text.
    pub bytes: usize,
    /// Directory that gets `calibration.txt`, `validation.txt`, `test.txt` and `questions/`.
    pub out: String,
    /// Bytes of each of those texts.
    #[serde(default = "default_text_bytes")]
    pub text_bytes: usize,
    /// Test questions of each subject; fewer where the world has no more.
    #[serde(default = "default_questions")]
    pub questions: usize,
}

/// Kind of prose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StyleName {
    /// Facts, stories and talk.
    #[default]
    Chronicle,
    /// Letters and diaries.
    Letters,
}

/// A Llama-architecture network with a tied head.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Most positions.
    pub positions: usize,
}

/// Weights of letters from a step on.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterConfig {
    /// First step.
    pub from: usize,
    /// The letter after `Answer:`.
    pub answer: f32,
    /// The letter at the end of a reason.
    pub reason: f32,
}

/// How to train.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// Steps in all.
    pub steps: usize,
    /// Steps over which the learning rate rises.
    pub warmup: usize,
    /// Last steps, over which it falls to zero.
    pub decay: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Weight decay of matrices.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Rows of a step.
    pub batch: usize,
    /// Inputs of a row.
    pub context: usize,
    /// Seed of the beginning and of the order of rows.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Weight of the letters of questions relative to any other token, from the steps on that the
    /// entries name: knowing comes first, then finding the letter.
    #[serde(default)]
    pub letters: Vec<LetterConfig>,
    /// Steps between two lines of the log, and between two states on disk.
    #[serde(default = "default_every")]
    pub every: usize,
}

fn default_text_bytes() -> usize {
    400_000
}
fn default_questions() -> usize {
    500
}
fn default_weight_decay() -> f64 {
    0.1
}
fn default_every() -> usize {
    100
}

/// Reads a training file.
///
/// # Errors
/// Files that cannot be read, unknown keys, wrong types, values outside their limits.
pub fn load_train(path: &Path, note: Note) -> Result<TrainConfig> {
    let config: TrainConfig = checked(merged(path, note)?, &schemars::schema_for!(TrainConfig).to_value(), "", path)?;
    let (t, w) = (&config.train, &config.world);
    let mut found = Vec::new();
    let mut range = |key: &str, value: f64, low: f64, high: f64| {
        if !(low..=high).contains(&value) {
            found.push(Problem::OutOfRange { key: key.into(), value, low, high });
        }
    };
    range("train.steps", t.steps as f64, 1.0, 1e9);
    range("train.warmup", t.warmup as f64, 0.0, t.steps as f64);
    range("train.decay", t.decay as f64, 0.0, t.steps as f64);
    range("train.learning_rate", t.learning_rate, 1e-9, 10.0);
    range("train.weight_decay", t.weight_decay, 0.0, 10.0);
    range("train.batch", t.batch as f64, 1.0, 65_536.0);
    range("train.context", t.context as f64, 8.0, 65_536.0);
    for (i, l) in t.letters.iter().enumerate() {
        range(&format!("train.letters[{i}].answer"), f64::from(l.answer), 0.0, 1000.0);
        range(&format!("train.letters[{i}].reason"), f64::from(l.reason), 0.0, 1000.0);
    }
    range("train.every", t.every as f64, 1.0, 1e9);
    range("world.bytes", w.bytes as f64, 10_000.0, 1e10);
    range("world.text_bytes", w.text_bytes as f64, 1_000.0, 1e9);
    range("world.questions", w.questions as f64, 1.0, 100_000.0);
    if let Some(n) = &config.network {
        range("network.vocab", n.vocab as f64, 300.0, 65_536.0);
        range("network.hidden", n.hidden as f64, 16.0, 16_384.0);
        range("network.intermediate", n.intermediate as f64, 1.0, 65_536.0);
        range("network.layers", n.layers as f64, 1.0, 1000.0);
        range("network.positions", n.positions as f64, t.context as f64, 1e6);
        if n.kv_heads == 0 || !n.heads.is_multiple_of(n.kv_heads) || n.heads == 0 || n.hidden % (2 * n.heads) != 0 {
            found.push(Problem::Unmet(format!(
                "network has {} heads and {} kv_heads for hidden {}, expected kv_heads to divide heads and 2 * heads to divide hidden",
                n.heads, n.kv_heads, n.hidden
            )));
        }
    }
    if config.from.is_some() == config.network.is_some() {
        found.push(Problem::Unmet("expected either from or network".into()));
    }
    match found.is_empty() {
        true => Ok(config),
        false => Err(ConfigError::Limits { path: path.into(), problems: found }),
    }
}
