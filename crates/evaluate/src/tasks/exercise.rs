//! Exercises with an answer that the model writes out.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use super::items::{Exercise, Selection, draw};
use super::records::records;
use super::task::Task;
use crate::error::{EvaluateError, Result};

/// Mark before the number that the reasoning of GSM8K ends with.
const MARK: &str = "####";

/// GSM8K (Cobbe et al. 2021) as published.
#[derive(Deserialize)]
struct Gsm8k {
    question: String,
    answer: String,
}

/// Exercises of GSM8K: the first of the examples with their reasoning, then the question, as the harness' `gsm8k`
/// puts them together (which draws its examples).
///
/// # Errors
/// Files that cannot be read or are of another layout, answers without their number.
pub(super) fn gsm8k(path: &Path, selection: &Selection) -> Result<Vec<Exercise>> {
    let read = |files: Vec<PathBuf>| -> Result<Vec<Gsm8k>> {
        let lines: Vec<Gsm8k> = records(&files, usize::MAX)?;
        match lines.iter().position(|l| number_after_mark(&l.answer).is_none()) {
            Some(n) => Err(EvaluateError::Questions {
                path: files[0].clone(),
                reason: format!("exercise {}: its answer has no {MARK} with a number", n + 1),
            }),
            None => Ok(lines),
        }
    };
    let solved = match selection.examples {
        Some(examples) if examples.is_dir() => read(Task::Gsm8k.examples(examples)?)?,
        Some(examples) => read(vec![examples.into()])?,
        None if selection.shots > 0 => read(Task::Gsm8k.examples(path)?)?,
        None => vec![],
    };
    let before: String = solved
        .iter()
        .take(selection.shots)
        .map(|e| format!("Question: {}\nAnswer: {}\n\n", e.question, e.answer))
        .collect();
    let exercise = |e: Gsm8k| Exercise {
        subject: "gsm8k".into(),
        prompt: format!("{before}Question: {}\nAnswer:", e.question),
        answer: number_after_mark(&e.answer).unwrap_or_default(),
        stops: ["Question:", "</s>", "<|im_end|>"].map(String::from).into(),
    };
    Ok(draw(read(Task::Gsm8k.files(path)?)?, selection.count, selection.seed).into_iter().map(exercise).collect())
}

/// The number after the mark, as the harness' strict filter finds it.
pub(crate) fn number_after_mark(text: &str) -> Option<String> {
    static STRICT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#### (-?[0-9.,]+)").expect("a regex"));
    Some(plain(&STRICT.captures(text)?[1]))
}

/// The last number in a text, as the harness' flexible filter finds it.
pub(crate) fn last_number(text: &str) -> Option<String> {
    static FLEXIBLE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"-?[$0-9.,]{2,}|-?[0-9]+").expect("a regex"));
    Some(plain(FLEXIBLE.find_iter(text).last()?.as_str()))
}

/// Without what the harness ignores: thousands' commas, dollars, a last full stop.
fn plain(number: &str) -> String {
    let number: String = number.chars().filter(|c| !",$".contains(*c)).collect();
    number.strip_suffix('.').unwrap_or(&number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::items::Scoring;

    #[test]
    fn numbers_are_found_as_the_harness_finds_them() {
        for (text, strict, flexible) in [
            ("He has 3 + 4 = <<3+4=7>>7.\n#### 7", Some("7"), Some("7")),
            ("It costs $1,234.50 in all.\n#### 1,234.50 dollars", Some("1234.50"), Some("1234.50")),
            ("So the answer is -12.", None, Some("-12")),
            ("#### -3 and 4", Some("-3"), Some("4")),
            ("####5", None, Some("5")),
            ("none", None, None),
        ] {
            assert_eq!(
                (number_after_mark(text).as_deref(), last_number(text).as_deref()),
                (strict, flexible),
                "{text}"
            );
        }
    }

    #[test]
    fn prompts_are_the_harness() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let line = |q: &str, a: &str| format!("{{\"question\": \"{q}\", \"answer\": \"{a}\"}}\n");
        let train = write("train.jsonl", &(line("One and one?", "It is 2.\\n#### 2") + &line("More?", "#### 1")));
        let test = write("test.jsonl", &line("Two and two?", "2+2=4\\n#### 4"));
        let selection =
            Selection { shots: 1, examples: Some(&train), scoring: Scoring::Letter, subjects: &[], count: 9, seed: 1 };
        let found = gsm8k(&test, &selection).unwrap();
        assert_eq!(
            found[0].prompt,
            "Question: One and one?\nAnswer: It is 2.\n#### 2\n\nQuestion: Two and two?\nAnswer:"
        );
        assert_eq!((found.len(), found[0].answer.as_str()), (1, "4"));
        let wrong = write("wrong.jsonl", &line("Why?", "7"));
        let message = gsm8k(&wrong, &selection).unwrap_err().to_string();
        assert!(message.contains("wrong.jsonl") && message.contains("exercise 1"), "{message}");
    }
}
