//! Where models and data come from.

use std::path::{Path, PathBuf};

use waterfill_artifacts::{Identity, Progress, Store};
use waterfill_evaluate::QuestionSet;
use waterfill_fixture::{Fixture, Shape, generate};
use waterfill_model::tokens::{Layout, read_u16_tokens};
use waterfill_model::{Model, Text, Windows};

use crate::config::{Config, MultipleChoice};
use crate::error::{PipelineError, Result};

/// Word that stands for a part of the generated fixture.
const FIXTURE: &str = "fixture";

/// A model directory, and the fixture it is part of, if any.
pub(crate) struct Source {
    pub dir: PathBuf,
    fixture: Option<Fixture>,
}

impl Source {
    /// Finds the configured model; a fixture is generated into the store.
    pub fn open(config: &Config, store: &Store, progress: &dyn Progress) -> Result<Self> {
        let bad = |reason: String| PipelineError::Config { path: "model".into(), reason };
        if let Some(dir) = config.model.strip_prefix("path:") {
            return Ok(Self { dir: dir.into(), fixture: None });
        }
        let Some(seed) = config.model.strip_prefix("fixture:") else {
            return Err(PipelineError::Hub { id: config.model.clone() });
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
        Ok(Self { dir: fixture.model.clone(), fixture: Some(fixture) })
    }

    /// Windows for calibration, spread over the text.
    pub fn calibration(&self, config: &Config, model: &Model) -> Result<Windows> {
        let c = &config.calibrate;
        let path = self.resolve(&c.text, |f| f.calibration.clone(), "calibrate.text")?;
        let ids = self.encode(&path, model)?;
        Ok(Windows::cut(&ids, c.context, c.sequences, Layout::Spread, &model.config, &path)?)
    }

    /// Windows for evaluation, from the start of the text.
    pub fn evaluation(&self, config: &Config, model: &Model) -> Result<Windows> {
        let e = &config.evaluate;
        let (path, ids) = match (&e.tokens, &e.text) {
            (Some(tokens), _) => (PathBuf::from(tokens), read_u16_tokens(Path::new(tokens))?),
            (None, text) => {
                let text = text.as_deref().unwrap_or(FIXTURE);
                let path = self.resolve(text, |f| f.validation.clone(), "evaluate.text")?;
                let ids = self.encode(&path, model)?;
                (path, ids)
            }
        };
        Ok(Windows::cut(&ids, e.context, e.sequences, Layout::FromStart, &model.config, &path)?)
    }

    /// Configured questions.
    pub fn questions(&self, m: &MultipleChoice) -> Result<QuestionSet> {
        let dir = self.resolve(&m.dir, |f| f.questions.clone(), "evaluate.multiple_choice.dir")?;
        Ok(QuestionSet::open(&dir, &m.subjects, m.questions, m.seed)?)
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

    fn encode(&self, path: &Path, model: &Model) -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(path).map_err(|source| PipelineError::Io { path: path.into(), source })?;
        Ok(Text::open(&self.dir, &model.config)?.encode(&text)?)
    }
}
