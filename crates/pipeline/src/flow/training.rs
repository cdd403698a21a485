//! `waterfill train`: a model from the generated world, and the texts and questions around it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use waterfill_checkpoint::Checkpoint;
use waterfill_checkpoint::writer::write_file;
use waterfill_config::{NetworkConfig, StyleName, TrainConfig, WorldConfig};
use waterfill_model::{ModelConfig, RopeScaling};
use waterfill_store::{Artifact, Identity, Progress, Store, hash_file};
use waterfill_train::{LetterWeights, Schedule, Settings, Summary, train_tokenizer};
use waterfill_world::{SUBJECTS, Split, Style, World};

use crate::console::Console;
use crate::error::{PipelineError, Result};
use crate::results::{read_json, write_json};

/// Version of the trainer; raised when the same file gives another model.
const VERSION: u32 = 1;
/// Words of the text that the tokenizer learns from, bytes.
const TOKENIZER_SAMPLE: usize = 4_000_000;
/// Held-out text that training looks at, bytes.
const HELD_OUT: usize = 400_000;

/// The object that `train --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct TrainOutput {
    /// Directory of the model.
    pub model: PathBuf,
    /// Directory of texts and questions.
    pub data: PathBuf,
    /// Losses of the training.
    #[serde(flatten)]
    pub summary: Summary,
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
        std::fs::create_dir_all(&dir).map_err(PipelineError::io(&dir))?;
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
    std::fs::create_dir_all(out).map_err(PipelineError::io(out))?;
    for name in
        ["model/config.json", "model/tokenizer.json", "model/model.safetensors", "training-log.csv", "summary.json"]
    {
        let (from, to) = (artifact.path(name), out.join(name.trim_start_matches("model/")));
        let part = to.with_extension("partial");
        std::fs::copy(&from, &part).and_then(|_| std::fs::rename(&part, &to)).map_err(PipelineError::io(&to))?;
    }
    Ok(())
}
