//! The evaluation of the original and of tuned checkpoints: text, and benchmarks of questions.

use std::time::Instant;

use waterfill_artifacts::{Artifact, Identity, Progress, Work};
use waterfill_evaluate as eval;
use waterfill_evaluate::tasks::Items;
use waterfill_model::{Model, Text, Windows};

use crate::config::MultipleChoice;
use crate::error::Result;
use crate::results::{Choice, Evaluation, read_json, write_json};
use crate::session::Session;
use crate::stages::{BATCH_TOKENS, tokens_digest};

/// Of what an evaluation finds: it goes up when results change.
const VERSION: u32 = 4;

impl Session<'_> {
    /// What figures of text depend on.
    pub(crate) fn text_config(&self) -> serde_json::Value {
        let context = self.config.evaluate.context;
        serde_json::json!({"context": context, "batch_tokens": BATCH_TOKENS, "device": self.device})
    }

    fn evaluation_config(&self) -> serde_json::Value {
        let asked = |m: &MultipleChoice| serde_json::json!({"task": m.task, "bos": m.bos});
        let choices: Vec<serde_json::Value> = self.config.evaluate.choices().map(asked).collect();
        serde_json::json!({"text": self.text_config(), "choices": choices})
    }

    /// Quality of the original, and its final states for comparisons.
    pub(crate) fn evaluate_base(&self) -> Result<Artifact> {
        let windows = self.source.evaluation(self.config, self.sizes())?;
        let questions = self.questions()?;
        self.stage("evaluate the original", &self.base_identity(&windows, &questions), |work| {
            let text = eval::evaluate_text(&self.model, &windows, BATCH_TOKENS, None, work, self.console)?;
            let choices = self.answer(&self.model, &questions, None, work)?;
            write_json(&work.path("result.json"), &Evaluation { text, choices })
        })
    }

    pub(crate) fn base_identity(&self, windows: &Windows, questions: &[Items]) -> Identity {
        let inputs = [("tokens", tokens_digest(windows)), ("questions", questions_digest(questions))];
        self.identity("evaluate-base", VERSION, inputs, self.evaluation_config())
    }

    /// Quality of a tuned checkpoint, read back from its files.
    pub(crate) fn evaluate(&self, base: &Artifact, encoded: &Artifact) -> Result<Artifact> {
        self.stage("evaluate", &self.evaluation_identity(base.digest(), encoded.digest()), |work| {
            let windows = self.source.evaluation(self.config, self.sizes())?;
            let questions = self.questions()?;
            let tuned = Model::open(&encoded.path("checkpoint"), self.model.device())?;
            let original = Some((&self.model, base.dir.as_path()));
            let text = eval::evaluate_text(&tuned, &windows, BATCH_TOKENS, original, work, self.console)?;
            let choices = self.answer(&tuned, &questions, Some(base), work)?;
            write_json(&work.path("result.json"), &Evaluation { text, choices })
        })
    }

    pub(crate) fn evaluation_identity(&self, base: String, encoded: String) -> Identity {
        self.identity("evaluate", VERSION, [("checkpoint", encoded), ("base", base)], self.evaluation_config())
    }

    /// Questions of every benchmark.
    pub(crate) fn questions(&self) -> Result<Vec<Items>> {
        self.config.evaluate.choices().map(|m| self.source.questions(m)).collect()
    }

    /// Answers the questions, keeps every answer, and pairs with the original's.
    fn answer(&self, model: &Model, questions: &[Items], base: Option<&Artifact>, work: &Work) -> Result<Vec<Choice>> {
        let mut choices = Vec::new();
        for (n, (m, items)) in self.config.evaluate.choices().zip(questions).enumerate() {
            let text = Text::open(&self.source.dir, &self.model.config)?;
            let task = m.task;
            let name = format!("{}-{n}", task.name());
            let asked = eval::Asked { task, items, bos: m.bos, name: &name };
            let start = Instant::now();
            let (result, answers) = eval::evaluate_choices(model, &text, &asked, work, self.console)?;
            let (count, seconds) = (answers.len() as f64, start.elapsed().as_secs_f64());
            self.console.note(&format!("{name}: {count} questions in {seconds:.1} s, {:.1} a second", count / seconds));
            let file = format!("questions-{name}.json");
            write_json(&work.path(&file), &answers)?;
            let original: Vec<eval::QuestionResult> = match base {
                Some(base) => read_json(&base.path(&file))?,
                None => answers.clone(),
            };
            let point = |correct: bool| f64::from(u8::from(correct));
            let changes: Vec<f64> =
                answers.iter().zip(&original).map(|(a, b)| point(a.correct) - point(b.correct)).collect();
            choices.push(Choice { task, result, change: eval::Estimate::of(&changes) });
        }
        Ok(choices)
    }
}

fn questions_digest(questions: &[Items]) -> String {
    let mut hasher = blake3::Hasher::new();
    for items in questions {
        hasher.update(format!("{items:?}").as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
