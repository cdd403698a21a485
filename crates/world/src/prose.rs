//! Paragraphs: facts, stories, talk, letters, and questions with answers.

use crate::facts::{Person, World};
use crate::lexicon::{CARRIED, COLOURS, COUNTED, DAYS, JOBS, MONTHS, NUMBERS, TOWNS, a, capital};
use crate::questions::SUBJECTS;
use crate::random::Source;
use crate::split::Split;

/// Share of the text, in percent of its bytes, that is questions with answers.
const QUESTION_PERCENT: usize = 30;

/// Kind of prose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Facts, stories and talk.
    Chronicle,
    /// Letters and diaries.
    Letters,
}

const OPENERS: [&str; 8] = [
    "",
    "",
    "as everyone knows, ",
    "people say that ",
    "it is true that ",
    "the old book says that ",
    "remember that ",
    "the children learn that ",
];
const TIMES: [&str; 8] = [
    "in the morning",
    "at noon",
    "in the evening",
    "one day",
    "after breakfast",
    "before supper",
    "late at night",
    "early one day",
];
const WEATHERS: [&str; 6] = [
    "the sun was shining",
    "it was raining",
    "the wind was cold",
    "snow was falling",
    "the sky was grey",
    "it was warm",
];

/// An unfinished paragraph, whose sentences all belong to one split.
struct Paragraph<'a> {
    split: Split,
    source: &'a mut Source,
    text: String,
}

impl Paragraph<'_> {
    /// Adds a sentence: the first variant of `make` that belongs to the split. `None` when none is
    /// found, which ends the paragraph.
    fn say(&mut self, mut make: impl FnMut(&mut Source) -> String) -> Option<()> {
        for _ in 0..60 {
            let sentence = capital(&make(self.source));
            if self.split.owns(&sentence) {
                if !self.text.is_empty() {
                    self.text.push(' ');
                }
                self.text.push_str(&sentence);
                return Some(());
            }
        }
        None
    }
}

impl World {
    /// Text of at least `bytes` bytes, whose sentences belong to `split`. It depends on the seed only.
    pub fn text(&self, style: Style, split: Split, bytes: usize) -> String {
        let mut source = Source::new(self.seed ^ (split as u64) << 8 ^ (style as u64) << 16 ^ 0x7465_7874);
        let (mut text, mut asked) = (String::new(), 0);
        while text.len() < bytes {
            if asked * 100 < text.len() * QUESTION_PERCENT {
                let block = self.quiz(split, &mut source);
                asked += block.len();
                text.push_str(&block);
                continue;
            }
            let mut paragraph = Paragraph { split, source: &mut source, text: String::new() };
            let whole = match style {
                Style::Chronicle => match paragraph.source.below(10) {
                    0..5 => self.state(&mut paragraph),
                    5 => self.count(&mut paragraph),
                    6 => self.hand_on(&mut paragraph),
                    7 => self.journey(&mut paragraph),
                    _ => self.talk(&mut paragraph),
                },
                Style::Letters => match paragraph.source.below(10) {
                    0..5 => self.letter(&mut paragraph),
                    5..7 => self.diary(&mut paragraph),
                    _ => self.state(&mut paragraph),
                },
            };
            if whole.is_some() {
                text.push_str(&paragraph.text);
                text.push_str("\n\n");
            }
        }
        text
    }

    /// A block of questions with answers, as MMLU's prompts show them.
    fn quiz(&self, split: Split, source: &mut Source) -> String {
        let subject = source.pick(&SUBJECTS);
        let mut text = format!("The following are multiple choice questions (with answers) about {subject}.\n\n");
        for _ in 0..source.between(2, 5) {
            let question = self.question(subject, split, source);
            let (body, letter) = (question.body(), question.letter());
            // A reason before the letter teaches the two halves of answering: knowing, and finding
            // the letter. Texts to measure on have none.
            let reason = match split == Split::Train && source.below(2) == 0 {
                true => format!("The right choice is {}, which is letter {letter}.\n", question.right()),
                false => String::new(),
            };
            let (asked, answer) = body.rsplit_once('\n').expect("a question has several lines");
            text.push_str(&format!("{asked}\n{reason}{answer} {letter}\n\n"));
        }
        text
    }

    /// Index of a random fact; all subjects are equally likely, however many facts they have.
    fn any_fact(&self, source: &mut Source) -> usize {
        let subject = source.pick(&SUBJECTS.map(|s| if s == "stories" { "people" } else { s }));
        let at = self.facts.iter().position(|f| f.subject == subject).expect("every subject has facts");
        let count = self.facts[at..].iter().take_while(|f| f.subject == subject).count();
        at + source.below(count)
    }

