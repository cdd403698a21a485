//! Reads a benchmark's questions.

use std::path::Path;

use super::items::{Items, Selection, draw};
use super::task::Task;
use super::{exercise, likelihood, mmlu};
use crate::error::{EvaluateError, Result};

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
