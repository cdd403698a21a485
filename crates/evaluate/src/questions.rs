//! Questions in MMLU's layout, and their prompts.

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{EvaluateError, Result};

/// The letters of the choices.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// A question with four choices.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Subject, as in the file name: `high_school_biology`.
    pub subject: String,
    /// The question.
    pub question: String,
    /// The choices.
    pub choices: [String; 4],
    /// Index of the right one.
    pub answer: usize,
}

/// Test questions, and for each subject the examples shown before them.
#[derive(Debug, Clone)]
pub struct QuestionSet {
    /// Questions to answer.
    pub test: Vec<Question>,
    /// Solved examples.
    pub dev: Vec<Question>,
}

impl QuestionSet {
    /// Reads `dev/*_dev.csv` and `test/*_test.csv` below `dir` (columns question, four choices,
    /// answer as a letter or 0 to 3; a header is optional), keeps `subjects` (all when empty) and
    /// draws `count` test questions by `seed`.
    ///
    /// # Errors
    /// Missing directories, malformed rows, and subjects that are not there.
    pub fn open(dir: &Path, subjects: &[String], count: usize, seed: u64) -> Result<Self> {
        let mut test = read_split(dir, "test")?;
        let mut dev = read_split(dir, "dev")?;
        if let Some(unknown) = subjects.iter().find(|s| test.iter().all(|q| q.subject != **s)) {
            let reason = format!("has no subject {unknown:?}");
            return Err(EvaluateError::Questions { path: dir.to_path_buf(), reason });
        }
        if !subjects.is_empty() {
            test.retain(|q| subjects.contains(&q.subject));
            dev.retain(|q| subjects.contains(&q.subject));
        }
        // The first `count` of a seeded Fisher-Yates shuffle, back in file order.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..test.len()).collect();
        let count = count.min(test.len());
        for i in 0..count {
            let j = i + ((u128::from(rng.next_u64()) * (test.len() - i) as u128) >> 64) as usize;
            order.swap(i, j);
        }
        order.truncate(count);
        order.sort_unstable();
        Ok(Self { test: order.into_iter().map(|i| test[i].clone()).collect(), dev })
    }
}

fn read_split(dir: &Path, split: &str) -> Result<Vec<Question>> {
    let folder = dir.join(split);
    let failed = |path: &Path, reason: String| EvaluateError::Questions { path: path.to_path_buf(), reason };
    let entries = std::fs::read_dir(&folder).map_err(|e| failed(&folder, e.to_string()))?;
    let suffix = format!("_{split}.csv");
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(&suffix)));
    files.sort();
    if files.is_empty() {
        return Err(failed(&folder, format!("has no file *{suffix}")));
    }
    let mut questions = Vec::new();
    for path in files {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let subject = name.trim_end_matches(&suffix).to_string();
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_path(&path)
            .map_err(|e| failed(&path, e.to_string()))?;
        for (line, record) in reader.records().enumerate() {
            let record = record.map_err(|e| failed(&path, e.to_string()))?;
            if record.len() != 6 {
                let reason = format!("row {} has {} columns, expected 6", line + 1, record.len());
                return Err(failed(&path, reason));
            }
            let Some(answer) = parse_answer(&record[5]) else {
                if line == 0 {
                    continue;
                }
                let reason = format!("row {}: answer {:?}, expected A to D or 0 to 3", line + 1, &record[5]);
                return Err(failed(&path, reason));
            };
            questions.push(Question {
                subject: subject.clone(),
                question: record[0].to_string(),
                choices: std::array::from_fn(|i| record[1 + i].to_string()),
                answer,
            });
        }
    }
    Ok(questions)
}

fn parse_answer(text: &str) -> Option<usize> {
    let text = text.trim();
    LETTERS.iter().position(|l| *l == text).or_else(|| text.parse().ok().filter(|&n| n < 4))
}

/// What is compared to find the answer that a model gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// The likelihoods of the letters after `Answer:`, as MMLU does.
    Letter,
    /// The likelihoods of the choices' texts after `The right choice is`, for models too small to
    /// connect a letter with its choice.
    Text,
}

impl Scoring {
    /// How a prompt ends.
    fn cue(self) -> &'static str {
        match self {
            Self::Letter => "Answer:",
            Self::Text => "The right choice is",
        }
    }

    /// What follows the cue if choice `i` is taken.
    pub(crate) fn ending(self, q: &Question, i: usize) -> &str {
        match self {
            Self::Letter => LETTERS[i],
            Self::Text => &q.choices[i],
        }
    }
}

/// Prompt of a question after solved `examples`, in the format of MMLU (Hendrycks et al. 2021) up to
/// the cue.
pub fn prompt(question: &Question, examples: &[&Question], scoring: Scoring) -> String {
    let subject = question.subject.replace('_', " ");
    let mut text = format!("The following are multiple choice questions (with answers) about {subject}.\n\n");
    for example in examples {
        text += &format!("{} {}\n\n", body(example, scoring), scoring.ending(example, example.answer));
    }
    text + &body(question, scoring)
}

fn body(q: &Question, scoring: Scoring) -> String {
    let choices: String = LETTERS.iter().zip(&q.choices).map(|(l, c)| format!("{l}. {c}\n")).collect();
    format!("{}\n{choices}{}", q.question.trim(), scoring.cue())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_mmlus() {
        let question = |text: &str, answer| Question {
            subject: "world_religions".into(),
            question: text.into(),
            choices: ["one", "two", "three", "four"].map(String::from),
            answer,
        };
        let example = question("First?", 2);
        let expected = "The following are multiple choice questions (with answers) about world religions.\n\n\
            First?\nA. one\nB. two\nC. three\nD. four\nAnswer: C\n\n\
            Second?\nA. one\nB. two\nC. three\nD. four\nAnswer:";
        assert_eq!(prompt(&question("Second?", 0), &[&example], Scoring::Letter), expected);
        let text = prompt(&question("Second?", 0), &[&example], Scoring::Text);
        assert_eq!(
            text,
            expected.replace("Answer: C", "The right choice is three").replace("Answer:", "The right choice is")
        );
    }

    #[test]
    fn both_layouts_are_read_and_subsets_are_seeded() {
        let dir = tempfile::tempdir().unwrap();
        for split in ["dev", "test"] {
            std::fs::create_dir(dir.path().join(split)).unwrap();
        }
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("dev/art_dev.csv", "question,choice0,choice1,choice2,choice3,answer\n\"Why, now?\",a,b,c,d,3\n");
        let rows: String = (0..50).map(|i| format!("q{i},a,b,c,d,{}\n", LETTERS[i % 4])).collect();
        write("test/art_test.csv", &rows);
        let open = |count, seed| QuestionSet::open(dir.path(), &[], count, seed);
        let all = open(1000, 1).unwrap();
        assert_eq!((all.test.len(), all.dev[0].answer, all.dev[0].question.as_str()), (50, 3, "Why, now?"));
        assert_eq!(open(10, 1).unwrap().test, open(10, 1).unwrap().test);
        assert_ne!(open(10, 1).unwrap().test, open(10, 2).unwrap().test);
        assert!(QuestionSet::open(dir.path(), &["maths".into()], 5, 1).unwrap_err().to_string().contains("maths"));
        write("test/art_test.csv", "q,a,b,c,d,E\nq,a,b,c,d,E\n");
        assert!(open(5, 1).unwrap_err().to_string().contains("row 2"));
    }
}
