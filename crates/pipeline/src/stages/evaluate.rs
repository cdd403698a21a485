//! Evaluation of the original and of compressed checkpoints: text, long contexts, and benchmarks. Each is a stage, so
//! that another benchmark leaves the others' results as they are.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use waterfill_checkpoint::QualityPrefix;
use waterfill_config::{Config, MultipleChoice};
use waterfill_evaluate as evaluate;
use waterfill_evaluate::tasks::{Items, Task};
use waterfill_model::{Model, Text, Windows};
use waterfill_store::{Identity, Progress, Work, hash_file};

use super::calibrate::tokens_digest;
use crate::console::Console;
use crate::context::Context;
use crate::device_memory::attention_scores;
use crate::engine::Engine;
use crate::error::Result;
use crate::estimate::PROGRAM;
use crate::results::{Choice, EvaluationResult, read_json, write_json};
use crate::stage::{ArtifactRef, BatchMemory, Estimate, Stage};

/// Version of text and long contexts; raised when results change.
const TEXT: u32 = 5;
/// Folder and version of answered benchmarks; raised when questions are asked or scored in another way.
pub(crate) const ANSWERS: (&str, u32) = ("answers", 1);

/// File with the figures of every stage.
const RESULT: &str = "result.json";
/// File with every answer.
const QUESTIONS: &str = "questions.json";

/// The checkpoint that is evaluated.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// The original.
    Original,
    /// A checkpoint in `checkpoint/` of an artifact, or a prefix of it, compared with the original's evaluation.
    Compressed(&'a ArtifactRef, QualityPrefix, &'a Evaluation),
}

impl<'a> Subject<'a> {
    /// An artifact of the original's evaluation, where this is compared with it.
    fn original(self, of: impl Fn(&'a Evaluation) -> Option<&'a ArtifactRef>) -> Option<&'a ArtifactRef> {
        match self {
            Self::Original => None,
            Self::Compressed(.., original) => of(original),
        }
    }

    /// Digest of the checkpoint, or of the prefix of it; `None` for the original.
    fn digest(self) -> Option<String> {
        let Self::Compressed(encoded, prefix, _) = self else { return None };
        let digest = encoded.digest();
        Some(match prefix {
            QualityPrefix::All => digest,
            QualityPrefix::Layers(layers) => format!("{digest}, layers: {layers}"),
            QualityPrefix::Bytes(bytes) => format!("{digest}, bytes: {bytes}"),
        })
    }

    /// The stage in words.
    fn label(self, original: &str, compressed: &str) -> String {
        match self {
            Self::Original => original.into(),
            Self::Compressed(..) => compressed.into(),
        }
    }

    /// Number of heads that are in memory at the same time.
    fn heads(self) -> u64 {
        match self {
            Self::Original => 1,
            Self::Compressed(..) => 2,
        }
    }

    fn with_model<T>(self, context: &Context, f: impl FnOnce(&Model) -> Result<T>) -> Result<T> {
        match self {
            Self::Original => f(&context.model),
            Self::Compressed(encoded, prefix, _) => {
                f(&Model::open_prefix(&encoded.path("checkpoint"), prefix, context.model.device())?)
            }
        }
    }

    /// Identity of a stage that leaves the original's final states, or compares with them.
    fn identity(
        self,
        context: &Context,
        (stage, windows): (&str, &Windows),
        original: Option<&ArtifactRef>,
        settings: serde_json::Value,
    ) -> Identity {
        match self.digest().zip(original) {
            Some((checkpoint, original)) => {
                let inputs = [("checkpoint", checkpoint), ("original", original.digest())];
                context.identity(stage, TEXT, &inputs, settings)
            }
            None => {
                let stage = format!("{stage}-original");
                context.identity(&stage, TEXT, &[("tokens", tokens_digest(windows))], settings)
            }
        }
    }
}

