//! A key hidden in a long text, which the model is asked for at its end (the pass key task of Mohtashami & Jaggi 2023).

use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::items::{Exercise, Items, Question, Scoring};
use crate::error::{EvaluateError, Result};

/// Placeholder of the key in sentences.
const KEY: &str = "{key}";
/// Keys of a question, the right one among them.
const CHOICES: usize = 4;

/// How keys are hidden and asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retrieval {
    /// Tokens of the prompts; a quarter, half and all of what the model takes if empty.
    pub lengths: Vec<usize>,
    /// Shares of the text before the key.
    pub depths: Vec<f64>,
    /// Sentence with `{key}`.
    pub needle: String,
    /// Text at the end that the key follows.
    pub question: String,
    /// Keys; numbers of five digits if empty.
    pub keys: Vec<String>,
}

impl Default for Retrieval {
    fn default() -> Self {
        Self {
            lengths: vec![],
            depths: vec![0.0, 0.25, 0.5, 0.75, 1.0],
            needle: "The pass key is {key}. Remember it. {key} is the pass key.".into(),
            question: "What is the pass key? The pass key is".into(),
            keys: vec![],
        }
    }
}

impl Retrieval {
    /// Why it cannot be asked, if so.
    pub fn problem(&self) -> Option<String> {
        let distinct = self.keys.iter().collect::<std::collections::BTreeSet<_>>().len();
        let wrong = |depth: &&f64| !(0.0..=1.0).contains(*depth);
        match self {
            r if !r.needle.contains(KEY) => Some(format!("needle {:?} has no {KEY}", r.needle)),
            r if r.question.contains(KEY) => Some(format!("question {:?} tells the key", r.question)),
            r if !r.keys.is_empty() && (distinct < CHOICES || distinct < r.keys.len()) => Some(format!(
                "{} keys, {distinct} of them different, expected {CHOICES} or more, all different",
                r.keys.len()
            )),
            r if r.depths.is_empty() => Some("no depths".into()),
            r => r.depths.iter().find(wrong).map(|d| format!("depth {d}, expected 0 to 1")),
        }
    }
}

/// The text that keys are hidden in, and how many questions are drawn from it.
#[derive(Debug, Clone, Copy)]
pub struct Haystack<'a> {
    /// File of the text, for messages.
    pub path: &'a Path,
    /// The text.
    pub text: &'a str,
    /// Largest number of tokens that the model takes.
    pub positions: usize,
    /// Questions for each length and depth.
    pub count: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// A choice of four keys by likelihood, or generation after the question.
    pub scoring: Scoring,
}

