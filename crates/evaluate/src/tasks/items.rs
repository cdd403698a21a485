//! Questions, exercises, and how they are selected.

use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The texts whose likelihoods are compared to find a model's answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// The likelihoods of the letters after `Answer:`, as MMLU does.
    #[default]
    Letter,
    /// The likelihoods of the choices' texts after `The right choice is`, for models too small to
    /// connect a letter with its choice.
    Text,
    /// The text that the model writes after `The right choice is`, up to a comma or a full stop: the right choice's or not.
    Written,
}

/// One question: a context for each choice or one for all, and likewise continuations, which begin with the
/// space that separates them.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// MMLU's subject; the task's name elsewhere.
    pub subject: String,
    /// Context; one, or one for each choice.
    pub contexts: Vec<String>,
    /// Scored continuation; one, or one for each choice.
    pub continuations: Vec<String>,
    /// Index of the right choice.
    pub answer: usize,
}

impl Question {
    /// Number of choices.
    pub fn choices(&self) -> usize {
        self.contexts.len().max(self.continuations.len())
    }

    /// Context and continuation of a choice.
    pub fn request(&self, choice: usize) -> (&str, &str) {
        let of = |texts: &'_ [String]| -> usize { choice.min(texts.len() - 1) };
        (&self.contexts[of(&self.contexts)], &self.continuations[of(&self.continuations)])
    }
}

/// Questions of a benchmark, by their form.
#[derive(Debug, Clone, PartialEq)]
pub enum Items {
    /// Choices that are compared by likelihood.
    Questions(Vec<Question>),
    /// Texts that are written.
    Exercises(Vec<Exercise>),
}

/// Which questions, and how they are asked.
#[derive(Debug, Clone)]
pub struct Selection<'a> {
    /// Solved examples before each question of MMLU and GSM8K.
    pub shots: usize,
    /// File of GSM8K's examples.
    pub examples: Option<&'a Path>,
    /// The texts compared in MMLU's questions.
    pub scoring: Scoring,
    /// Subjects of MMLU; all when empty.
    pub subjects: &'a [String],
    /// Questions drawn.
    pub count: usize,
    /// Seed of the draw.
    pub seed: u64,
}

/// An exercise.
#[derive(Debug, Clone, PartialEq)]
pub struct Exercise {
    /// MMLU's subject; the task's name elsewhere.
    pub subject: String,
    /// The prompt.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Texts that end a continuation.
    pub stops: Vec<String>,
}

/// The first `count` of a seeded Fisher-Yates shuffle, back in their order.
pub(super) fn draw<T>(all: Vec<T>, count: usize, seed: u64) -> Vec<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..all.len()).collect();
    let count = count.min(all.len());
    for i in 0..count {
        let j = i + ((u128::from(rng.next_u64()) * (all.len() - i) as u128) >> 64) as usize;
        order.swap(i, j);
    }
    let mut taken = vec![false; all.len()];
    order[..count].iter().for_each(|&i| taken[i] = true);
    all.into_iter().zip(taken).filter_map(|(item, taken)| taken.then_some(item)).collect()
}