/// Artifacts of an evaluation.
#[derive(Clone)]
pub(crate) struct Evaluation {
    pub text: ArtifactRef,
    pub by_position: Option<ArtifactRef>,
    /// In the order of the configuration.
    pub answers: Vec<ArtifactRef>,
}

impl Evaluation {
    /// Evaluates a checkpoint on all that the configuration asks for, read back from its files.
    pub fn make(engine: &Engine, subject: Subject) -> Result<Self> {
        let context = engine.context();
        let inputs = context.eval_inputs()?;
        let text = engine.make(&EvaluateText { subject })?;
        let by_position = match inputs.long {
            Some(_) => Some(engine.make(&EvaluatePositions { subject })?),
            None => None,
        };
        let choices = context.config.evaluate.choices().enumerate();
        let answer = |(benchmark, choice): (usize, &MultipleChoice)| {
            engine.make(&Answer { subject, benchmark, task: choice.task })
        };
        let answers = choices.map(answer).collect::<Result<_>>()?;
        Ok(Self { text, by_position, answers })
    }

    /// All figures; `original` is the evaluation that changes are from.
    pub fn read(&self, original: Option<&Self>) -> Result<EvaluationResult> {
        let answers = |a: &ArtifactRef| read_json::<Vec<evaluate::QuestionResult>>(&a.path(QUESTIONS));
        let choice = |(n, own): (usize, &ArtifactRef)| {
            let Benchmark { task, result } = own.read(RESULT)?;
            let score = |correct: bool| f64::from(u8::from(correct));
            let changes: Vec<f64> = match original {
                None => vec![0.0; result.all.questions],
                Some(original) => {
                    let (own, before) = (answers(own)?, answers(&original.answers[n])?);
                    own.iter().zip(&before).map(|(a, b)| score(a.correct) - score(b.correct)).collect()
                }
            };
            Ok(Choice { task, result, change: evaluate::Estimate::of(&changes), answers: own.path(QUESTIONS) })
        };
        Ok(EvaluationResult {
            text: self.text.read(RESULT)?,
            sequences: self.text.path(evaluate::SEQUENCES),
            by_position: self.by_position.as_ref().map_or(Ok(vec![]), |a| a.read(RESULT))?,
            choices: self.answers.iter().enumerate().map(choice).collect::<Result<_>>()?,
        })
    }
}

/// Figures of a benchmark.
#[derive(Serialize, Deserialize)]
pub(crate) struct Benchmark {
    task: Task,
    result: evaluate::ChoiceResult,
}

/// Settings that figures of text depend on.
pub(super) fn text_settings(context: &Context) -> serde_json::Value {
    let e = &context.config.evaluate;
    serde_json::json!({"context": e.context, "batch_tokens": e.batch_tokens, "device": context.device_kind})
}

/// Figures of text, with the original's final states for comparisons.
pub(crate) struct EvaluateText<'a> {
    pub subject: Subject<'a>,
}

impl<'a> EvaluateText<'a> {
    fn original(&self) -> Option<&'a ArtifactRef> {
        self.subject.original(|original| Some(&original.text))
    }
}

impl Stage for EvaluateText<'_> {
    fn label(&self) -> String {
        self.subject.label("evaluate the original", "evaluate")
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let windows = &context.eval_inputs()?.windows;
        Ok(self.subject.identity(context, ("evaluate", windows), self.original(), text_settings(context)))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let e = &context.config.evaluate;
        on_text(context, [e.sequences, e.context], self.subject.heads())
    }

    fn units(&self, context: &Context) -> Result<Vec<String>> {
        let windows = &context.eval_inputs()?.windows;
        let batch_tokens = context.config.evaluate.batch_tokens;
        Ok(evaluate::text_units(&context.model.config, windows, batch_tokens))
    }

    fn batch_memory(&self, context: &Context) -> Option<BatchMemory> {
        Some(batches(context))
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let windows = &context.eval_inputs()?.windows;
        self.subject.with_model(context, |model| {
            let original = self.original().map(|original| (&context.model, original.dir()));
            let batch_tokens = context.config.evaluate.batch_tokens;
            let text = evaluate::evaluate_text(model, windows, batch_tokens, original, work, context.console)?;
            write_json(&work.path(RESULT), &text)
        })
    }
}

