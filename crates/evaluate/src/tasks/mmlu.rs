//! MMLU: files of four choices by subject, and their prompts.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::items::{self, Exercise, Items, Scoring, Selection, draw};
use super::records::records;
use super::task::Task;
use crate::error::{EvaluateError, Result};

/// The letters of the choices.
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// A question as in the files.
#[derive(Debug, Clone)]
struct Question {
    /// As in the file name: `high_school_biology`.
    subject: String,
    question: String,
    choices: [String; 4],
    /// Index of the right one.
    answer: usize,
}

/// A row on the hub.
#[derive(Deserialize)]
struct Row {
    question: String,
    subject: String,
    choices: [String; 4],
    answer: u64,
}

/// Reads `dev/*_dev.csv` and `test/*_test.csv` below `dir` (columns question, four choices, answer as a letter
/// or 0 to 3; a header is optional), or the tables of the dataset on the hub. Before each question stand the first examples of its subject in `dev/`.
pub(super) fn open(dir: &Path, selection: &Selection) -> Result<Items> {
    let solved = selection.shots > 0;
    let (mut test, dev) = match dir.join("test").is_dir() {
        true => (read_split(dir, "test")?, if solved { read_split(dir, "dev")? } else { vec![] }),
        false => (
            read_tables(Task::Mmlu.files(dir)?)?,
            if solved { read_tables(Task::Mmlu.examples(dir)?)? } else { vec![] },
        ),
    };
    if let Some(unknown) = selection.subjects.iter().find(|s| test.iter().all(|q| q.subject != **s)) {
        let near = test.iter().map(|q| q.subject.as_str()).max_by(|a, b| {
            let like = |s: &str| strsim::jaro_winkler(s, unknown);
            like(a).total_cmp(&like(b))
        });
        let reason = format!("has no subject {unknown:?}; did you mean {}?", near.unwrap_or_default());
        return Err(EvaluateError::Questions { path: dir.to_path_buf(), reason });
    }
    if !selection.subjects.is_empty() {
        test.retain(|q| selection.subjects.contains(&q.subject));
    }
    let asked = draw(test, selection.count, selection.seed).into_iter().map(|q| {
        let examples: Vec<&Question> = dev.iter().filter(|d| d.subject == q.subject).take(selection.shots).collect();
        (prompt(&q, &examples, selection.scoring), q)
    });
    if selection.scoring == Scoring::Written {
        let exercise = |(prompt, q): (String, Question)| Exercise {
            subject: q.subject,
            prompt,
            answer: q.choices[q.answer].clone(),
            stops: ["\n", ".", ","].map(String::from).into(),
        };
        return Ok(Items::Exercises(asked.map(exercise).collect()));
    }
    let question = |(prompt, q): (String, Question)| items::Question {
        contexts: vec![prompt],
        continuations: (0..4).map(|i| format!(" {}", selection.scoring.ending(&q, i))).collect(),
        answer: q.answer,
        subject: q.subject,
    };
    Ok(Items::Questions(asked.map(question).collect()))
}

fn read_tables(files: Vec<PathBuf>) -> Result<Vec<Question>> {
    let rows: Vec<Row> = records(&files, usize::MAX)?;
    let question = |(n, Row { question, subject, choices, answer }): (usize, Row)| match answer {
        0..4 => Ok(Question { subject, question, choices, answer: answer as usize }),
        _ => {
            let reason = format!("row {}: answer {answer}, expected 0 to 3", n + 1);
            Err(EvaluateError::Questions { path: files[0].clone(), reason })
        }
    };
    rows.into_iter().enumerate().map(question).collect()
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

impl Scoring {
    /// How a prompt ends.
    fn cue(self) -> &'static str {
        match self {
            Self::Letter => "Answer:",
            Self::Text | Self::Written => "The right choice is",
        }
    }

    /// Continuation of the cue when choice `i` is taken.
    fn ending(self, q: &Question, i: usize) -> &str {
        match self {
            Self::Letter => LETTERS[i],
            Self::Text | Self::Written => &q.choices[i],
        }
    }
}

