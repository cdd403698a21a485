//! The training loop.

use std::fmt::Write;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_checkpoint::writer::{Data, Entry, write_file, write_shards};
use waterfill_checkpoint::{Checkpoint, Element};
use waterfill_codec::Dtype;
use waterfill_model::{ModelConfig, Text};
use waterfill_store::{Progress, Work};

use crate::data::{baselines, tokens, windows};
use crate::network::{Letters, Network, initial};
use crate::optimizer::{Parameter, Schedule, step};
use crate::{Result, TrainError};

/// Unit that holds parameters, moments and log.
const STATE: &str = "state";
/// Rows that one thread takes at a time; part of the result, since it orders sums.
const ROWS: usize = 4;
/// Windows of the validation text.
const VALIDATION_ROWS: usize = 64;

/// Settings of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Learning rates.
    pub schedule: Schedule,
    /// Rows per step.
    pub batch: usize,
    /// Input tokens per row.
    pub context: usize,
    /// Seed of the initial weights and of the order of rows.
    pub seed: u64,
    /// Loss weights of letters; each entry holds from its own step on.
    pub letters: Vec<LetterWeights>,
    /// Steps between two lines of the log, and between two states on disk.
    pub every: usize,
}

/// Loss weights of the letters of questions, where any other token has weight 1, from a step on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LetterWeights {
    /// First step.
    pub from: usize,
    /// The letter after `Answer:`.
    pub answer: f32,
    /// The letter at the end of a reason.
    pub reason: f32,
}

/// Figures of a finished training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Weights of the model.
    pub weights: usize,
    /// Tokens it was trained on.
    pub tokens: usize,
    /// Perplexity on windows of the validation text.
    pub perplexity: f64,
    /// Perplexity of the unigram model of the training text there.
    pub unigram_perplexity: f64,
    /// Perplexity of the bigram model of the training text there.
    pub bigram_perplexity: f64,
    /// Share of right letters in the validation text's questions.
    pub answers: f64,
}

/// Trains a model and fills `work` with `model/` (bf16, Hugging Face layout), `training-log.csv`
/// and the content of `summary.json`, which is returned. Training begins with the weights in `from`, or with random ones.
/// `tokenizer` is a `tokenizer.json`. The result depends neither on the number of threads nor on
/// interruptions.
///
/// # Errors
/// Texts that are too short, a loss that diverges, files that cannot be read or written.
pub fn train(
    config: &ModelConfig,
    tokenizer: &Path,
    from: Option<&Checkpoint>,
    (text, validation): (&str, &str),
    settings: &Settings,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Summary> {
    let model = work.path("model");
    std::fs::create_dir(&model).map_err(|source| TrainError::Io { path: model.clone(), source })?;
    write_companion(tokenizer, &model.join("tokenizer.json"))?;
    let coder = Text::open(&model, config)?;
    let (ids, held_out) = (tokens(&coder, text)?, tokens(&coder, validation)?);
    let length = settings.context + 1;
    let needed = settings.schedule.steps * settings.batch * length;
    for (path, found, needed) in [("text", ids.len(), needed), ("validation", held_out.len(), length)] {
        if found < needed {
            return Err(TrainError::Short { path: path.into(), found, needed });
        }
    }
    let letters = Letters {
        answer: coder.encode("Answer:")?,
        reason: coder.encode(", which is letter")?,
        tokens: [" A", " B", " C", " D"].iter().map(|l| Ok(coder.encode(l)?[0])).collect::<Result<_>>()?,
    };
    let order = windows(ids.len(), length, settings.seed);
    let held_out: Vec<&[u32]> = held_out.chunks_exact(length).take(VALIDATION_ROWS).collect();

    let mut state = match work.unit(STATE).and_then(|bytes| State::parse(&bytes, config)) {
        Some(state) => state,
        None => State::begin(config, from, settings.seed)?,
    };
    let steps = settings.schedule.steps;
    progress.start("train", steps as u64);
    progress.advance(state.step as u64);
    while state.step < steps {
        let network = Network::new(config, &state.parameters)?;
        let plain = LetterWeights { from: 0, answer: 1.0, reason: 1.0 };
        let weights = *settings.letters.iter().rfind(|w| w.from <= state.step).unwrap_or(&plain);
        let weight = |row: &[u32], i: usize| match () {
            () if letters.is_answer(row, i) => weights.answer,
            () if letters.is_reason(row, i) => weights.reason,
            () => 1.0,
        };
        let rows: Vec<&[u32]> = (0..settings.batch)
            .map(|r| order[(state.step * settings.batch + r) % order.len()])
            .map(|start| &ids[start..start + length])
            .collect();
        let parts = rows.par_chunks(ROWS).map(|rows| network.gradients(rows, &weight)).collect::<Result<Vec<_>>>()?;
        let total: f64 = parts.iter().map(|(o, _)| o.weight).sum();
        let loss = parts.iter().map(|(o, _)| o.loss).sum::<f64>() / total;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: state.step, loss });
        }
        state.nll += parts.iter().map(|(o, _)| o.nll).sum::<f64>();
        state.positions += parts.iter().map(|(o, _)| o.positions).sum::<usize>();
        let mut gradients: Vec<Vec<f32>> = state.parameters.iter().map(|p| vec![0.0; p.value.len()]).collect();
        gradients.par_iter_mut().enumerate().for_each(|(i, sum)| {
            for (_, part) in &parts {
                sum.iter_mut().zip(&part[i]).for_each(|(s, g)| *s += g / total as f32);
            }
        });
        step(&mut state.parameters, &gradients, &settings.schedule, state.step);
        state.step += 1;
        if state.step.is_multiple_of(settings.every) || state.step == steps {
            let (perplexity, answers) = held_out_figures(config, &state.parameters, &held_out, &letters)?;
            let rate = settings.schedule.rate(state.step - 1);
            let nll = state.nll / state.positions as f64;
            writeln!(
                state.log,
                "{},{},{rate:.6},{nll:.4},{:.4},{answers:.4}",
                state.step,
                state.step * settings.batch * settings.context,
                perplexity.ln()
            )
            .expect("writing to a string");
            progress.note(&format!(
                "step {}: nll {nll:.4}, held out {:.4}, answers {:.1} %",
                state.step,
                perplexity.ln(),
                answers * 100.0
            ));
            (state.nll, state.positions) = (0.0, 0);
            work.keep(STATE, &state.to_bytes())?;
        }
        progress.advance(1);
    }
    state.parameters.iter_mut().for_each(|p| p.value.iter_mut().for_each(|v| *v = round(*v)));
    write_model(&model, config, &state.parameters)?;
    let log = format!("step,tokens,learning_rate,nll,held_out_nll,answers\n{}", state.log);
    write_file(&work.path("training-log.csv"), log.as_bytes())?;
    let (perplexity, answers) = held_out_figures(config, &state.parameters, &held_out, &letters)?;
    let (unigram_perplexity, bigram_perplexity) = baselines(&ids, &held_out.concat(), config.vocab);
    Ok(Summary {
        weights: state.parameters.iter().map(|p| p.value.len()).sum(),
        tokens: steps * settings.batch * settings.context,
        perplexity,
        unigram_perplexity,
        bigram_perplexity,
        answers,
    })
}

