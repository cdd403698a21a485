//! The evaluation of the original and of tuned checkpoints: text, long contexts, and benchmarks of questions. Each
//! is a stage of its own, so that another benchmark leaves the others' results as they are.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use waterfill_checkpoint::Prefix;
use waterfill_evaluate as eval;
use waterfill_evaluate::tasks::{Items, Task};
use waterfill_model::{Model, Text, Windows};
use waterfill_store::{Artifact, Identity, Progress, Work, hash_file};

use crate::config::{Config, MultipleChoice};
use crate::console::Console;
use crate::error::Result;
use crate::results::{Choice, Evaluation, read_json, write_json};
use crate::session::Session;
use crate::stages::tokens_digest;

/// Of what text and long contexts are found to be; it goes up when results change.
const TEXT: u32 = 5;
/// The stage in which questions are answered, and the version of how they are asked and scored.
pub(crate) const ANSWERS: (&str, u32) = ("answers", 1);

/// File with the figures of every stage.
const RESULT: &str = "result.json";
/// File with every answer.
const QUESTIONS: &str = "questions.json";

/// Whose evaluation it is.
#[derive(Clone, Copy)]
pub(crate) enum Whose<'a> {
    Original,
    /// A tuned checkpoint, or a prefix of it, beside the original's evaluation.
    Tuned(&'a Artifact, Prefix, &'a Evaluated),
}

/// What stands for the digest of a checkpoint of which a prefix is used.
pub(crate) fn prefix_digest(digest: &str, prefix: Prefix) -> String {
    match prefix {
        Prefix::All => digest.to_string(),
        Prefix::Layers(layers) => format!("{digest}, layers: {layers}"),
        Prefix::Bytes(bytes) => format!("{digest}, bytes: {bytes}"),
    }
}

/// A stage of an evaluation.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Text,
    Positions,
    Answers(Task),
}

impl Part {
    /// What is done, in words.
    pub fn label(self, original: bool) -> String {
        match (self, original) {
            (Self::Text, true) => "evaluate the original".into(),
            (Self::Text, false) => "evaluate".into(),
            (Self::Positions, true) => "evaluate the original by position".into(),
            (Self::Positions, false) => "evaluate by position".into(),
            (Self::Answers(task), true) => format!("answer {} with the original", task.name()),
            (Self::Answers(task), false) => format!("answer {}", task.name()),
        }
    }
}

/// Artifacts of an evaluation.
pub(crate) struct Evaluated {
    pub text: Artifact,
    pub by_position: Option<Artifact>,
    /// In the order of the configuration.
    pub answers: Vec<Artifact>,
}

/// What text is evaluated on, and what is asked.
pub(crate) struct Asked {
    pub windows: Windows,
    pub long: Option<Windows>,
    pub questions: Vec<Items>,
}

/// Figures of a benchmark.
#[derive(Serialize, Deserialize)]
struct Answered {
    task: Task,
    result: eval::ChoiceResult,
}

impl Evaluated {
    /// All figures; `original` is what changes are from.
    pub fn read(&self, original: Option<&Self>) -> Result<Evaluation> {
        let answers = |a: &Artifact| read_json::<Vec<eval::QuestionResult>>(&a.path(QUESTIONS));
        let choice = |(n, own): (usize, &Artifact)| {
            let Answered { task, result } = read_json(&own.path(RESULT))?;
            let point = |correct: bool| f64::from(u8::from(correct));
            let changes: Vec<f64> = match original {
                None => vec![0.0; result.all.questions],
                Some(original) => {
                    let (own, before) = (answers(own)?, answers(&original.answers[n])?);
                    own.iter().zip(&before).map(|(a, b)| point(a.correct) - point(b.correct)).collect()
                }
            };
            Ok(Choice { task, result, change: eval::Estimate::of(&changes), answers: own.path(QUESTIONS) })
        };
        Ok(Evaluation {
            text: read_json(&self.text.path(RESULT))?,
            sequences: self.text.path(eval::SEQUENCES),
            by_position: self.by_position.as_ref().map_or(Ok(vec![]), |a| read_json(&a.path(RESULT)))?,
            choices: self.answers.iter().enumerate().map(choice).collect::<Result<_>>()?,
        })
    }
}