/// Figures of long sequences by position.
pub(crate) struct EvaluatePositions<'a> {
    pub subject: Subject<'a>,
}

impl<'a> EvaluatePositions<'a> {
    fn original(&self) -> Option<&'a ArtifactRef> {
        self.subject.original(|original| original.by_position.as_ref())
    }

    /// The long windows, and the number of bands of positions.
    fn inputs<'c>(&self, context: &'c Context) -> Result<(&'c Windows, usize)> {
        let windows = context.eval_inputs()?.long.as_ref().expect("long windows are configured");
        Ok((windows, context.config.evaluate.long_context.unwrap_or_default().bands))
    }
}

impl Stage for EvaluatePositions<'_> {
    fn label(&self) -> String {
        self.subject.label("evaluate the original by position", "evaluate by position")
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let (windows, bands) = self.inputs(context)?;
        let mut settings = text_settings(context);
        (settings["context"], settings["bands"]) = (windows.context.into(), bands.into());
        Ok(self.subject.identity(context, ("positions", windows), self.original(), settings))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let long = context.config.evaluate.long_context.unwrap_or_default();
        let positions = long.context.unwrap_or(context.model.config.positions);
        on_text(context, [long.sequences, positions], self.subject.heads())
    }

    fn batch_memory(&self, context: &Context) -> Option<BatchMemory> {
        Some(batches(context))
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let (windows, bands) = self.inputs(context)?;
        self.subject.with_model(context, |model| {
            let original = self.original().map(|original| (&context.model, original.dir()));
            let (tokens, console) = (context.config.evaluate.batch_tokens, context.console);
            let found = evaluate::evaluate_positions(model, windows, bands, tokens, original, work, console)?;
            write_json(&work.path(RESULT), &found)
        })
    }
}

/// Answers to one benchmark.
pub(crate) struct Answer<'a> {
    pub subject: Subject<'a>,
    /// Which of the configuration's benchmarks.
    pub benchmark: usize,
    /// Its task, for the label.
    pub task: Task,
}

impl Answer<'_> {
    fn inputs<'c>(&self, context: &'c Context) -> Result<(&'c MultipleChoice, &'c Items)> {
        let choice = context.config.evaluate.choices().nth(self.benchmark).expect("one for each benchmark");
        Ok((choice, &context.eval_inputs()?.questions[self.benchmark]))
    }
}

impl Stage for Answer<'_> {
    fn label(&self) -> String {
        let name = self.task.name();
        self.subject.label(&format!("answer {name} with the original"), &format!("answer {name}"))
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let mut identity = context.identity(ANSWERS.0, ANSWERS.1, &[], serde_json::Value::Null);
        identity.inputs.extend(self.subject.digest().map(|digest| ("checkpoint".to_string(), digest)));
        let text = Text::open(&context.source.dir, &context.model.config)?;
        let tokenizer = (context.source.dir.as_path(), &text);
        identity_of_answers(identity, tokenizer, self.inputs(context)?, context.config, &context.device_kind)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let weights = context.model.checkpoint().weights();
        let choice = context.config.evaluate.choices().nth(self.benchmark).expect("one for each benchmark");
        let tokens = choice.questions * 100 * (choice.shots() + 1);
        let held = evaluate::block_tokens(&context.model.config);
        let scored = evaluating(context, held, 2 * context.config.evaluate.batch_tokens, 1);
        let written = if choice.is_written() { weights * 4 } else { 0 };
        Estimate { operations: tokens as f64 * weights as f64 * 2.0, memory: PROGRAM + scored.max(written), disk: 0 }
    }

    fn batch_memory(&self, context: &Context) -> Option<BatchMemory> {
        Some(batches(context))
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let text = Text::open(&context.source.dir, &context.model.config)?;
        let inputs = self.inputs(context)?;
        self.subject.with_model(context, |model| {
            answer(evaluate::Answering::Streamed(model), &text, inputs, context.config, work, context.console)
        })
    }
}

