//! Multiple choice by the likelihood of the choices' letters or texts.

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use waterfill_artifacts::{Progress, Work};
use waterfill_model::{Model, Text};

use crate::error::{EvaluateError, Result};
use crate::questions::{Question, QuestionSet, Scoring, prompt};
use crate::states::{blocks, final_states};
use crate::statistics::wilson;

/// Tokens of a batch of prompts.
const BATCH_TOKENS: usize = 4096;

/// Outcome of one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionResult {
    /// Subject.
    pub subject: String,
    /// Log-likelihood of each choice, nats.
    pub scores: [f64; 4],
    /// Index of the right choice.
    pub answer: usize,
    /// Whether the likeliest choice is the right one.
    pub correct: bool,
    /// Examples that fitted before the question.
    pub shots: usize,
    /// Whether the question's beginning was cut to fit the context.
    pub truncated: bool,
}

/// Accuracy over all questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceResult {
    /// Share of right answers.
    pub accuracy: f64,
    /// 95 % Wilson interval.
    pub interval: (f64, f64),
    /// Every question, in order.
    pub questions: Vec<QuestionResult>,
}

/// A question, one of its choices, and that choice's log-likelihood.
type Score = (usize, usize, f64);

/// A prompt's tokens and, for each choice, the tokens that follow.
struct Query {
    prefix: Vec<u32>,
    endings: Vec<Vec<u32>>,
    shots: usize,
    truncated: bool,
}

/// Answers all questions of `set` with up to `shots` examples of the question's subject before
/// each; examples that do not fit the context are left out, from the last, and a question that does
/// not fit alone loses its beginning. A block of questions is a unit of `work`.
///
/// # Errors
/// Contexts too short for any ending, and models that cannot be run.
pub fn evaluate_choices(
    model: &Model,
    text: &Text,
    set: &QuestionSet,
    (shots, scoring): (usize, Scoring),
    work: &Work,
    progress: &dyn Progress,
) -> Result<ChoiceResult> {
    let queries = set
        .test
        .iter()
        .map(|q| query(text, q, &set.dev, (shots, scoring), model.config.positions))
        .collect::<Result<Vec<Query>>>()?;
    let scores = score(model, &queries, work, progress)?;
    let questions: Vec<QuestionResult> = set
        .test
        .iter()
        .zip(&queries)
        .zip(scores)
        .map(|((question, query), scores)| {
            let best = (0..4).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
            QuestionResult {
                subject: question.subject.clone(),
                scores,
                answer: question.answer,
                correct: best == question.answer,
                shots: query.shots,
                truncated: query.truncated,
            }
        })
        .collect();
    let correct = questions.iter().filter(|q| q.correct).count();
    let accuracy = correct as f64 / questions.len() as f64;
    Ok(ChoiceResult { accuracy, interval: wilson(correct, questions.len()), questions })
}

fn query(
    text: &Text,
    question: &Question,
    dev: &[Question],
    (shots, scoring): (usize, Scoring),
    context: usize,
) -> Result<Query> {
    let examples: Vec<&Question> = dev.iter().filter(|d| d.subject == question.subject).take(shots).collect();
    for shots in (0..=examples.len()).rev() {
        let prompt = prompt(question, &examples[..shots], scoring);
        let full = (0..4)
            .map(|i| text.encode(&format!("{prompt} {}", scoring.ending(question, i))))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        // Tokens that all four share are the prompt, however the tokenizer joins them.
        let shared = (0..).take_while(|&i| full.iter().all(|f| f.len() > i + 1 && f[i] == full[0][i])).count();
        let longest = full.iter().map(Vec::len).max().unwrap_or(0);
        if longest > context && shots > 0 {
            continue;
        }
        // A question that does not fit alone loses its beginning, as in lm-evaluation-harness.
        let cut = longest.saturating_sub(context);
        if shared <= cut {
            let question = question.question.chars().take(60).collect();
            return Err(EvaluateError::Prompt { question, tokens: longest, context });
        }
        let endings = full.iter().map(|f| f[shared..].to_vec()).collect();
        return Ok(Query { prefix: full[0][cut..shared].to_vec(), endings, shots, truncated: cut > 0 });
    }
    unreachable!("without examples the loop returns")
}