impl Session<'_> {
    /// Stages of an evaluation.
    pub(crate) fn evaluations(&self) -> usize {
        1 + usize::from(self.config.evaluate.long_context.is_some()) + self.config.evaluate.choices().count()
    }

    /// What figures of text depend on.
    pub(crate) fn text_config(&self) -> serde_json::Value {
        let e = &self.config.evaluate;
        serde_json::json!({"context": e.context, "batch_tokens": e.batch_tokens, "device": self.device})
    }

    /// Reads all texts and questions, so that what is wrong with them is said before anything runs.
    pub(crate) fn asked(&self) -> Result<Asked> {
        let (source, config, sizes) = (&self.source, self.config, self.sizes());
        let e = &config.evaluate;
        let (windows, long) = source.evaluation(config, e.long_context.as_ref(), sizes, self.console)?;
        Ok(Asked {
            windows,
            long,
            questions: e.choices().map(|m| source.questions(m, sizes, self.console)).collect::<Result<_>>()?,
        })
    }

    /// Figures of text of the original, with its final states for comparisons, or of a tuned checkpoint.
    pub(crate) fn evaluate_text(&self, whose: Whose, asked: &Asked) -> Result<Artifact> {
        let base = whose.original(|base| Some(&base.text));
        let identity = self.text_identity(whose.checkpoint(), base.map(Artifact::digest), &asked.windows);
        self.stage(&Part::Text.label(whose.is_original()), &identity, |work| {
            self.with_model(whose, |model| {
                let original = base.map(|base| (&self.model, base.dir.as_path()));
                let batch_tokens = self.config.evaluate.batch_tokens;
                let text = eval::evaluate_text(model, &asked.windows, batch_tokens, original, work, self.console)?;
                write_json(&work.path(RESULT), &text)
            })
        })
    }

    /// Quality of the original, with its final states for comparisons, or of a tuned checkpoint, read back from its
    /// files.
    pub(crate) fn evaluate(&self, whose: Whose, asked: &Asked) -> Result<Evaluated> {
        let batch_tokens = self.config.evaluate.batch_tokens;
        let text = self.evaluate_text(whose, asked)?;
        let by_position = match (&asked.long, &self.config.evaluate.long_context) {
            (Some(windows), Some(long)) => {
                let base = whose.original(|base| base.by_position.as_ref());
                let identity =
                    self.position_identity(whose.checkpoint(), base.map(Artifact::digest), windows, long.bands);
                Some(self.stage(&Part::Positions.label(whose.is_original()), &identity, |work| {
                    self.with_model(whose, |model| {
                        let original = base.map(|base| (&self.model, base.dir.as_path()));
                        let (bands, console) = (long.bands, self.console);
                        let found =
                            eval::evaluate_positions(model, windows, bands, batch_tokens, original, work, console)?;
                        write_json(&work.path(RESULT), &found)
                    })
                })?)
            }
            _ => None,
        };
        let mut answers = Vec::new();
        for (m, items) in self.config.evaluate.choices().zip(&asked.questions) {
            let identity = self.answers_identity(whose.checkpoint(), m, items)?;
            answers.push(self.stage(&Part::Answers(m.task).label(whose.is_original()), &identity, |work| {
                let text = Text::open(&self.source.dir, &self.model.config)?;
                self.with_model(whose, |model| {
                    answer(eval::Answering::Streamed(model), &text, (m, items), self.config, work, self.console)
                })
            })?);
        }
        Ok(Evaluated { text, by_position, answers })
    }

    pub(crate) fn text_identity(
        &self,
        checkpoint: Option<String>,
        base: Option<String>,
        windows: &Windows,
    ) -> Identity {
        self.compared("evaluate", (checkpoint, base), windows, self.text_config())
    }

    pub(crate) fn position_identity(
        &self,
        checkpoint: Option<String>,
        base: Option<String>,
        windows: &Windows,
        bands: usize,
    ) -> Identity {
        let mut config = self.text_config();
        (config["context"], config["bands"]) = (windows.context.into(), bands.into());
        self.compared("positions", (checkpoint, base), windows, config)
    }

    /// Identity of a stage that leaves the original's states, or compares with them.
    fn compared(
        &self,
        stage: &str,
        (checkpoint, base): (Option<String>, Option<String>),
        windows: &Windows,
        config: serde_json::Value,
    ) -> Identity {
        match checkpoint.zip(base) {
            Some((checkpoint, base)) => {
                self.identity(stage, TEXT, [("checkpoint", checkpoint), ("base", base)], config)
            }
            None => self.identity(&format!("{stage}-base"), TEXT, [("tokens", tokens_digest(windows))], config),
        }
    }

    pub(crate) fn answers_identity(
        &self,
        checkpoint: Option<String>,
        m: &MultipleChoice,
        items: &Items,
    ) -> Result<Identity> {
        let mut identity = self.identity(ANSWERS.0, ANSWERS.1, [], serde_json::Value::Null);
        identity.inputs.extend(checkpoint.map(|digest| ("checkpoint".to_string(), digest)));
        let text = Text::open(&self.source.dir, &self.model.config)?;
        identity_of_answers(identity, (&self.source.dir, &text), (m, items), self.config, &self.device)
    }

    fn with_model<T>(&self, whose: Whose, f: impl FnOnce(&Model) -> Result<T>) -> Result<T> {
        match whose {
            Whose::Original => f(&self.model),
            Whose::Tuned(encoded, prefix, _) => {
                f(&Model::open_prefix(&encoded.path("checkpoint"), prefix, self.model.device())?)
            }
        }
    }
}