/// Adds to the identity of a model's answers everything that they depend on.
pub(crate) fn identity_of_answers(
    mut identity: Identity,
    (dir, text): (&Path, &Text),
    (choice, items): (&MultipleChoice, &Items),
    config: &Config,
    device: &str,
) -> Result<Identity> {
    identity.inputs.insert("tokenizer".into(), hash_file(&dir.join("tokenizer.json"))?);
    identity.inputs.insert("questions".into(), blake3::hash(format!("{items:?}").as_bytes()).to_hex().to_string());
    identity.config = serde_json::json!({
        "task": choice.task, "bos": choice.bos.then_some(text.prefix()), "skip_long": choice.skip_long,
        "batch_tokens": config.evaluate.batch_tokens, "device": device,
    });
    Ok(identity)
}

/// Answers the questions of a benchmark and keeps every answer.
pub(crate) fn answer(
    model: evaluate::Answering,
    text: &Text,
    (choice, items): (&MultipleChoice, &Items),
    config: &Config,
    work: &Work,
    console: &Console,
) -> Result<()> {
    let (task, name) = (choice.task, choice.task.name());
    let batch_tokens = 2 * config.evaluate.batch_tokens;
    let asked = evaluate::EvalInputs { task, items, bos: choice.bos, skip_long: choice.skip_long, batch_tokens, name };
    let start = Instant::now();
    let (result, answers) = evaluate::evaluate_choices(model, text, &asked, work, console)?;
    let (count, seconds) = (answers.len() as f64, start.elapsed().as_secs_f64());
    console.note(&format!("{name}: {count} questions in {seconds:.1} s, {:.1} a second", count / seconds));
    write_json(&work.path(QUESTIONS), &answers)?;
    write_json(&work.path(RESULT), &Benchmark { task, result })
}

/// Cost of evaluating so many sequences of so many tokens with one head or two.
pub(super) fn on_text(context: &Context, [sequences, length]: [usize; 2], heads: u64) -> Estimate {
    let tokens = sequences * length;
    let held = tokens.min(evaluate::block_tokens(&context.model.config));
    let batch = context.config.evaluate.batch_tokens.max(length);
    Estimate {
        operations: tokens as f64 * context.model.checkpoint().weights() as f64 * 2.0,
        memory: PROGRAM + evaluating(context, held, batch, heads),
        disk: 0,
    }
}

/// Bytes of the final states of `held` tokens, batches of `tokens`, and one head or two.
fn evaluating(context: &Context, held: usize, tokens: usize, heads: u64) -> u64 {
    let model = &context.model.config;
    let (block, table) = (model.block_bytes(), model.table_bytes());
    let side = |bytes: u64| bytes * waterfill_model::side_by_side(context.model.device(), bytes) as u64;
    let states = model.state_bytes(held);
    let blocks = block + block / 4 + side(model.forward_bytes(tokens));
    let compare = heads * table + table / 2 + side(evaluate::comparison_bytes(model.vocab));
    states + states / 4 + blocks.max(compare)
}

/// Memory of an evaluation's batches on an accelerator.
pub(super) fn batches(context: &Context) -> BatchMemory {
    let e = &context.config.evaluate;
    let (model, length) = (context.model.config.clone(), e.context);
    let needed = move |tokens: usize| {
        let batch = model.forward_bytes(tokens) + 4 * attention_scores(&model, tokens, length);
        let held = model.state_bytes(evaluate::block_tokens(&model));
        held + (model.block_bytes() + batch).max(2 * model.table_bytes() + evaluate::comparison_bytes(model.vocab))
    };
    BatchMemory { section: "evaluate", context: length, tokens: e.batch_tokens, needed: Box::new(needed) }
}
