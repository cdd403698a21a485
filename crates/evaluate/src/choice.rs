//! Benchmarks: choices by the likelihood of a continuation and answers that are written, as
//! lm-evaluation-harness 0.4 scores them.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use waterfill_artifacts::{Progress, Work};
use waterfill_model::{Model, Text};

use crate::error::{EvaluateError, Result};
use crate::states::{blocks, final_states};
use crate::statistics::wilson;
use crate::tasks::{Exercise, Items, Question, Task, last_number, number_after_mark};
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
    /// What was written.
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

/// A question, one of its choices, and that choice's log-likelihood.
type Score = (usize, usize, f64);

/// What goes through the model for a question and one of its choices, or all of them where only the last
/// token differs.
struct Sequence {
    question: usize,
    inputs: Vec<u32>,
    /// Choices with the tokens whose likelihoods are added; they follow the last inputs.
    endings: Vec<(usize, Vec<u32>)>,
}

/// Questions of a benchmark.
pub struct Asked<'a> {
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
    /// What names of units begin with.
    pub name: &'a str,
}

/// Answers all questions of a benchmark. A prompt that does not fit loses its beginning. A block of questions is
/// a unit of `work`.
///
/// # Errors
/// Contexts too short for a continuation, and models that cannot be run.
pub fn evaluate_choices(
    model: &Model,
    text: &Text,
    &Asked { task, items, bos, skip_long, batch_tokens, name }: &Asked,
    work: &Work,
    progress: &dyn Progress,
) -> Result<(ChoiceResult, Vec<QuestionResult>)> {
    let prefix = if bos { text.prefix() } else { &[] };
    let (results, skipped) = match items {
        Items::Questions(questions) => {
            let (asked, sequences) = tokens_of((text, prefix), questions, model.config.positions, skip_long)?;
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

/// Questions with whether they lost their beginning.
type Cut<'a> = (&'a Question, bool);

/// Questions that are asked, and their tokens.
fn tokens_of<'a>(
    tokenizer: (&Text, &[u32]),
    questions: &'a [Question],
    positions: usize,
    skip_long: bool,
) -> Result<(Vec<Cut<'a>>, Vec<Sequence>)> {
    let (mut asked, mut sequences) = (Vec::new(), Vec::new());
    for question in questions {
        match sequences_of(tokenizer, asked.len(), question, positions) {
            Ok((of, cut)) => {
                sequences.extend(of);
                asked.push((question, cut));
            }
            Err(EvaluateError::Prompt { .. }) if skip_long => {}
            Err(error) => return Err(error),
        }
    }
    Ok((asked, sequences))
}

/// The likeliest choices.
fn choose(
    model: &Model,
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

/// Tokens of a question's contexts and continuations, each pair on its own as the harness does: the spaces that
/// end a context belong to what follows, whose tokens are those of both together beyond the context's own.
/// What is too long loses its beginning; whether that was so.
fn sequences_of(
    (text, prefix): (&Text, &[u32]),
    n: usize,
    question: &Question,
    positions: usize,
) -> Result<(Vec<Sequence>, bool)> {
    let encode = |text_: &str| -> Result<Vec<u32>> { Ok([prefix, &text.encode(text_)?].concat()) };
    let failed = |tokens: usize| EvaluateError::Prompt {
        question: question.request(0).0.chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect(),
        tokens,
        context: positions,
    };
    let mut cut = false;
    let mut all: Vec<Sequence> = Vec::new();
    let mut last: Option<(&str, Vec<u32>)> = None;
    for choice in 0..question.choices() {
        let (context, continuation) = question.request(choice);
        let stem = context.trim_end();
        let before = match last.take() {
            Some((of, ids)) if of == stem => ids,
            _ => encode(stem)?,
        };
        let whole = encode(&format!("{context}{continuation}"))?;
        let ending = whole.get(before.len()..).unwrap_or_default().to_vec();
        let start = (before.len() + ending.len()).saturating_sub(positions + 1);
        // What is scored needs something before it.
        if ending.is_empty() || start >= before.len() {
            return Err(failed(ending.len()));
        }
        cut |= start > 0;
        let inputs = [&before[start..], &ending[..ending.len() - 1]].concat();
        match all.last_mut() {
            Some(same) if ending.len() == 1 && same.inputs == inputs && same.endings[0].1.len() == 1 => {
                same.endings.push((choice, ending));
            }
            _ => all.push(Sequence { question: n, inputs, endings: vec![(choice, ending)] }),
        }
        last = Some((stem, before));
    }
    Ok((all, cut))
}

/// Log-likelihoods of all choices of all questions.
fn score(
    model: &Model,
    (sequences, batch_tokens): (&[Sequence], usize),
    choices: Vec<usize>,
    (work, name): (&Work, &str),
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    // Batches of like lengths; the causal mask makes padding at the end harmless.
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&i| (sequences[i].inputs.len(), i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * sequences[i].inputs.len() <= batch_tokens => batch.push(i),
            _ => batches.push(vec![i]),
        }
    }
    progress.start(name, (model.config.layers * batches.len()) as u64);
    let head = model.head()?;
    let longest = |batch: &Vec<usize>| batch.iter().map(|&i| sequences[i].inputs.len()).max().unwrap_or(0);
    let mut scores: Vec<Vec<f64>> = choices.into_iter().map(|n| vec![0.0; n]).collect();
    for (n, block) in blocks(&model.config, &batches, |b| b.len() * longest(b)).into_iter().enumerate() {
        let batches = &batches[block];
        let unit = format!("{name}-{n}");
        if let Some(kept) = work.unit(&unit).and_then(|bytes| parse(&bytes, &scores)) {
            kept.into_iter().for_each(|(n, c, score)| scores[n][c] = score);
            progress.advance((model.config.layers * batches.len()) as u64);
            continue;
        }
        let pad = |batch: &Vec<usize>| {
            let row = |&i: &usize| {
                let mut row = sequences[i].inputs.clone();
                row.resize(longest(batch), 0);
                row
            };
            batch.iter().map(row).collect::<Vec<Vec<u32>>>()
        };
        let padded: Vec<Vec<Vec<u32>>> = batches.iter().map(pad).collect();
        let rows: Vec<Vec<&[u32]>> = padded.iter().map(|b| b.iter().map(Vec::as_slice).collect()).collect();
        let states = final_states(model, &rows, (work, &format!("{name}-states")), progress)?;
        let mut done: Vec<Score> = Vec::new();
        for (batch, states) in batches.iter().zip(&states) {
            for (row, &i) in batch.iter().enumerate() {
                let Sequence { question, inputs, endings } = &sequences[i];
                // The last input foretells the last token.
                let positions = endings[0].1.len();
                let hidden = states.get(row)?.narrow(0, inputs.len() - positions, positions)?;
                let logits: Vec<Vec<f32>> =
                    head.logits(&head.normalise(&hidden)?)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2()?;
                for (choice, ending) in endings {
                    let score = ending.iter().zip(&logits).map(|(&t, l)| log_probability(l, t as usize)).sum();
                    scores[*question][*choice] = score;
                    done.push((*question, *choice, score));
                }
            }
        }
        work.keep(&unit, &to_bytes(&done))?;
    }
    Ok(scores)
}

fn to_bytes(scores: &[Score]) -> Vec<u8> {
    let bytes = |&(n, c, score): &Score| [(n as u64).to_le_bytes(), (c as u64).to_le_bytes(), score.to_le_bytes()];
    scores.iter().flat_map(bytes).flatten().collect()
}

/// Kept scores of choices that there are.
fn parse(bytes: &[u8], of: &[Vec<f64>]) -> Option<Vec<Score>> {
    let part = |b: &[u8], at: usize| -> [u8; 8] { b[at..at + 8].try_into().expect("eight bytes") };
    let index = |b: &[u8], at| u64::from_le_bytes(part(b, at)) as usize;
    let score = |b: &[u8]| (index(b, 0), index(b, 8), f64::from_le_bytes(part(b, 16)));
    let scores: Vec<Score> = bytes.chunks_exact(24).map(score).collect();
    scores.iter().all(|s| of.get(s.0).is_some_and(|choices| s.1 < choices.len())).then_some(scores)
}

fn log_probability(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(l));
    let sum: f64 = logits.iter().map(|&l| f64::from(l - largest).exp()).sum();
    f64::from(logits[token] - largest) - sum.ln()
}