/// The identity of answers, from one with the model that gives them.
pub(crate) fn identity_of_answers(
    mut identity: Identity,
    (dir, text): (&Path, &Text),
    (m, items): (&MultipleChoice, &Items),
    config: &Config,
    device: &str,
) -> Result<Identity> {
    identity.inputs.insert("tokenizer".into(), hash_file(&dir.join("tokenizer.json"))?);
    identity.inputs.insert("questions".into(), blake3::hash(format!("{items:?}").as_bytes()).to_hex().to_string());
    identity.config = serde_json::json!({
        "task": m.task, "bos": m.bos.then_some(text.prefix()), "skip_long": m.skip_long,
        "batch_tokens": config.evaluate.batch_tokens, "device": device,
    });
    Ok(identity)
}

/// Answers the questions of a benchmark and keeps every answer.
pub(crate) fn answer(
    model: eval::Answering,
    text: &Text,
    (m, items): (&MultipleChoice, &Items),
    config: &Config,
    work: &Work,
    console: &Console,
) -> Result<()> {
    let (task, name) = (m.task, m.task.name());
    let batch_tokens = 2 * config.evaluate.batch_tokens;
    let asked = eval::EvalInputs { task, items, bos: m.bos, skip_long: m.skip_long, batch_tokens, name };
    let start = Instant::now();
    let (result, answers) = eval::evaluate_choices(model, text, &asked, work, console)?;
    let (count, seconds) = (answers.len() as f64, start.elapsed().as_secs_f64());
    console.note(&format!("{name}: {count} questions in {seconds:.1} s, {:.1} a second", count / seconds));
    write_json(&work.path(QUESTIONS), &answers)?;
    write_json(&work.path(RESULT), &Answered { task, result })
}

impl<'a> Whose<'a> {
    /// An artifact of the original's evaluation, where it is compared with.
    fn original(self, of: impl Fn(&'a Evaluated) -> Option<&'a Artifact>) -> Option<&'a Artifact> {
        match self {
            Self::Original => None,
            Self::Tuned(.., base) => of(base),
        }
    }

    fn is_original(self) -> bool {
        matches!(self, Self::Original)
    }

    fn checkpoint(self) -> Option<String> {
        match self {
            Self::Original => None,
            Self::Tuned(encoded, prefix, _) => Some(prefix_digest(&encoded.digest(), prefix)),
        }
    }
}