/// Perplexity and share of right letters on rows.
fn held_out_figures(
    config: &ModelConfig,
    parameters: &[Parameter],
    rows: &[&[u32]],
    letters: &Letters,
) -> Result<(f64, f64)> {
    let network = Network::new(config, parameters)?;
    let parts = rows.par_chunks(ROWS).map(|r| network.evaluate(r, letters)).collect::<Result<Vec<_>>>()?;
    let nll: f64 = parts.iter().map(|p| p.0).sum();
    let (right, all) = parts.iter().fold((0, 0), |(r, a), p| (r + p.1, a + p.2));
    let positions: usize = rows.iter().map(|r| r.len() - 1).sum();
    Ok(((nll / positions as f64).exp(), right as f64 / all.max(1) as f64))
}

/// The nearest bf16.
fn round(value: f32) -> f32 {
    Dtype::Bf16.value_of(Dtype::Bf16.pattern_of(value))
}

fn write_companion(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).map_err(|source| TrainError::Io { path: from.into(), source })?;
    Ok(write_file(to, &bytes)?)
}

fn write_model(dir: &Path, config: &ModelConfig, parameters: &[Parameter]) -> Result<()> {
    let mut entries = Vec::new();
    for p in parameters {
        let pattern = |&v: &f32| (Dtype::Bf16.pattern_of(v) as u16).to_le_bytes();
        entries.push(Entry {
            name: p.name.clone(),
            shape: p.shape.clone(),
            plain: Some(Element::BF16),
            data: Data::Made(Box::new(move || p.value.iter().flat_map(pattern).collect())),
            bytes: 2 * p.value.len() as u64,
        });
    }
    write_shards(dir, &entries)?;
    let text = serde_json::to_string_pretty(&config.to_json()).expect("plain data");
    Ok(write_file(&dir.join("config.json"), text.as_bytes())?)
}

/// Everything that the next step depends on.
struct State {
    step: usize,
    parameters: Vec<Parameter>,
    /// Sums since the last line of the log.
    nll: f64,
    positions: usize,
    log: String,
}

impl State {
    fn begin(config: &ModelConfig, from: Option<&Checkpoint>, seed: u64) -> Result<Self> {
        let mut parameters = initial(config, seed);
        if let Some(checkpoint) = from {
            for p in &mut parameters {
                p.value = checkpoint.read_f32(&p.name, &p.shape)?;
            }
        }
        Ok(Self { step: 0, parameters, nll: 0.0, positions: 0, log: String::new() })
    }

    /// The log's length, the step, the log, then values and moments.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.log.len() as u64).to_le_bytes().to_vec();
        bytes.extend((self.step as u64).to_le_bytes());
        bytes.extend(self.log.as_bytes());
        for p in &self.parameters {
            [&p.value, &p.first, &p.second].into_iter().flatten().for_each(|v| bytes.extend(v.to_le_bytes()));
        }
        bytes
    }

    /// Reads [`State::to_bytes`]; `None` when the bytes are of another model.
    fn parse(bytes: &[u8], config: &ModelConfig) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?) as usize);
        let (log, step) = (number(0)?, number(8)?);
        let mut rest = bytes.get(16 + log..)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let log = String::from_utf8(bytes[16..16 + log].to_vec()).ok()?;
        let mut parameters = initial(config, 0);
        for p in &mut parameters {
            for values in [&mut p.value, &mut p.first, &mut p.second] {
                for v in values.iter_mut() {
                    *v = rest.next()?;
                }
            }
        }
        rest.next().is_none().then_some(Self { step, parameters, nll: 0.0, positions: 0, log })
    }
}