/// Log-likelihood of every ending of every query.
fn score(model: &Model, queries: &[Query], work: &Work, progress: &dyn Progress) -> Result<Vec<[f64; 4]>> {
    // One sequence for a query whose endings are single tokens, else one for each ending.
    let mut sequences: Vec<(usize, Option<usize>, Vec<u32>)> = Vec::new();
    for (n, query) in queries.iter().enumerate() {
        if query.endings.iter().all(|e| e.len() == 1) {
            sequences.push((n, None, query.prefix.clone()));
            continue;
        }
        for (choice, ending) in query.endings.iter().enumerate() {
            let inputs = [&query.prefix[..], &ending[..ending.len() - 1]].concat();
            sequences.push((n, Some(choice), inputs));
        }
    }
    // Batches of like lengths; the causal mask makes padding at the end harmless.
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&i| (sequences[i].2.len(), i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * sequences[i].2.len() <= BATCH_TOKENS => batch.push(i),
            _ => batches.push(vec![i]),
        }
    }
    progress.start("questions", (model.config.layers * batches.len()) as u64);
    let head = model.head()?;
    let mut scores = vec![[0.0; 4]; queries.len()];
    let longest = |batch: &Vec<usize>| batch.iter().map(|&i| sequences[i].2.len()).max().unwrap_or(0);
    for (n, block) in blocks(&model.config, &batches, |b| b.len() * longest(b)).into_iter().enumerate() {
        let batches = &batches[block];
        let unit = format!("questions-{n}");
        if let Some(kept) = work.unit(&unit).and_then(|bytes| parse(&bytes, queries.len())) {
            kept.into_iter().for_each(|(n, c, score)| scores[n][c] = score);
            progress.advance((model.config.layers * batches.len()) as u64);
            continue;
        }
        let pad = |batch: &Vec<usize>| {
            let row = |&i: &usize| {
                let mut row = sequences[i].2.clone();
                row.resize(longest(batch), 0);
                row
            };
            batch.iter().map(row).collect::<Vec<Vec<u32>>>()
        };
        let padded: Vec<Vec<Vec<u32>>> = batches.iter().map(pad).collect();
        let rows: Vec<Vec<&[u32]>> = padded.iter().map(|b| b.iter().map(Vec::as_slice).collect()).collect();
        let states = final_states(model, &rows, (work, "questions-states"), progress)?;
        let mut done: Vec<Score> = Vec::new();
        for (batch, states) in batches.iter().zip(&states) {
            for (row, &i) in batch.iter().enumerate() {
                let (n, choice, inputs) = &sequences[i];
                let first = queries[*n].prefix.len() - 1;
                let positions = inputs.len() - first;
                let hidden = head.normalise(&states.get(row)?.narrow(0, first, positions)?)?;
                let logits: Vec<Vec<f32>> =
                    head.logits(&hidden)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2()?;
                let choices = choice.map_or(0..4, |c| c..c + 1);
                for c in choices {
                    let ending = &queries[*n].endings[c];
                    let score = ending.iter().zip(&logits).map(|(&t, l)| log_probability(l, t as usize)).sum();
                    scores[*n][c] = score;
                    done.push((*n, c, score));
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

fn parse(bytes: &[u8], questions: usize) -> Option<Vec<Score>> {
    let part = |b: &[u8], at: usize| -> [u8; 8] { b[at..at + 8].try_into().expect("eight bytes") };
    let index = |b: &[u8], at| u64::from_le_bytes(part(b, at)) as usize;
    let score = |b: &[u8]| (index(b, 0), index(b, 8), f64::from_le_bytes(part(b, 16)));
    let scores: Vec<Score> = bytes.chunks_exact(24).map(score).collect();
    scores.iter().all(|s| s.0 < questions && s.1 < 4).then_some(scores)
}

fn log_probability(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(l));
    let sum: f64 = logits.iter().map(|&l| f64::from(l - largest).exp()).sum();
    f64::from(logits[token] - largest) - sum.ln()
}
