//! Benchmarks, asked as lm-evaluation-harness 0.4 asks them: which continuation of a context is the likeliest, or
//! what a model writes.

mod exercise;
mod likelihood;
mod mmlu;
mod records;
mod retrieval;

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{EvaluateError, Result};
pub use exercise::Exercise;
pub(crate) use exercise::{last_number, number_after_mark};
pub use mmlu::{Group, Scoring};
pub use records::records;
pub use retrieval::{Retrieval, retrieval};

/// A benchmark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Hendrycks et al. 2021; a directory with `dev/` and `test/`, or as `cais/mmlu` on the hub.
    #[default]
    Mmlu,
    /// Zellers et al. 2019; rows with `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`, as `Rowan/hellaswag`.
    Hellaswag,
    /// Clark et al. 2018; rows with `query`, `choices`, `gold`, or as `allenai/ai2_arc`.
    ArcEasy,
    /// Bisk et al. 2020; the same, or as `ybisk/piqa`.
    Piqa,
    /// Sakaguchi et al. 2020; rows with `context_options`, `continuation`, `gold`, or as `allenai/winogrande`.
    Winogrande,
    /// Cobbe et al. 2021; rows with `question` and `answer`, as `openai/gsm8k`; what the model writes is compared.
    Gsm8k,
    /// Keys hidden in a text, by [`retrieval`].
    Retrieval,
}

impl Task {
    /// Name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mmlu => "mmlu",
            Self::Hellaswag => "hellaswag",
            Self::ArcEasy => "arc-easy",
            Self::Piqa => "piqa",
            Self::Winogrande => "winogrande",
            Self::Gsm8k => "gsm8k",
            Self::Retrieval => "retrieval",
        }
    }

    /// The other way of comparing that the harness reports: likelihoods by character (`acc_norm`), or the last
    /// number of a text instead of the marked one.
    pub fn other_way(self) -> Option<&'static str> {
        match self {
            Self::Hellaswag | Self::ArcEasy | Self::Piqa => Some("by length"),
            Self::Gsm8k => Some("flexible"),
            Self::Mmlu | Self::Winogrande | Self::Retrieval => None,
        }
    }

    /// Solved examples before each question, where nothing else is asked for.
    pub fn usual_shots(self) -> usize {
        if self.takes_examples() { 5 } else { 0 }
    }

    /// Whether there can be solved examples.
    pub fn takes_examples(self) -> bool {
        matches!(self, Self::Mmlu | Self::Gsm8k)
    }

    /// The dataset's part that is asked, its split with the questions, and that with solved examples.
    fn parts(self) -> (&'static str, &'static str, Option<&'static str>) {
        match self {
            Self::Mmlu => ("all", "test", Some("dev")),
            Self::Hellaswag => ("default", "validation", None),
            Self::ArcEasy => ("ARC-Easy", "test", None),
            Self::Piqa => ("plain_text", "validation", None),
            Self::Winogrande => ("winogrande_xl", "validation", None),
            Self::Gsm8k => ("main", "test", Some("train")),
            // Made here.
            Self::Retrieval => ("", "", None),
        }
    }

    /// Patterns of the files of a split, the first that any match counts: as the hub stores tables, and as its own
    /// conversions of other formats do (revision `refs/convert/parquet`).
    fn patterns(self, split: &str) -> Vec<String> {
        let (part, ..) = self.parts();
        ["{part}/{split}-*.parquet", "{part}/{split}/*.parquet", "data/{split}-*.parquet", "default/{split}/*.parquet"]
            .map(|pattern| pattern.replace("{part}", part).replace("{split}", split))
            .into()
    }

    /// Files of a dataset that the questions need, with solved examples or without: a list of patterns for each
    /// split, of which the first counts that any files have.
    pub fn wanted(self, with_examples: bool) -> Vec<Vec<String>> {
        let (_, questions, examples) = self.parts();
        [Some(questions), examples.filter(|_| with_examples)].into_iter().flatten().map(|s| self.patterns(s)).collect()
    }

    /// Files with the questions: `path` itself, or those below it.
    fn files(self, path: &Path) -> Result<Vec<PathBuf>> {
        self.split(path, self.parts().1)
    }

    /// Files with solved examples below `path`.
    fn examples(self, path: &Path) -> Result<Vec<PathBuf>> {
        if path.is_file() {
            let reason =
                "is a file with questions, which are no examples: give shots: 0, a folder, or gsm8k's examples";
            return Err(EvaluateError::Questions { path: path.into(), reason: reason.into() });
        }
        self.split(path, self.parts().2.unwrap_or_default())
    }

    fn split(self, path: &Path, split: &str) -> Result<Vec<PathBuf>> {
        if !path.is_dir() {
            return Ok(vec![path.into()]);
        }
        let patterns = self.patterns(split);
        let found = waterfill_store::matching_files(path, &patterns);
        match found.is_empty() {
            false => Ok(found),
            true => {
                let own = if self == Self::Mmlu { "neither test/ with CSV files nor" } else { "no file" };
                let reason = format!("has {own} {}", patterns.join(" or "));
                Err(EvaluateError::Questions { path: path.into(), reason })
            }
        }
    }

    /// Part of the benchmark that a subject belongs to.
    pub fn group(self, subject: &str) -> Option<String> {
        match self {
            Self::Mmlu => Group::of(subject).map(|group| group.name().to_string()),
            Self::Retrieval => Some(subject.to_string()),
            _ => None,
        }
    }
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

/// Reads a benchmark's questions from `path`.
///
/// # Errors
/// Files that are missing or of another layout, and subjects that are not there.
pub fn open(task: Task, path: &Path, selection: &Selection) -> Result<Items> {
    match task {
        Task::Retrieval => {
            let reason = "holds no questions of retrieval, which are made from a text".into();
            Err(EvaluateError::Questions { path: path.into(), reason })
        }
        Task::Mmlu => mmlu::open(path, selection),
        Task::Gsm8k => Ok(Items::Exercises(exercise::gsm8k(path, selection)?)),
        _ => Ok(Items::Questions(draw(likelihood::open(task, &task.files(path)?)?, selection.count, selection.seed))),
    }
}

/// The first `count` of a seeded Fisher-Yates shuffle, back in their order.
fn draw<T>(all: Vec<T>, count: usize, seed: u64) -> Vec<T> {
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
