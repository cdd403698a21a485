//! Benchmarks whose questions are lines of JSON, and such lines.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Question, Task};
use crate::error::{EvaluateError, Result};

/// HellaSwag as published.
#[derive(Deserialize)]
struct Hellaswag {
    activity_label: String,
    ctx_a: String,
    ctx_b: String,
    endings: Vec<String>,
    /// A number, or a string of one.
    label: serde_json::Value,
}

/// ARC and PIQA.
#[derive(Deserialize)]
struct Choices {
    query: String,
    choices: Vec<String>,
    gold: usize,
}

/// WinoGrande: the sentence up to and with each option, and the rest.
#[derive(Deserialize)]
struct Winogrande {
    context_options: Vec<String>,
    continuation: String,
    gold: usize,
}

/// Questions of a file.
///
/// # Errors
/// A file that cannot be read, lines of another layout, answers that are none of the choices.
pub(super) fn open(task: Task, path: &Path) -> Result<Vec<Question>> {
    let subject = || task.name().to_string();
    let questions: Vec<Question> = match task {
        Task::Hellaswag => lines(path)?
            .into_iter()
            .map(|q: Hellaswag| Question {
                subject: subject(),
                contexts: vec![clean(&format!("{}: {} {}", q.activity_label, q.ctx_a, capitalised(&q.ctx_b)))],
                continuations: q.endings.iter().map(|e| format!(" {}", clean(e))).collect(),
                answer: q
                    .label
                    .as_str()
                    .map_or(q.label.as_u64(), |l| l.parse().ok())
                    .map_or(usize::MAX, |l| l as usize),
            })
            .collect(),
        Task::Winogrande => lines(path)?
            .into_iter()
            .map(|q: Winogrande| Question {
                subject: subject(),
                contexts: q.context_options,
                continuations: vec![format!(" {}", q.continuation.trim())],
                answer: q.gold,
            })
            .collect(),
        _ => lines(path)?
            .into_iter()
            .map(|q: Choices| Question {
                subject: subject(),
                contexts: vec![format!("{}\nAnswer:", q.query)],
                continuations: q.choices.iter().map(|c| format!(" {c}")).collect(),
                answer: q.gold,
            })
            .collect(),
    };
    let wrong = questions.iter().enumerate().find(|(_, q)| q.answer >= q.choices() || q.choices() < 2);
    match wrong {
        Some((n, q)) => {
            let reason = format!("question {}: the answer is none of its {} choices", n + 1, q.choices());
            Err(EvaluateError::Questions { path: path.to_path_buf(), reason })
        }
        None => Ok(questions),
    }
}

/// What the lines of a file hold.
///
/// # Errors
/// A file that cannot be read, lines of another layout, none at all.
pub(super) fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let failed = |reason: String| EvaluateError::Questions { path: path.to_path_buf(), reason };
    let file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut all = Vec::new();
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| failed(e.to_string()))?;
        if !line.trim().is_empty() {
            all.push(serde_json::from_str(&line).map_err(|e| failed(format!("line {}: {e}", n + 1)))?);
        }
    }
    if all.is_empty() {
        return Err(failed("has no questions".into()));
    }
    Ok(all)
}

/// Python's `str.capitalize`: the first letter upper case, all others lower.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters.flat_map(char::to_lowercase)).collect(),
        None => String::new(),
    }
}

/// The harness' cleaning of WikiHow's marks: titles become full stops, what stands in brackets goes.
fn clean(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // As the expression `\[.*?\]`, whose dot is no line feed.
    while let Some(open) = rest.find('[') {
        let inside = &rest[open + 1..];
        match inside.find([']', '\n']) {
            Some(close) if inside[close..].starts_with(']') => {
                out.push_str(&rest[..open]);
                rest = &inside[close + 1..];
            }
            _ => {
                out.push_str(&rest[..open + 1]);
                rest = inside;
            }
        }
    }
    (out + rest).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(task: Task, text: &str) -> Result<Vec<Question>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("questions.jsonl");
        std::fs::write(&path, text).unwrap();
        open(task, &path)
    }

    /// Prompts rebuilt by hand after the harness' task files.
    #[test]
    fn prompts_are_the_harness() {
        let line = r#"{"activity_label": "Baking [header]", "ctx_a": "First [title] stir. [step] Wait", "ctx_b": "the Cook", "endings": ["adds  [x] salt", "runs", "a [b", "d"], "label": "1"}"#;
        let q = &read(Task::Hellaswag, line).unwrap()[0];
        assert_eq!(q.contexts, ["Baking : First. stir. Wait The cook"]);
        assert_eq!(q.continuations, [" adds  salt", " runs", " a [b", " d"]);
        assert_eq!((q.answer, q.choices(), q.request(1)), (1, 4, (q.contexts[0].as_str(), " runs")));

        let line = r#"{"choices": ["on a plate", "in a cup"], "gold": 1, "query": "Question: Where is tea?"}"#;
        let q = &read(Task::Piqa, line).unwrap()[0];
        assert_eq!(q.request(1), ("Question: Where is tea?\nAnswer:", " in a cup"));
        assert_eq!(read(Task::ArcEasy, line).unwrap()[0].contexts, q.contexts);

        let line = r#"{"context_options": ["Ann helped Bea since Ann", "Ann helped Bea since Bea"], "continuation": " was kind. ", "gold": 0}"#;
        let q = &read(Task::Winogrande, line).unwrap()[0];
        assert_eq!(q.request(1), ("Ann helped Bea since Bea", " was kind."));
        assert_eq!(q.choices(), 2);
    }

    #[test]
    fn other_layouts_are_named() {
        let good = "{\"choices\": [\"a\", \"b\"], \"gold\": 1, \"query\": \"q\"}\n";
        for (text, expected) in [
            (format!("{good}{{\"question\": 1}}\n"), "line 2: missing field"),
            (good.replace('1', "2"), "question 1: the answer is none of its 2 choices"),
            ("\n".into(), "has no questions"),
            (format!("{good}\nno json"), "line 3"),
        ] {
            let message = read(Task::Piqa, &text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