/// Questions about keys hidden in the sentences of a text; `tokens` counts the tokens of a text.
///
/// # Errors
/// A text without sentences, lengths that key and question do not fit, and those of `tokens`.
pub fn retrieval(retrieval: &Retrieval, haystack: Haystack, tokens: impl Fn(&str) -> Result<usize>) -> Result<Items> {
    let Haystack { path, text, positions, count, seed, scoring } = haystack;
    let sentences = sentences(text);
    if sentences.is_empty() {
        return Err(EvaluateError::Questions { path: path.into(), reason: "has no sentences".into() });
    }
    let sizes = sentences.iter().map(|s| tokens(&format!(" {s}"))).collect::<Result<Vec<usize>>>()?;
    let lengths = match retrieval.lengths.as_slice() {
        [] => vec![positions / 4, positions / 2, positions],
        some => some.to_vec(),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |n: usize| ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize;
    let (mut questions, mut exercises) = (Vec::new(), Vec::new());
    for &length in &lengths {
        for &depth in &retrieval.depths {
            let subject = format!("{length:>6} tokens, depth {:>3.0} %", 100.0 * depth);
            for _ in 0..count {
                let mut keys: Vec<String> = Vec::new();
                while keys.len() < CHOICES {
                    let key = match retrieval.keys.as_slice() {
                        [] => (10_000 + below(90_000)).to_string(),
                        some => some[below(some.len())].clone(),
                    };
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                }
                let answer = below(CHOICES);
                let needle = retrieval.needle.replace(KEY, &keys[answer]);
                let longest = keys.iter().map(|k| tokens(&format!(" {k}"))).collect::<Result<Vec<usize>>>()?;
                let fixed =
                    tokens(&format!(" {needle} {}", retrieval.question))? + longest.into_iter().max().unwrap_or(0);
                let room = length.min(positions).checked_sub(fixed).ok_or_else(|| {
                    let reason = format!("key and question take {fixed} tokens, more than the {length} asked for");
                    EvaluateError::Questions { path: path.into(), reason }
                })?;
                // Sentences from a place of their own on; what stands before a key differs.
                let start = below(sentences.len());
                let mut taken = 0;
                let mut filler: Vec<&str> = Vec::new();
                for i in (0..sentences.len()).cycle().skip(start).take(sentences.len() * 1000) {
                    if taken + sizes[i] > room {
                        break;
                    }
                    taken += sizes[i];
                    filler.push(sentences[i]);
                }
                filler.insert((depth * filler.len() as f64).round() as usize, &needle);
                let prompt = format!("{} {}", filler.join(" "), retrieval.question);
                match scoring {
                    Scoring::Written => exercises.push(Exercise {
                        subject: subject.clone(),
                        prompt,
                        answer: keys.swap_remove(answer),
                        stops: ["\n", ".", ","].map(String::from).into(),
                    }),
                    _ => questions.push(Question {
                        subject: subject.clone(),
                        contexts: vec![prompt],
                        continuations: keys.iter().map(|k| format!(" {k}")).collect(),
                        answer,
                    }),
                }
            }
        }
    }
    Ok(if scoring == Scoring::Written { Items::Exercises(exercises) } else { Items::Questions(questions) })
}

/// Sentences of a text: what ends with a full stop and white space, or a line.
fn sentences(text: &str) -> Vec<&str> {
    let lines = text.lines().flat_map(|line| line.split_inclusive(". "));
    lines.map(str::trim).filter(|s| !s.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "One bird sings. Two cats sleep well.\n\nThree dogs run. The sun is up. Rain falls.";

    fn words(text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }

    fn haystack(count: usize, seed: u64, scoring: Scoring) -> Haystack<'static> {
        Haystack { path: Path::new("text"), text: TEXT, positions: 64, count, seed, scoring }
    }

    #[test]
    fn keys_stand_at_their_depth() {
        let r = Retrieval { lengths: vec![40, 60], depths: vec![0.0, 0.5, 1.0], ..Retrieval::default() };
        let Items::Questions(all) = retrieval(&r, haystack(3, 7, Scoring::Letter), words).unwrap() else {
            panic!("keys are chosen")
        };
        assert_eq!(all.len(), 2 * 3 * 3);
        for (n, q) in all.iter().enumerate() {
            let prompt = &q.contexts[0];
            let (length, depth) = ([40, 60][n / 9], [0.0, 0.5, 1.0][n / 3 % 3]);
            assert_eq!(q.subject, format!("{length:>6} tokens, depth {:>3} %", depth * 100.0));
            let count = words(prompt).unwrap() + 1;
            assert!(count <= length && count > length - 5, "{count} of {length}");
            let key = q.continuations[q.answer].trim();
            assert!(prompt.contains(&format!("The pass key is {key}. Remember it. {key} is the pass key.")));
            assert!(prompt.ends_with("What is the pass key? The pass key is"));
            let at = words(&prompt[..prompt.find("The pass key").unwrap()]).unwrap() as f64;
            let filler = (count - 1 - 11 - 8) as f64;
            assert!((at / filler - depth).abs() < 0.2, "{at} of {filler} for {depth}");
            assert!(q.continuations.iter().enumerate().all(|(i, k)| i == q.answer || !prompt.contains(k.trim())));
        }
        let again = retrieval(&r, haystack(3, 7, Scoring::Letter), words).unwrap();
        assert_eq!(again, Items::Questions(all));
    }

    #[test]
    fn own_keys_are_written() {
        let keys = ["red", "blue", "green", "white"].map(String::from).to_vec();
        let r = Retrieval { lengths: vec![30], depths: vec![0.5], keys: keys.clone(), ..Retrieval::default() };
        let made = retrieval(&r, haystack(2, 1, Scoring::Written), words).unwrap();
        let Items::Exercises(all) = made else { panic!("keys are written") };
        assert!(all.iter().all(|e| keys.contains(&e.answer) && e.prompt.contains(&format!("is {}.", e.answer))));
        let short = Retrieval { lengths: vec![12], ..r.clone() };
        let message = retrieval(&short, haystack(1, 1, Scoring::Letter), words).unwrap_err().to_string();
        assert!(message.contains("more than the 12 asked for"), "{message}");
        for (wrong, expected) in [
            (Retrieval { needle: "key".into(), ..r.clone() }, "no {key}"),
            (Retrieval { keys: keys[..3].to_vec(), ..r.clone() }, "3 keys, 3 of them different"),
            (Retrieval { depths: vec![1.5], ..r.clone() }, "depth 1.5"),
        ] {
            assert!(wrong.problem().unwrap().contains(expected));
        }
        assert_eq!(r.problem(), None);
    }
}
