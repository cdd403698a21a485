//! Where models and data come from.

use std::path::{Path, PathBuf};

use waterfill_artifacts::{Identity, Progress, Store};
use waterfill_evaluate::tasks::{self, Items};
use waterfill_fixture::{Fixture, Shape, generate};
use waterfill_hub::{Settings, fetch};
use waterfill_model::tokens::{Layout, read_u16_tokens};
use waterfill_model::{ModelConfig, Text, Windows};

use crate::config::{Config, MultipleChoice};
use crate::error::{PipelineError, Result};

/// Word that stands for a part of the generated fixture.
const FIXTURE: &str = "fixture";

/// A model directory, and the fixture it is part of, if any.
pub(crate) struct Source {
    pub dir: PathBuf,
    /// Commit of a model from the hub.
    pub commit: Option<String>,
    fixture: Option<Fixture>,
}

impl Source {
    /// Finds the configured model; a fixture is generated into the store.
    pub fn open(config: &Config, store: &Store, progress: &dyn Progress) -> Result<Self> {
        let bad = |reason: String| PipelineError::Config { path: "model".into(), reason };
        if let Some(dir) = config.model.strip_prefix("path:") {
            if !Path::new(dir).is_dir() {
                return Err(bad(format!("{dir} is no directory")));
            }
            return Ok(Self { dir: dir.into(), commit: None, fixture: None });
        }
        if let Some(id) = config.model.strip_prefix("hf:") {
            let snapshot = fetch(&id.parse().map_err(bad)?, &Settings::from_env(), progress)?;
            return Ok(Self { dir: snapshot.dir, commit: Some(snapshot.commit), fixture: None });
        }
        let Some(seed) = config.model.strip_prefix("fixture:") else {
            return Err(bad(format!("{:?}, expected hf:OWNER/NAME, path:DIR or fixture:SEED", config.model)));
        };
        let seed: u64 = seed.parse().map_err(|_| bad(format!("fixture seed {seed:?}, expected a number")))?;
        let identity = Identity {
            stage: FIXTURE.into(),
            version: 1,
            inputs: Default::default(),
            config: serde_json::Value::Null,
            seeds: [("fixture".to_string(), seed)].into(),
        };
        let artifact = store.get_or_make::<PipelineError>(&config.name, &identity, progress, |work| {
            generate(work.out(), seed, &Shape::default())?;
            Ok(())
        })?;
        let fixture = Fixture::at(&artifact.dir);
        Ok(Self { dir: fixture.model.clone(), commit: None, fixture: Some(fixture) })
    }

    /// Windows for calibration, spread over its part of the text, and those held out among them.
    pub fn calibration(&self, config: &Config, model: &ModelConfig) -> Result<(Windows, Windows)> {
        let c = &config.calibrate;
        let path = self.resolve(&c.text, |f| f.calibration.clone(), "calibrate.text")?;
        let (prefix, ids) = self.encode(&path, model.vocab)?;
        let sizes = (model.vocab, model.positions);
        let wanted = c.sequences + c.held_out;
        let all = Windows::cut((&prefix, part_of(&ids, c.part)), c.context, wanted, Layout::Spread, sizes, &path)?;
        let apart = c.held_out * all.rows.len() / wanted;
        Ok(all.split(apart))
    }

    /// Windows for evaluation, from the start of its part of the text, for a model of a vocabulary and a number of
    /// positions. Files of token ids are taken as they are.
    pub fn evaluation(&self, config: &Config, sizes: (usize, usize)) -> Result<Windows> {
        let e = &config.evaluate;
        let (path, (prefix, ids)) = match (&e.tokens, &e.text) {
            (Some(tokens), _) => (PathBuf::from(tokens), (vec![], read_u16_tokens(Path::new(tokens))?)),
            (None, text) => {
                let text = text.as_deref().unwrap_or(FIXTURE);
                let path = self.resolve(text, |f| f.validation.clone(), "evaluate.text")?;
                let encoded = self.encode(&path, sizes.0)?;
                (path, encoded)
            }
        };
        Ok(Windows::cut((&prefix, part_of(&ids, e.part)), e.context, e.sequences, Layout::FromStart, sizes, &path)?)
    }

    /// Questions of a benchmark.
    pub fn questions(&self, m: &MultipleChoice) -> Result<Items> {
        let path = self.resolve(&m.path, |f| f.questions.clone(), "evaluate.multiple_choice.path")?;
        let (shots, scoring, subjects) = (m.shots(), m.scoring, m.subjects.as_slice());
        let examples = m.examples.as_deref().map(Path::new);
        let selection = tasks::Selection { shots, examples, scoring, subjects, count: m.questions, seed: m.seed };
        Ok(tasks::open(m.task, &path, &selection)?)
    }

    fn resolve(&self, path: &str, part: impl Fn(&Fixture) -> PathBuf, key: &str) -> Result<PathBuf> {
        match (&self.fixture, path) {
            (Some(fixture), FIXTURE) => Ok(part(fixture)),
            (None, FIXTURE) => {
                let reason = format!("{key} is {FIXTURE:?}, which only a model of kind fixture:SEED has");
                Err(PipelineError::Config { path: key.into(), reason })
            }
            (_, path) => Ok(path.into()),
        }
    }

    /// What stands before every text, and the ids of one.
    fn encode(&self, path: &Path, vocab: usize) -> Result<(Vec<u32>, Vec<u32>)> {
        let text = std::fs::read_to_string(path).map_err(|source| PipelineError::Io { path: path.into(), source })?;
        let tokenizer = Text::open_sized(&self.dir, vocab)?;
        Ok((tokenizer.prefix().to_vec(), tokenizer.encode(&text)?))
    }
}

/// The tokens between two shares of them, in order and of 0 to 1 as configurations are checked to have.
fn part_of(ids: &[u32], part: [f64; 2]) -> &[u32] {
    let [from, to] = part.map(|share| (share * ids.len() as f64).round() as usize);
    &ids[from..to]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_text_meet_without_overlap() {
        let ids: Vec<u32> = (0..10).collect();
        let (first, rest) = (part_of(&ids, [0.0, 0.77]), part_of(&ids, [0.77, 1.0]));
        assert_eq!([first, rest].concat(), ids);
        assert_eq!(first.len(), 8);
        assert!(part_of(&ids, [1.0, 1.0]).is_empty());
        assert!(part_of(&[], [0.0, 1.0]).is_empty());
    }
}
