//! Benchmarks: choices by the likelihood of a continuation and answers that are written, as
//! lm-evaluation-harness 0.4 scores them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waterfill_model::Text;
use waterfill_store::{Progress, Work};

use crate::answering::Answering;
use crate::error::Result;
use crate::likelihood::{Cut, Sequence, score, tokens_of};
use crate::statistics::wilson;
use crate::tasks::{Exercise, Items, Task, last_number, number_after_mark};
use crate::writing::write_answers;

/// Outcome of one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionResult {
    /// Subject.
    pub subject: String,
    /// Log-likelihood of each choice, nats; none of what was written.
    pub scores: Vec<f64>,
    /// The right choice's index, or what is right to write.
    pub answer: String,
    /// The text that the model wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<String>,
    /// Whether the likeliest choice is the right one, or what was written is right.
    pub correct: bool,
    /// The same by [`Task::other_way`].
    pub correct_other_way: Option<bool>,
    /// Whether the beginning was cut to fit the context.
    pub truncated: bool,
}

/// A share of right answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Right answers over questions.
    pub accuracy: f64,
    /// 95 % Wilson interval.
    pub interval: (f64, f64),
    /// Questions.
    pub questions: usize,
}

impl Share {
    fn of(correct: impl Iterator<Item = bool>) -> Self {
        let (mut right, mut questions) = (0, 0);
        for correct in correct {
            right += usize::from(correct);
            questions += 1;
        }
        Self { accuracy: right as f64 / questions as f64, interval: wilson(right, questions), questions }
    }
}

/// Accuracy over all questions of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceResult {
    /// The likeliest choice is the right one: the harness' `acc`.
    pub all: Share,
    /// The same by [`Task::other_way`].
    pub other_way: Option<Share>,
    /// By subject, where there are several.
    pub subjects: BTreeMap<String, Share>,
    /// By group of subjects.
    pub groups: BTreeMap<String, Share>,
    /// Questions that lost their beginning.
    pub truncated: usize,
    /// Questions left out, since a choice is longer than the context.
    #[serde(default)]
    pub skipped: usize,
}

/// Questions of a benchmark, and how they are asked.
pub struct EvalInputs<'a> {
    /// Which benchmark.
    pub task: Task,
    /// Its questions.
    pub items: &'a Items,
    /// Whether the tokenizer's beginning of text stands before; by default the harness leaves it out.
    pub bos: bool,
    /// Whether questions with a choice that is longer than the context are left out; else they are an error.
    pub skip_long: bool,
    /// Tokens of a batch of prompts, at least one prompt's.
    pub batch_tokens: usize,
    /// Prefix of the names of units.
    pub name: &'a str,
}

/// Answers all questions of a benchmark. A prompt that does not fit loses its beginning. A block of questions is
/// a unit of `work`.
///
/// # Errors
/// Contexts too short for a continuation, and models that cannot be run.
pub fn evaluate_choices(
    model: Answering,
    text: &Text,
    &EvalInputs { task, items, bos, skip_long, batch_tokens, name }: &EvalInputs,
    work: &Work,
    progress: &dyn Progress,
) -> Result<(ChoiceResult, Vec<QuestionResult>)> {
    let prefix = if bos { text.prefix() } else { &[] };
    let (results, skipped) = match items {
        Items::Questions(questions) => {
            let (asked, sequences) = tokens_of((text, prefix), questions, model.positions(), skip_long)?;
            let skipped = questions.len() - asked.len();
            (choose(model, (task, &asked), (&sequences, batch_tokens), (work, name), progress)?, skipped)
        }
        Items::Exercises(exercises) => {
            let given = write_answers(model, (text, prefix), exercises, (work, name), progress)?;
            (exercises.iter().zip(given).map(|(exercise, given)| graded(task, exercise, given)).collect(), 0)
        }
    };
    Ok((summarise(task, &results, skipped), results))
}

/// The likeliest choices.
fn choose(
    model: Answering,
    (task, questions): (Task, &[Cut]),
    (sequences, batch_tokens): (&[Sequence], usize),
    (work, name): (&Work, &str),
    progress: &dyn Progress,
) -> Result<Vec<QuestionResult>> {
    let choices = questions.iter().map(|(q, _)| q.choices()).collect();
    let scores = score(model, (sequences, batch_tokens), choices, (work, name), progress)?;
    let result = |(&(question, truncated), scores): (&Cut, Vec<f64>)| {
        let best = |score: &dyn Fn(usize) -> f64| {
            (0..scores.len()).fold(0, |best, i| if score(i) > score(best) { i } else { best })
        };
        // Characters without the space before.
        let length = |i: usize| (question.request(i).1.chars().count() - 1).max(1) as f64;
        QuestionResult {
            subject: question.subject.clone(),
            answer: question.answer.to_string(),
            written: None,
            correct: best(&|i| scores[i]) == question.answer,
            correct_other_way: task.other_way().map(|_| best(&|i| scores[i] / length(i)) == question.answer),
            truncated,
            scores,
        }
    };
    Ok(questions.iter().zip(scores).map(result).collect())
}

/// Whether what was written is right.
fn graded(task: Task, exercise: &Exercise, (written, truncated): (String, bool)) -> QuestionResult {
    let right = |found: Option<String>| found.as_ref() == Some(&exercise.answer);
    let (correct, other_way) = match task {
        Task::Gsm8k => (right(number_after_mark(&written)), Some(right(last_number(&written)))),
        _ => (written.trim() == exercise.answer, None),
    };
    QuestionResult {
        subject: exercise.subject.clone(),
        scores: vec![],
        answer: exercise.answer.clone(),
        written: Some(written),
        correct,
        correct_other_way: other_way,
        truncated,
    }
}

fn summarise(task: Task, results: &[QuestionResult], skipped: usize) -> ChoiceResult {
    let shares = |key: &dyn Fn(&QuestionResult) -> Option<String>| -> BTreeMap<String, Share> {
        let mut parts: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for result in results {
            if let Some(key) = key(result) {
                parts.entry(key).or_default().push(result.correct);
            }
        }
        parts.into_iter().map(|(key, correct)| (key, Share::of(correct.into_iter()))).collect()
    };
    let mut subjects = shares(&|r| Some(r.subject.clone()));
    if subjects.len() < 2 {
        subjects.clear();
    }
    ChoiceResult {
        all: Share::of(results.iter().map(|r| r.correct)),
        other_way: task.other_way().map(|_| Share::of(results.iter().filter_map(|r| r.correct_other_way))),
        subjects,
        groups: shares(&|r| task.group(&r.subject)),
        truncated: results.iter().filter(|r| r.truncated).count(),
        skipped,
    }
}
