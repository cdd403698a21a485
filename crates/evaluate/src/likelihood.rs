//! Likelihoods of continuations after their contexts.

use candle_core::{DType, Device};
use rayon::prelude::*;
use waterfill_model::other::OtherModel;
use waterfill_model::{Model, Reader, Text};
use waterfill_store::{Progress, Work};

use crate::answering::Answering;
use crate::error::{EvaluateError, Result};
use crate::states::{blocks, final_states};
use crate::tasks::Question;

/// A question, one of its choices, and that choice's log-likelihood.
type Score = (usize, usize, f64);

/// Tokens that go through the model for a question and one of its choices, or all of them where only the last
/// token differs.
pub(crate) struct Sequence {
    question: usize,
    inputs: Vec<u32>,
    /// Choices with the tokens whose likelihoods are added; they follow the last inputs.
    endings: Vec<(usize, Vec<u32>)>,
}

/// Questions with whether they lost their beginning.
pub(crate) type Cut<'a> = (&'a Question, bool);

/// Questions that are asked, and their tokens.
pub(crate) fn tokens_of<'a>(
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

/// Tokens of a question's contexts and continuations, each pair on its own as the harness does: the spaces that
/// end a context belong to what follows, whose tokens are those of both together beyond the context's own.
/// Cuts the beginning of a sequence that is too long; true where it did.
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
        // A scored token needs one before it.
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

/// Log-likelihoods of all choices of all questions, of which there are so many each.
pub(crate) fn score(
    model: Answering,
    sequences: (&[Sequence], usize),
    choices: Vec<usize>,
    work: (&Work, &str),
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    let mut scores: Vec<Vec<f64>> = choices.into_iter().map(|n| vec![0.0; n]).collect();
    match model {
        Answering::Streamed(model) => score_streamed(model, sequences, &mut scores, work, progress)?,
        Answering::Whole(model) => score_whole(model, sequences.0, &mut scores, work, progress)?,
    }
    Ok(scores)
}

/// Sequences of a unit of [`score_whole`].
const UNIT: usize = 64;

/// Each sequence alone, its scored tokens one by one.
fn score_whole(
    model: &OtherModel,
    sequences: &[Sequence],
    scores: &mut [Vec<f64>],
    (work, name): (&Work, &str),
    progress: &dyn Progress,
) -> Result<()> {
    progress.start(name, sequences.len() as u64);
    let one = |Sequence { question, inputs, endings }: &Sequence| -> Result<Vec<Score>> {
        let positions = endings[0].1.len();
        let (before, scored) = inputs.split_at(inputs.len() + 1 - positions);
        let mut reader = model.reader()?;
        let mut logits = vec![reader.read(before)?];
        for &token in scored {
            logits.push(reader.read(&[token])?);
        }
        progress.advance(1);
        Ok(endings.iter().map(|(choice, ending)| (*question, *choice, likelihood(ending, &logits))).collect())
    };
    for (n, part) in sequences.chunks(UNIT).enumerate() {
        let unit = format!("{name}-{n}");
        let found = match work.unit(&unit).and_then(|bytes| parse(&bytes, scores)) {
            Some(kept) => {
                progress.advance(part.len() as u64);
                kept
            }
            None => {
                let found = part.par_iter().map(one).collect::<Result<Vec<_>>>()?.concat();
                work.keep(&unit, &to_bytes(&found))?;
                found
            }
        };
        found.into_iter().for_each(|(n, c, score)| scores[n][c] = score);
    }
    Ok(())
}

/// Batches of sequences, a block of the model in memory at a time.
fn score_streamed(
    model: &Model,
    (sequences, batch_tokens): (&[Sequence], usize),
    scores: &mut [Vec<f64>],
    (work, name): (&Work, &str),
    progress: &dyn Progress,
) -> Result<()> {
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
    for (n, block) in blocks(&model.config, &batches, |b| b.len() * longest(b)).into_iter().enumerate() {
        let batches = &batches[block];
        let unit = format!("{name}-{n}");
        if let Some(kept) = work.unit(&unit).and_then(|bytes| parse(&bytes, scores)) {
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
                    let score = likelihood(ending, &logits);
                    scores[*question][*choice] = score;
                    done.push((*question, *choice, score));
                }
            }
        }
        work.keep(&unit, &to_bytes(&done))?;
    }
    Ok(())
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

/// Of tokens, each by the logits before it.
fn likelihood(tokens: &[u32], logits: &[Vec<f32>]) -> f64 {
    tokens.iter().zip(logits).map(|(&token, logits)| log_probability(logits, token as usize)).sum()
}

fn log_probability(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(l));
    let sum: f64 = logits.iter().map(|&l| f64::from(l - largest).exp()).sum();
    f64::from(logits[token] - largest) - sum.ln()
}