/// Prompt of a question after solved `examples`, in the format of MMLU (Hendrycks et al. 2021) up to
/// the cue.
fn prompt(question: &Question, examples: &[&Question], scoring: Scoring) -> String {
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
    use polars::prelude::{Column, DataFrame, NamedFrom, ParquetWriter, Series};

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

    /// A folder as `cais/mmlu` on the hub.
    #[test]
    fn tables_of_the_hub_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("all");
        std::fs::create_dir(&folder).unwrap();
        let write = |split: &str, questions: [&str; 2], answers: [i64; 2]| {
            let choices = Series::new("".into(), ["a", "b", "c", "d"]);
            let columns = [
                Series::new("question".into(), questions),
                Series::new("subject".into(), ["virology", "sociology"]),
                Series::new("choices".into(), [choices.clone(), choices]),
                Series::new("answer".into(), answers),
            ];
            let mut frame = DataFrame::new(2, columns.map(Column::from).into()).unwrap();
            let file = std::fs::File::create(folder.join(format!("{split}-00000-of-00001.parquet"))).unwrap();
            ParquetWriter::new(file).finish(&mut frame).unwrap();
        };
        write("test", ["First?", "Second?"], [3, 0]);
        write("dev", ["Solved?", "Other?"], [1, 2]);
        let selection =
            Selection { shots: 1, examples: None, scoring: Scoring::Letter, subjects: &[], count: 9, seed: 1 };
        let Items::Questions(found) = open(dir.path(), &selection).unwrap() else { panic!("letters are chosen") };
        assert_eq!((found.len(), found[0].answer, found[0].subject.as_str()), (2, 3, "virology"));
        let expected = "about virology.\n\nSolved?\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\nFirst?\nA. a\n";
        assert!(found[0].contexts[0].contains(expected), "{}", found[0].contexts[0]);
        let file = folder.join("test-00000-of-00001.parquet");
        assert!(open(&file, &selection).unwrap_err().to_string().contains("give shots: 0"));
        let alone = Selection { shots: 0, ..selection.clone() };
        assert!(matches!(open(&file, &alone).unwrap(), Items::Questions(found) if found.len() == 2));
        write("test", ["First?", "Second?"], [3, 4]);
        assert!(open(dir.path(), &selection).unwrap_err().to_string().contains("row 2: answer 4, expected 0 to 3"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(
            open(dir.path(), &selection)
                .unwrap_err()
                .to_string()
                .contains("neither test/ with CSV files nor all/test-*.parquet or")
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
        let of = |subjects: &[String], count, seed| -> Result<Vec<items::Question>> {
            let scoring = Scoring::Letter;
            match open(dir.path(), &Selection { shots: 1, examples: None, scoring, subjects, count, seed })? {
                Items::Questions(questions) => Ok(questions),
                Items::Exercises(_) => unreachable!("letters are chosen"),
            }
        };
        let all = of(&[], 1000, 1).unwrap();
        assert_eq!((all.len(), all[2].answer), (50, 2));
        assert!(all[2].contexts[0].contains("\n\nWhy, now?\nA. a\nB. b\nC. c\nD. d\nAnswer: D\n\nq2\n"));
        assert_eq!(all[2].continuations, [" A", " B", " C", " D"]);
        assert_eq!(of(&[], 10, 1).unwrap(), of(&[], 10, 1).unwrap());
        assert_ne!(of(&[], 10, 1).unwrap(), of(&[], 10, 2).unwrap());
        assert!(of(&["arts".into()], 5, 1).unwrap_err().to_string().contains("\"arts\"; did you mean art?"));
        write("test/art_test.csv", "q,a,b,c,d,E\nq,a,b,c,d,E\n");
        assert!(of(&[], 5, 1).unwrap_err().to_string().contains("row 2"));
    }
}
