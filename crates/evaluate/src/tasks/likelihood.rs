//! HellaSwag, ARC, PIQA and WinoGrande, in their layout on the hub and as ready questions.

use std::path::PathBuf;

use serde::Deserialize;

use super::items::Question;
use super::records::records;
use super::task::Task;
use crate::error::{EvaluateError, Result};

/// HellaSwag as published.
#[derive(Deserialize)]
struct Hellaswag {
    activity_label: String,
    ctx_a: String,
    ctx_b: String,
    endings: Vec<String>,
    label: Number,
}

/// ARC and PIQA.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected question, choices, answerKey; goal, sol1, sol2, label; or query, choices, gold"
)]
enum Choices {
    Ready {
        query: String,
        choices: Vec<String>,
        gold: usize,
    },
    Arc {
        question: String,
        choices: Labelled,
        #[serde(rename = "answerKey")]
        answer: String,
    },
    Piqa {
        goal: String,
        sol1: String,
        sol2: String,
        label: Number,
    },
}

#[derive(Deserialize)]
struct Labelled {
    text: Vec<String>,
    label: Vec<String>,
}

/// WinoGrande: ready, the sentence up to and with each option, and the rest.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected sentence, option1, option2, answer; or context_options, continuation, gold")]
enum Winogrande {
    Ready { context_options: Vec<String>, continuation: String, gold: usize },
    Published { sentence: String, option1: String, option2: String, answer: Number },
}

/// A number, or a text of one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or a text of one")]
enum Number {
    Plain(i64),
    Text(String),
}

impl Number {
    /// The index it is, no choice's where it is none.
    fn index(&self, first: i64) -> usize {
        let number = match self {
            Self::Plain(n) => Some(*n),
            Self::Text(text) => text.trim().parse().ok(),
        };
        number.and_then(|n| usize::try_from(n.checked_sub(first)?).ok()).unwrap_or(usize::MAX)
    }
}

impl Choices {
    /// Query, choices, index of the right one.
    fn parts(self) -> (String, Vec<String>, usize) {
        match self {
            Self::Ready { query, choices, gold } => (query, choices, gold),
            Self::Arc { question, choices: Labelled { text, label }, answer } => {
                let gold = label.iter().position(|l| *l == answer).unwrap_or(usize::MAX);
                (format!("Question: {question}"), text, gold)
            }
            Self::Piqa { goal, sol1, sol2, label } => (format!("Question: {goal}"), vec![sol1, sol2], label.index(0)),
        }
    }
}

impl Winogrande {
    /// Contexts, continuation, index of the right context.
    fn parts(self) -> (Vec<String>, String, usize) {
        match self {
            Self::Ready { context_options, continuation, gold } => (context_options, continuation, gold),
            Self::Published { sentence, option1, option2, answer } => {
                let (before, after) = sentence.split_once('_').unwrap_or((&sentence, ""));
                let contexts = [option1, option2].map(|option| format!("{before}{option}")).into();
                (contexts, after.to_string(), answer.index(1))
            }
        }
    }
}

/// Questions of files.
///
/// # Errors
/// A file that cannot be read, lines of another layout, answers that are none of the choices.
pub(super) fn open(task: Task, files: &[PathBuf]) -> Result<Vec<Question>> {
    let subject = || task.name().to_string();
    let questions: Vec<Question> = match task {
        Task::Hellaswag => records(files, usize::MAX)?
            .into_iter()
            .map(|q: Hellaswag| Question {
                subject: subject(),
                contexts: vec![clean(&format!("{}: {} {}", q.activity_label, q.ctx_a, capitalised(&q.ctx_b)))],
                continuations: q.endings.iter().map(|e| format!(" {}", clean(e))).collect(),
                answer: q.label.index(0),
            })
            .collect(),
        Task::Winogrande => records(files, usize::MAX)?
            .into_iter()
            .map(|q: Winogrande| {
                let (contexts, continuation, answer) = q.parts();
                let continuations = vec![format!(" {}", continuation.trim())];
                Question { subject: subject(), contexts, continuations, answer }
            })
            .collect(),
        _ => records(files, usize::MAX)?
            .into_iter()
            .map(|q: Choices| {
                let (query, choices, answer) = q.parts();
                let continuations = choices.iter().map(|c| format!(" {c}")).collect();
                Question { subject: subject(), contexts: vec![format!("{query}\nAnswer:")], continuations, answer }
            })
            .collect(),
    };
    let wrong = questions.iter().enumerate().find(|(_, q)| q.answer >= q.choices() || q.choices() < 2);
    match wrong {
        Some((n, q)) => {
            let reason = format!("question {}: the answer is none of its {} choices", n + 1, q.choices());
            Err(EvaluateError::Questions { path: files[0].clone(), reason })
        }
        None => Ok(questions),
    }
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
        open(task, &[path])
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

    /// The hub's layouts give the same questions as ready ones.
    #[test]
    fn published_layouts_are_read() {
        let line = r#"{"id": "a", "question": "Where is tea?", "choices": {"text": ["on a plate", "in a cup"], "label": ["1", "2"]}, "answerKey": "2"}"#;
        let q = &read(Task::ArcEasy, line).unwrap()[0];
        assert_eq!((q.request(1), q.answer), (("Question: Where is tea?\nAnswer:", " in a cup"), 1));
        let line = r#"{"goal": "To pour tea", "sol1": "use a pot", "sol2": "use a plate", "label": 0}"#;
        let q = &read(Task::Piqa, line).unwrap()[0];
        assert_eq!((q.request(1), q.answer), (("Question: To pour tea\nAnswer:", " use a plate"), 0));
        let line =
            r#"{"sentence": "Ann helped Bea since _ was kind.", "option1": "Ann", "option2": "Bea", "answer": "2"}"#;
        let q = &read(Task::Winogrande, line).unwrap()[0];
        assert_eq!((q.request(1), q.answer), (("Ann helped Bea since Bea", " was kind."), 1));
        // The hub's test splits have no answers.
        for (task, line) in
            [(Task::Piqa, line.replace("sentence", "goal")), (Task::Winogrande, line.replace("\"2\"", "\"\""))]
        {
            assert!(read(task, &line).is_err());
        }
    }

    #[test]
    fn other_layouts_are_named() {
        let good = "{\"choices\": [\"a\", \"b\"], \"gold\": 1, \"query\": \"q\"}\n";
        for (text, expected) in [
            (format!("{good}{{\"question\": 1}}\n"), "line 2: expected question, choices, answerKey; goal, sol1"),
            (good.replace('1', "2"), "question 1: the answer is none of its 2 choices"),
            ("\n".into(), "has no rows"),
            (format!("{good}\nno json"), "line 3"),
        ] {
            let message = read(Task::Piqa, &text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
