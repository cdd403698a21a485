//! Benchmarks and their files.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::subjects::Group;
use crate::error::{EvaluateError, Result};

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
    /// Keys hidden in a text, by [`super::retrieval()`].
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
    pub(super) fn files(self, path: &Path) -> Result<Vec<PathBuf>> {
        self.split(path, self.parts().1)
    }

    /// Files with solved examples below `path`.
    pub(super) fn examples(self, path: &Path) -> Result<Vec<PathBuf>> {
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