    fn someone<'w>(&'w self, source: &mut Source) -> &'w Person {
        source.one(&self.people)
    }

    /// Two different people.
    fn two<'w>(&'w self, source: &mut Source) -> (&'w Person, &'w Person) {
        let both = source.several(&self.people.iter().collect::<Vec<_>>(), 2);
        (both[0], both[1])
    }

    /// Three to six facts, often about one thing.
    fn state(&self, p: &mut Paragraph) -> Option<()> {
        let mut at = self.any_fact(p.source);
        for _ in 0..p.source.between(3, 6) {
            let fact = &self.facts[at];
            p.say(|s| format!("{}{}.", s.pick(&OPENERS), s.one(&fact.statements)))?;
            // Neighbours are about the same person, town, animal or month.
            at = match p.source.below(3) {
                0 => self.any_fact(p.source),
                _ => (at + 1) % self.facts.len(),
            };
        }
        Some(())
    }

    /// Things that come and go, counted.
    fn count(&self, p: &mut Paragraph) -> Option<()> {
        let (who, friend) = self.two(p.source);
        let (one, many) = p.source.pick(&COUNTED);
        let (name, they, them) = (who.name, who.they(), who.them());
        let noun = |n: usize| if n == 1 { one } else { many };
        let mut have = p.source.between(2, 7);
        p.say(|s| {
            let start = format!("{name} had {} {}", NUMBERS[have], noun(have));
            match s.below(3) {
                0 => format!("{}, {start}.", s.pick(&TIMES)),
                1 => format!("{start} in {} basket.", a(s.pick(&COLOURS))),
                _ => format!("{start}, because {they} had been in {}.", s.pick(&TOWNS).0),
            }
        })?;
        for _ in 0..p.source.between(1, 3) {
            let change = p.source.between(1, 4);
            if p.source.below(2) == 0 && have > change {
                p.say(|s| {
                    let n = NUMBERS[change];
                    match s.below(3) {
                        0 => format!("{} {they} gave {n} of them to {}.", capital(s.pick(&TIMES)), friend.name),
                        1 => format!(
                            "{name} sold {n} {} to a {} {}.",
                            noun(change),
                            s.pick(&["tall", "poor", "young", "merry"]),
                            JOBS[s.below(JOBS.len())].0
                        ),
                        _ => format!("then {they} lost {n} on the way to {}.", s.pick(&TOWNS).0),
                    }
                })?;
                have -= change;
            } else {
                p.say(|s| {
                    let n = NUMBERS[change];
                    match s.below(3) {
                        0 => format!("{} {} gave {them} {n} more.", capital(s.pick(&TIMES)), friend.name),
                        1 => format!("{name} found {n} more {} near {}.", noun(change), s.pick(&TOWNS).0),
                        _ => {
                            format!("a {} from {} gave {them} {n} more.", JOBS[s.below(JOBS.len())].0, s.pick(&TOWNS).0)
                        }
                    }
                })?;
                have += change;
            }
            p.say(|s| {
                let n = NUMBERS[have];
                match s.below(4) {
                    0 => format!("now {name} had {n} {}.", noun(have)),
                    1 => format!("that made {n} {} for {name}.", noun(have)),
                    2 => format!("{} {they} counted {n}.", capital(s.pick(&TIMES))),
                    _ => format!(
                        "so {they} had {n} {}, and {} was {}.",
                        noun(have),
                        friend.name,
                        s.pick(&["glad", "happy", "tired", "surprised"])
                    ),
                }
            })?;
        }
        Some(())
    }

    /// A thing that goes from hand to hand.
    fn hand_on(&self, p: &mut Paragraph) -> Option<()> {
        let thing = p.source.pick(&CARRIED);
        let colour = p.source.pick(&COLOURS);
        let people = p.source.several(&self.people.iter().collect::<Vec<_>>(), 4);
        let first = people[0];
        p.say(|s| match s.below(3) {
            0 => format!("{} {} found {} {thing}.", capital(s.pick(&TIMES)), first.name, a(colour)),
            1 => format!("{} bought {} {thing} in {}.", first.name, a(colour), s.pick(&TOWNS).0),
            _ => format!("{} had {} {thing}, and {}.", first.name, a(colour), s.pick(&WEATHERS)),
        })?;
        let mut owner = first;
        for &next in &people[1..p.source.between(2, 4)] {
            p.say(|s| match s.below(4) {
                0 => format!("{} gave the {thing} to {}.", owner.name, next.name),
                1 => {
                    format!("{} {} gave the {colour} {thing} to {}.", capital(s.pick(&TIMES)), owner.they(), next.name)
                }
                2 => format!("{} wanted the {thing}, so {} gave it to {}.", next.name, owner.name, next.them()),
                _ => format!(
                    "{}, {} sold it to {} for {} coins.",
                    capital(s.pick(&TIMES)),
                    owner.name,
                    next.name,
                    NUMBERS[s.between(2, 9)]
                ),
            })?;
            owner = next;
        }
        p.say(|s| match s.below(4) {
            0 => format!("now {} has the {thing}.", owner.name),
            1 => format!("so the {colour} {thing} belongs to {} now.", owner.name),
            2 => format!("{} kept the {thing} in {} house in {}.", owner.name, owner.their(), owner.town),
            _ => format!("{} the {colour} {thing} was with {}.", capital(s.pick(&TIMES)), owner.name),
        })
    }

    /// Somebody goes somewhere and does what one does there.
    fn journey(&self, p: &mut Paragraph) -> Option<()> {
        let (who, friend) = self.two(p.source);
        let (name, they, their) = (who.name, who.they(), who.their());
        let (job, tool, place, does) = JOBS[who.job];
        let building = TOWNS.iter().find(|t| t.0 == who.town).map_or("", |t| t.1);
        let day = p.source.below(DAYS.len());
        p.say(|s| match s.below(3) {
            0 => format!("{name} the {job} of {} woke up {} and {}.", who.town, s.pick(&TIMES), s.pick(&WEATHERS)),
            1 => format!("it was {} in the month of {}, and {}.", DAYS[day].0, s.pick(&MONTHS).0, s.pick(&WEATHERS)),
            _ => format!("{} {name} went from {} to {}.", capital(s.pick(&TIMES)), who.town, s.pick(&TOWNS).0),
        })?;
        p.say(|s| match s.below(4) {
            0 => format!("{} took the {tool} and went to the {place} {}.", name, s.pick(&TIMES)),
            1 => format!(
                "{} {they} fed the {} and put on {} {} coat.",
                capital(s.pick(&TIMES)),
                who.pet,
                their,
                who.colour
            ),
            2 => format!(
                "{name} is {} who {does}, and {} {they} was {}.",
                a(job),
                s.pick(&TIMES),
                s.pick(&["busy", "tired", "happy", "early"])
            ),
            _ => format!("{} {they} met {} the {}.", capital(s.pick(&TIMES)), friend.name, JOBS[friend.job].0),
        })?;
        p.say(|s| match s.below(4) {
            0 => format!("{} came from {} with {} {}.", friend.name, friend.town, friend.their(), friend.pet),
            1 => {
                format!("{} they went to {}, where there is a {}.", capital(s.pick(&TIMES)), who.town, building)
            }
            2 => format!("{} asked {} for the {}, and {} said yes.", friend.name, who.them(), tool, they),
            _ => format!(
                "they talked about the {} and ate {} {}.",
                s.pick(&MONTHS).1,
                NUMBERS[s.between(2, 9)],
                s.pick(&COUNTED).1
            ),
        })?;
        p.say(|s| match s.below(3) {
            0 => format!("{} {name} was back in {} with {} {}.", capital(s.pick(&TIMES)), who.town, their, who.pet),
            1 => format!(
                "after {} came {}, when people {}.",
                DAYS[day].0,
                DAYS[(day + 1) % DAYS.len()].0,
                DAYS[(day + 1) % DAYS.len()].1
            ),
            _ => format!(
                "{} they said goodbye, and {} went home to {}.",
                capital(s.pick(&TIMES)),
                friend.name,
                friend.town
            ),
        })
    }

    /// Question and answer between two people.
    fn talk(&self, p: &mut Paragraph) -> Option<()> {
        let (who, friend) = self.two(p.source);
        for _ in 0..p.source.between(1, 3) {
            let fact = &self.facts[self.any_fact(p.source)];
            p.say(|s| {
                let asked = s.pick(&["asked", "said", "wondered"]);
                format!("\"{}\" {asked} {}.", s.one(&fact.stems), who.name)
            })?;
            p.say(|s| {
                let answer = match s.below(2) {
                    0 => fact.answer.clone(),
                    _ => format!("{}{}", s.pick(&["I think ", "well, ", "I know that ", ""]), s.one(&fact.statements)),
                };
                format!("\"{},\" {} {}.", capital(&answer), s.pick(&["said", "answered", "replied"]), friend.name)
            })?;
        }
        Some(())
    }

    fn letter(&self, p: &mut Paragraph) -> Option<()> {
        let (who, friend) = self.two(p.source);
        let (job, tool, place, does) = JOBS[who.job];
        p.text = format!("Dear {},", friend.name);
        p.say(|s| match s.below(3) {
            0 => format!("I write to you from {}, and {}.", who.town, s.pick(&WEATHERS)),
            1 => format!("it is {} here in {}, in the month of {}.", s.pick(&DAYS).0, who.town, s.pick(&MONTHS).0),
            _ => format!(
                "thank you for the {} {} that came {}.",
                NUMBERS[s.between(2, 9)],
                s.pick(&COUNTED).1,
                s.pick(&TIMES)
            ),
        })?;
        p.say(|s| match s.below(3) {
            0 => format!("I work as {} now and need a new {tool} {}.", a(job), s.pick(&TIMES)),
            1 => format!("you will find me in the {place} of {} {}.", who.town, s.pick(&TIMES)),
            _ => format!(
                "my {} is well and eats {} {} every day.",
                who.pet,
                NUMBERS[s.between(2, 9)],
                s.pick(&COUNTED).1
            ),
        })?;
        let fact = &self.facts[self.any_fact(p.source)];
        p.say(|s| {
            format!(
                "{}{}.",
                s.pick(&["do you remember that ", "I have heard that ", "here they say that ", "it is still so that "]),
                s.one(&fact.statements)
            )
        })?;
        p.say(|s| match s.below(3) {
            0 => format!("please come to {} for the {}.", who.town, s.pick(&MONTHS).1),
            1 => format!("I am {} who {does}, so {} I will send you {}.", a(job), s.pick(&TIMES), a(s.pick(&CARRIED))),
            _ => format!("give my love to {} in {}.", self.someone(s).name, s.pick(&TOWNS).0),
        })?;
        p.text.push_str(&format!(" Your friend, {}", who.name));
        Some(())
    }

    fn diary(&self, p: &mut Paragraph) -> Option<()> {
        let who = self.someone(p.source);
        let (day, month) = (p.source.below(DAYS.len()), p.source.pick(&MONTHS).0);
        p.text = format!("{}, the month of {month}.", DAYS[day].0);
        p.say(|s| {
            format!(
                "today {}, and I {} {}.",
                s.pick(&WEATHERS),
                s.pick(&["slept", "sang", "worked", "walked"]),
                s.pick(&TIMES)
            )
        })?;
        p.say(|s| match s.below(3) {
            0 => format!("I saw {} {} with {}.", self.someone(s).name, s.pick(&TIMES), a(s.pick(&CARRIED))),
            1 => format!("my {} ran away {} and came back to {}.", who.pet, s.pick(&TIMES), who.town),
            _ => format!(
                "I used the {} {} and sold {} {}.",
                JOBS[who.job].1,
                s.pick(&TIMES),
                NUMBERS[s.between(2, 9)],
                s.pick(&COUNTED).1
            ),
        })?;
        let fact = &self.facts[self.any_fact(p.source)];
        p.say(|s| {
            format!(
                "{}{}.",
                s.pick(&["I learned that ", "I must not forget that ", "someone told me that "]),
                s.one(&fact.statements)
            )
        })?;
        p.say(|s| {
            format!(
                "tomorrow is {}, so I will {} {}.",
                DAYS[(day + 1) % DAYS.len()].0,
                s.pick(&["rise", "work", "sing", "go out"]),
                s.pick(&TIMES)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Sentences of prose paragraphs, questions left out.
    fn sentences(text: &str) -> HashSet<&str> {
        let prose = text.split("\n\n").filter(|p| !p.contains('\n') && !p.starts_with("The following"));
        prose.flat_map(|p| p.split_inclusive(". ")).map(|s| s.trim()).collect()
    }

    #[test]
    fn texts_share_facts_but_no_sentences() {
        let world = World::new(7, 0);
        let train = world.text(Style::Chronicle, Split::Train, 300_000);
        let test = world.text(Style::Chronicle, Split::Test, 100_000);
        assert_eq!(train, world.text(Style::Chronicle, Split::Train, 300_000));
        let (train_sentences, test_sentences) = (sentences(&train), sentences(&test));
        assert!(train_sentences.len() > 1000 && test_sentences.len() > 300);
        let shared: Vec<_> = train_sentences.intersection(&test_sentences).collect();
        assert!(shared.is_empty(), "{shared:?}");
        let stems = |text: &str| -> HashSet<String> {
            text.split("\n\n")
                .filter(|p| p.ends_with(['A', 'B', 'C', 'D']))
                .filter_map(|p| p.lines().next())
                .map(String::from)
                .collect()
        };
        assert!(stems(&train).len() > 500);
        assert!(stems(&train).is_disjoint(&stems(&test)));
    }

    #[test]
    fn a_fifth_to_a_third_is_questions() {
        for style in [Style::Chronicle, Style::Letters] {
            let text = World::new(7, 0).text(style, Split::Train, 300_000);
            let asked: usize = text
                .split_inclusive("\n\n")
                .filter(|p| p.contains("\nA. ") || p.starts_with("The following"))
                .map(str::len)
                .sum();
            let share = asked as f64 / text.len() as f64;
            assert!((0.2..0.334).contains(&share), "{share}");
        }
    }
}
