//! Questions in MMLU's form: a stem, four choices, the answer, a subject.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::facts::World;
use crate::lexicon::{CARRIED, COUNTED, NUMBERS, capital};
use crate::random::Source;
use crate::split::Split;

/// Subjects, as in the names of MMLU's files.
pub const SUBJECTS: [&str; 9] =
    ["animals", "arithmetic", "calendar", "jobs", "opposites", "people", "places", "stories", "things"];

/// One multiple-choice question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// One of [`SUBJECTS`].
    pub subject: &'static str,
    /// The question's text.
    pub stem: String,
    /// The four choices.
    pub choices: [String; 4],
    /// Index of the right one.
    pub answer: usize,
}

impl Question {
    /// The question as MMLU's prompts show it, up to `Answer:`.
    pub fn body(&self) -> String {
        let [a, b, c, d] = &self.choices;
        format!("{}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:", self.stem)
    }

    /// The right choice.
    pub fn right(&self) -> &str {
        &self.choices[self.answer]
    }

    /// Letter of the right choice.
    pub fn letter(&self) -> char {
        ['A', 'B', 'C', 'D'][self.answer]
    }
}

impl World {
    /// A question of a subject whose stem belongs to `split`.
    pub fn question(&self, subject: &str, split: Split, source: &mut Source) -> Question {
        let subject = *SUBJECTS.iter().find(|s| **s == subject).expect("a subject of the world");
        loop {
            let (stem, answer, others) = match subject {
                "stories" => self.told(source),
                _ => {
                    let facts = self.of_subject(subject);
                    let fact = &self.facts[source.pick(&facts)];
                    (source.one(&fact.stems).clone(), fact.answer.clone(), fact.others.clone())
                }
            };
            if !split.owns(&stem) {
                continue;
            }
            let wrong = source.several(&others.iter().collect::<Vec<_>>(), 3);
            let place = source.below(4);
            let mut choices: Vec<String> = wrong.into_iter().cloned().collect();
            choices.insert(place, answer);
            let choices = choices.try_into().expect("three wrong choices and a right one");
            return Question { subject, stem, choices, answer: place };
        }
    }

    fn of_subject(&self, subject: &str) -> Vec<usize> {
        (0..self.facts.len()).filter(|&i| self.facts[i].subject == subject).collect()
    }

    /// A short passage and a question about it: stem, answer, wrong answers.
    fn told(&self, source: &mut Source) -> (String, String, Vec<String>) {
        let people = source.several(&self.people.iter().collect::<Vec<_>>(), 6);
        let (p, q) = (people[0], people[1]);
        let names = || people.iter().map(|p| p.name.to_string());
        let numbers =
            |n: usize| (0..=12usize).filter(move |z| *z != n && z.abs_diff(n) <= 4).map(|z| NUMBERS[z].to_string());
        let (_, things) = source.pick(&COUNTED);
        let carried = source.pick(&CARRIED);
        match source.below(4) {
            0 => {
                let (x, y) = (source.between(1, 6), source.between(1, 6));
                let stem = format!(
                    "{} had {} {things}. {} gave {} {} more. How many {things} does {} have now?",
                    p.name,
                    NUMBERS[x],
                    q.name,
                    p.them(),
                    NUMBERS[y],
                    p.name
                );
                (stem, NUMBERS[x + y].into(), numbers(x + y).collect())
            }
            1 => {
                let x = source.between(2, 9);
                let y = source.between(1, x - 1);
                let stem = format!(
                    "{} had {} {things}. {} gave {} to {}. How many {things} does {} have left?",
                    p.name,
                    NUMBERS[x],
                    capital(p.they()),
                    NUMBERS[y],
                    q.name,
                    p.name
                );
                (stem, NUMBERS[x - y].into(), numbers(x - y).collect())
            }
            2 => {
                let stem = format!("{} gave the {carried} to {}. Who has the {carried} now?", p.name, q.name);
                (stem, q.name.into(), names().filter(|n| n != q.name).collect())
            }
            _ => {
                let colour = p.colour;
                let stem = format!(
                    "{} found a {carried} and {} took the {colour} {carried} home. Who found the {carried}?",
                    p.name,
                    p.they()
                );
                (stem, p.name.into(), names().filter(|n| n != p.name).collect())
            }
        }
    }

    /// Up to `count` different questions of a subject as a CSV file in MMLU's layout; fewer where
    /// the world has no more.
    pub fn question_file(&self, subject: &str, split: Split, count: usize) -> String {
        let mut source = Source::new(self.seed ^ split as u64 ^ u64::from_le_bytes(*b"question"));
        let mut seen = BTreeSet::new();
        let mut text = String::from("question,choice0,choice1,choice2,choice3,answer\n");
        for _ in 0..20 * count {
            if seen.len() == count {
                break;
            }
            let question = self.question(subject, split, &mut source);
            let mut sorted = question.choices.clone();
            sorted.sort();
            if seen.insert((question.stem.clone(), sorted)) {
                // No field has a quote or a line break; stems of passages have no comma either.
                let fields = [&question.stem].into_iter().chain(&question.choices).map(|f| quoted(f));
                writeln!(text, "{},{}", fields.collect::<Vec<_>>().join(","), question.answer).expect("a string");
            }
        }
        text
    }
}

fn quoted(field: &str) -> String {
    if field.contains(',') { format!("\"{field}\"") } else { field.into() }
}
