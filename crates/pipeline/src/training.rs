//! `waterfill train`: a model from the generated world, and the texts and questions around it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_checkpoint::Checkpoint;
use waterfill_checkpoint::writer::write_file;
use waterfill_model::{ModelConfig, RopeScaling};
use waterfill_store::{Artifact, Identity, Progress, Store, hash_file};
use waterfill_train::{LetterWeights, Schedule, Settings, Summary, train_tokenizer};
use waterfill_world::{SUBJECTS, Split, Style, World};

use crate::console::Console;
use crate::error::{PipelineError, Result};
use crate::load::{checked, merged};
use crate::results::{read_json, write_json};

/// Version of the trainer; raised when the same file gives another model.
const VERSION: u32 = 1;
/// Words of the text that the tokenizer learns from, bytes.
const TOKENIZER_SAMPLE: usize = 4_000_000;
/// Held-out text that training looks at, bytes.
const HELD_OUT: usize = 400_000;

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
    /// How much the letters of questions count beside any other token, from the steps on that the
    /// entries name: knowing comes first, then finding the letter.
    #[serde(default)]
    pub letters: Vec<LetterConfig>,
    /// Steps between two lines of the log, and between two states on disk.
    #[serde(default = "default_every")]
    pub every: usize,
}

fn default_store() -> String {
    "results".into()
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
fn default_seed() -> u64 {
    1
}
fn default_every() -> usize {
    100
}

/// What `train` prints.
#[derive(Debug, Clone, Serialize)]
pub struct TrainOutput {
    /// Directory of the model.
    pub model: PathBuf,
    /// Directory of texts and questions.
    pub data: PathBuf,
    /// What came out.
    #[serde(flatten)]
    pub summary: Summary,
}

/// JSON schema of training files.
pub fn train_schema() -> serde_json::Value {
    schemars::schema_for!(TrainConfig).to_value()
}

/// Reads a training file.
///
/// # Errors
/// Files that cannot be read, unknown keys, wrong types, values outside their limits.
pub fn load_train(path: &Path) -> Result<TrainConfig> {
    let config: TrainConfig = checked(merged(path)?, &train_schema(), path)?;
    let (t, w) = (&config.train, &config.world);
    let mut found = Vec::new();
    let mut range = |key: &str, value: f64, low: f64, high: f64| {
        if !(low..=high).contains(&value) {
            found.push(format!("{key} is {value}, expected {low} to {high}"));
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
            found.push(format!(
                "network has {} heads and {} kv_heads for hidden {}, expected kv_heads to divide heads and 2 * heads to divide hidden",
                n.heads, n.kv_heads, n.hidden
            ));
        }
    }
    if config.from.is_some() == config.network.is_some() {
        found.push("expected either from or network".into());
    }
    match found.as_slice() {
        [] => Ok(config),
        some => Err(PipelineError::Config { path: path.to_path_buf(), reason: some.join("; ") }),
    }
}

/// Trains the model of a file, or finds it in the store, and writes model, log, texts and questions
/// to the directories that the file names.
///
/// # Errors
/// Everything that training and writing can run into.
pub fn train(config: &TrainConfig, repair: bool, console: &Console) -> Result<TrainOutput> {
    let store = Store::new(&config.store).repairing(repair);
    let world = World::new(config.world.seed, config.world.year);
    console.steps(3);
    let data = step(console, "texts and questions", || write_world(&world, &config.world))?;
    let style = style(&config.world);
    let text = world.text(style, Split::Train, config.world.bytes);
    let (network, tokenizer, from) = match (&config.from, &config.network) {
        (Some(dir), _) => {
            let dir = PathBuf::from(dir);
            (ModelConfig::open(&dir)?, dir.join("tokenizer.json"), Some(Checkpoint::open(&dir)?))
        }
        (None, Some(network)) => {
            let artifact = tokenizer(&store, config, network, &text, console)?;
            (llama(network), artifact.path("tokenizer.json"), None)
        }
        (None, None) => unreachable!("checked when the file was read"),
    };
    let t = &config.train;
    let settings = Settings {
        schedule: Schedule {
            steps: t.steps,
            warmup: t.warmup,
            decay: t.decay,
            learning_rate: t.learning_rate,
            weight_decay: t.weight_decay,
        },
        batch: t.batch,
        context: t.context,
        seed: t.seed,
        letters: t.letters.iter().map(|l| LetterWeights { from: l.from, answer: l.answer, reason: l.reason }).collect(),
        every: t.every,
    };
    let mut inputs = BTreeMap::from([
        ("text".to_string(), blake3::hash(text.as_bytes()).to_hex().to_string()),
        ("tokenizer".to_string(), hash_file(&tokenizer)?),
    ]);
    if let Some(from) = &from {
        inputs.insert("from".into(), from.digest()?);
    }
    let identity = Identity {
        stage: "train".into(),
        version: VERSION,
        inputs,
        config: serde_json::json!({"network": network.to_json(), "train": settings}),
        seeds: BTreeMap::from([("train".to_string(), t.seed), ("world".to_string(), config.world.seed)]),
    };
    let artifact = step(console, "train", || {
        store.get_or_make::<PipelineError>(&config.name, &identity, console, |work| {
            let held_out = world.text(style, Split::Validation, HELD_OUT);
            let summary = waterfill_train::train(
                &network,
                &tokenizer,
                from.as_ref(),
                (&text, &held_out),
                &settings,
                work,
                console,
            )?;
            write_json(&work.path("summary.json"), &summary)
        })
    })?;
    let out = PathBuf::from(&config.out);
    step(console, "copy", || copy(&artifact, &out))?;
    Ok(TrainOutput { model: out, data, summary: read_json(&artifact.path("summary.json"))? })
}

fn step<T>(console: &Console, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    console.step(name);
    let start = std::time::Instant::now();
    let result = work()?;
    console.step_done(false, start.elapsed().as_secs_f64(), None);
    Ok(result)
}

fn style(world: &WorldConfig) -> Style {
    match world.style {
        StyleName::Chronicle => Style::Chronicle,
        StyleName::Letters => Style::Letters,
    }
}

fn llama(n: &NetworkConfig) -> ModelConfig {
    ModelConfig {
        vocab: n.vocab,
        hidden: n.hidden,
        intermediate: n.intermediate,
        layers: n.layers,
        heads: n.heads,
        kv_heads: n.kv_heads,
        head_dim: n.hidden / n.heads,
        positions: n.positions,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::None,
        biases: [false; 7],
        qk_norm: false,
        window: None,
        tied: true,
    }
}

fn tokenizer(
    store: &Store,
    config: &TrainConfig,
    n: &NetworkConfig,
    text: &str,
    progress: &dyn Progress,
) -> Result<Artifact> {
    let end = (0..=TOKENIZER_SAMPLE.min(text.len())).rfind(|&i| text.is_char_boundary(i)).unwrap_or(0);
    let sample = &text[..end];
    let identity = Identity {
        stage: "tokenizer".into(),
        version: VERSION,
        inputs: BTreeMap::from([("text".to_string(), blake3::hash(sample.as_bytes()).to_hex().to_string())]),
        config: serde_json::json!({"vocab": n.vocab}),
        seeds: BTreeMap::new(),
    };
    store.get_or_make(&config.name, &identity, progress, |work| {
        Ok(train_tokenizer(sample, n.vocab, &work.path("tokenizer.json"))?)
    })
}

/// Writes the texts and the questions of all subjects.
fn write_world(world: &World, config: &WorldConfig) -> Result<PathBuf> {
    let out = PathBuf::from(&config.out);
    let questions = out.join("questions");
    for dir in [questions.join("dev"), questions.join("test")] {
        std::fs::create_dir_all(&dir).map_err(|source| PipelineError::Io { path: dir.clone(), source })?;
    }
    let style = style(config);
    for (name, split) in [("calibration", Split::Calibration), ("validation", Split::Validation), ("test", Split::Test)]
    {
        let text = world.text(style, split, config.text_bytes);
        write_file(&out.join(format!("{name}.txt")), text.as_bytes())?;
    }
    for subject in SUBJECTS {
        for (name, split, count) in [("dev", Split::Validation, 5), ("test", Split::Test, config.questions)] {
            let path = questions.join(name).join(format!("{subject}_{name}.csv"));
            write_file(&path, world.question_file(subject, split, count).as_bytes())?;
        }
    }
    Ok(out)
}

/// Copies a trained model and its log; each file appears whole.
fn copy(artifact: &Artifact, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|source| PipelineError::Io { path: out.into(), source })?;
    for name in
        ["model/config.json", "model/tokenizer.json", "model/model.safetensors", "training-log.csv", "summary.json"]
    {
        let (from, to) = (artifact.path(name), out.join(name.trim_start_matches("model/")));
        let part = to.with_extension("partial");
        std::fs::copy(&from, &part)
            .and_then(|_| std::fs::rename(&part, &to))
            .map_err(|source| PipelineError::Io { path: to.clone(), source })?;
    }
    Ok(())
}
