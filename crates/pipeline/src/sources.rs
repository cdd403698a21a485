//! Where models and data come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use waterfill_config::{Bos, Config, LongContext, MultipleChoice};
use waterfill_evaluate::tasks::{self, Items, Task};
use waterfill_fixture::{Fixture, Shape, generate};
use waterfill_hub::{Settings, fetch};
use waterfill_model::tokens::{Layout, read_u16_tokens};
use waterfill_model::{ChatTemplate, ModelConfig, ModelError, Text, Windows};
use waterfill_store::{Identity, Progress, Store};

use crate::data::{self, Rows};
use crate::error::{PipelineError, Result};

/// Word that stands for a part of the generated fixture.
const FIXTURE: &str = "fixture";

/// Token windows for calibration, each kind spread evenly over all texts.
pub struct CalibrationWindows {
    /// Windows that sensitivities are measured on.
    pub fitted: Windows,
    /// Further windows, of which Hessians take the inputs alone.
    pub further: Windows,
    /// Windows that losses are predicted and measured on.
    pub held_out: Windows,
    /// Which of the configuration's texts each held-out window is from.
    pub held_out_texts: Vec<usize>,
}

/// A model directory, and the fixture it is part of, if any.
pub struct Source {
    /// Directory of the model.
    pub dir: PathBuf,
    /// Commit of a model from the hub.
    pub commit: Option<String>,
    fixture: Option<Fixture>,
    /// Directories of datasets that were looked up on the hub, by what was asked for.
    datasets: Mutex<BTreeMap<String, PathBuf>>,
}

impl Source {
    /// Finds the configured model; a fixture is generated into the store.
    pub fn open(config: &Config, store: &Store, progress: &dyn Progress) -> Result<Self> {
        let bad = |reason: String| PipelineError::Value { key: "model".into(), reason };
        if let Some(dir) = config.model.strip_prefix("path:") {
            if !Path::new(dir).is_dir() {
                return Err(bad(format!("{dir} is no directory")));
            }
            return Ok(Self { dir: dir.into(), commit: None, fixture: None, datasets: Mutex::default() });
        }
        if let Some(id) = config.model.strip_prefix("hf:") {
            let snapshot = fetch(&id.parse().map_err(bad)?, &Settings::from_env(), progress)?;
            return Ok(Self {
                dir: snapshot.dir,
                commit: Some(snapshot.commit),
                fixture: None,
                datasets: Mutex::default(),
            });
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
        Ok(Self { dir: fixture.model.clone(), commit: None, fixture: Some(fixture), datasets: Mutex::default() })
    }

    /// Windows for calibration, by share from its texts, spread over the part of each.
    pub fn calibration(
        &self,
        config: &Config,
        model: &ModelConfig,
        progress: &dyn Progress,
    ) -> Result<CalibrationWindows> {
        let c = &config.calibrate;
        let shares: Vec<f64> = c.text.iter().map(|text| text.share).collect();
        let by_text = |count: usize| apportion(count, &shares);
        let (fitted, further, held_out) = (by_text(c.sequences), by_text(c.further()), by_text(c.held_out()));
        let mut parts: [Vec<Windows>; 3] = Default::default();
        for (n, text) in c.text.iter().enumerate() {
            let path = self.resolve(&text.text, |f| f.calibration.clone(), "calibrate.text")?;
            let join = text.join.as_ref().unwrap_or(&c.join);
            let rows = Rows { join, most: text.documents.or(c.documents) };
            let (prefix, ids) = match text.chat {
                true => self.tokens(&self.conversations(&path, &rows, progress)?, model.vocab)?,
                false => self.encode((&path, &rows), model.vocab, progress)?,
            };
            let (ids, sizes) = (part_of(&ids, text.part.unwrap_or(c.part)), (model.vocab, model.positions));
            let wanted = fitted[n] + further[n] + held_out[n];
            if wanted == 0 {
                let none = || Windows { context: c.context, rows: Vec::new() };
                parts.iter_mut().for_each(|into| into.push(none()));
                continue;
            }
            let all = Windows::cut((&prefix, ids), c.context, wanted, Layout::Spread, sizes, &path)?;
            // A text that is too short has less of everything.
            let found = all.rows.len();
            let (others, apart) = all.split(held_out[n] * found / wanted);
            let (own, more) = others.split(further[n] * found / wanted);
            for (into, windows) in parts.iter_mut().zip([own, more, apart]) {
                into.push(windows);
            }
        }
        let [fitted, further, held_out] = parts.map(|texts| Windows::interleave(c.context, texts));
        let (held_out, held_out_texts) = held_out;
        Ok(CalibrationWindows { fitted: fitted.0, further: further.0, held_out, held_out_texts })
    }

    /// Windows for evaluation, from the start of its part of the text, for a model of a vocabulary and a number of
    /// positions, and `long` ones of the same text. Files of token ids are taken as they are.
    pub fn evaluation(
        &self,
        config: &Config,
        long: Option<&LongContext>,
        sizes: (usize, usize),
        progress: &dyn Progress,
    ) -> Result<(Windows, Option<Windows>)> {
        let (path, prefix, ids) = self.evaluation_tokens(config, sizes.0, progress)?;
        let cut =
            |context, sequences| Windows::cut((&prefix, &ids), context, sequences, Layout::FromStart, sizes, &path);
        let e = &config.evaluate;
        let long = long.map(|long| cut(long.context.unwrap_or(sizes.1), long.sequences)).transpose()?;
        Ok((cut(e.context, e.sequences)?, long))
    }

    /// The evaluation's text: its file, the tokens before every sequence, and the tokens of its part.
    fn evaluation_tokens(
        &self,
        config: &Config,
        vocab: usize,
        progress: &dyn Progress,
    ) -> Result<(PathBuf, Vec<u32>, Vec<u32>)> {
        let e = &config.evaluate;
        let (path, (prefix, ids)) = match (&e.tokens, &e.text) {
            (Some(tokens), _) => (PathBuf::from(tokens), (vec![], read_u16_tokens(Path::new(tokens))?)),
            (None, text) => {
                let text = text.as_deref().unwrap_or(FIXTURE);
                let path = self.resolve(text, |f| f.validation.clone(), "evaluate.text")?;
                let rows = Rows { join: &e.join, most: e.documents };
                let encoded = self.encode((&path, &rows), vocab, progress)?;
                (path, encoded)
            }
        };
        let part = part_of(&ids, e.part);
        Ok(match e.bos {
            Bos::Each => (path, prefix, part.to_vec()),
            Bos::First => (path, vec![], [&prefix, part].concat()),
            Bos::None => (path, vec![], part.to_vec()),
        })
    }

    /// Questions of a benchmark.
    pub fn questions(&self, m: &MultipleChoice, sizes: (usize, usize), progress: &dyn Progress) -> Result<Items> {
        if m.task == Task::Retrieval {
            return self.retrieval(m, sizes, progress);
        }
        let whole = m.task.wanted(m.shots() > 0 && m.examples.is_none());
        let path = match self.on_hub(&m.path, whole, progress)? {
            Some(path) => path,
            None => self.resolve(&m.path, |f| f.questions.clone(), "evaluate.multiple_choice.path")?,
        };
        let examples = match m.examples.as_deref() {
            Some(file) => {
                let solved = m.task.wanted(true).split_off(1);
                Some(self.on_hub(file, solved, progress)?.unwrap_or_else(|| file.into()))
            }
            None => None,
        };
        let (shots, scoring, subjects) = (m.shots(), m.scoring, m.subjects.as_slice());
        let examples = examples.as_deref();
        let selection = tasks::Selection { shots, examples, scoring, subjects, count: m.questions, seed: m.seed };
        Ok(tasks::open(m.task, &path, &selection)?)
    }

    /// The file on the hub that the pattern in `name` matches, or a folder with the wanted files of the `whole` dataset.
    /// `None` for names of local files.
    fn on_hub(&self, name: &str, whole: Vec<Vec<String>>, progress: &dyn Progress) -> Result<Option<PathBuf>> {
        let Some(asked) = data::on_hub(name, "evaluate.multiple_choice.path")? else { return Ok(None) };
        match &asked.pattern {
            Some(pattern) => {
                let dir = self.dataset(&asked, &[vec![pattern.clone()]], progress)?;
                Ok(Some(data::only_file(&dir, pattern)?))
            }
            None => Ok(Some(self.dataset(&asked, &whole, progress)?)),
        }
    }

    /// Keys hidden in a text.
    fn retrieval(&self, m: &MultipleChoice, sizes: (usize, usize), progress: &dyn Progress) -> Result<Items> {
        let path = self.resolve(&m.path, |f| f.validation.clone(), "evaluate.benchmarks.path")?;
        let text = self.text(&path, &Rows { join: "\n", most: None }, progress)?;
        let tokenizer = Text::open_sized(&self.dir, sizes.0)?;
        let asked = m.retrieval.clone().unwrap_or_default();
        let tokens = |text: &str| Ok(tokenizer.encode(text)?.len());
        let positions = sizes.1 - if m.bos { tokenizer.prefix().len() } else { 0 };
        let haystack = tasks::Haystack {
            path: &path,
            text: &text,
            positions,
            count: m.questions,
            seed: m.seed,
            scoring: m.scoring,
        };
        Ok(tasks::retrieval(&asked, haystack, tokens)?)
    }

    fn resolve(&self, path: &str, part: impl Fn(&Fixture) -> PathBuf, key: &str) -> Result<PathBuf> {
        match (&self.fixture, path) {
            (Some(fixture), FIXTURE) => Ok(part(fixture)),
            (None, FIXTURE) => {
                let reason = format!("{key} is {FIXTURE:?}, which only a model of kind fixture:SEED has");
                Err(PipelineError::Value { key: key.into(), reason })
            }
            (_, path) => Ok(path.into()),
        }
    }

    /// Directory of a dataset of the hub with the wanted files; the hub is asked once.
    fn dataset(&self, asked: &data::OnHub, wanted: &[Vec<String>], progress: &dyn Progress) -> Result<PathBuf> {
        let mut known = self.datasets.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = format!("{} {wanted:?}", asked.id);
        if let Some(dir) = known.get(&key) {
            return Ok(dir.clone());
        }
        let dir = waterfill_hub::fetch_data(&asked.id, wanted, &Settings::from_env(), progress)?.dir;
        known.insert(key, dir.clone());
        Ok(dir)
    }

    /// The tokens before every text, and the tokens of one.
    fn encode(
        &self,
        (path, rows): (&Path, &Rows),
        vocab: usize,
        progress: &dyn Progress,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        self.tokens(&self.text(path, rows, progress)?, vocab)
    }

    fn tokens(&self, text: &str, vocab: usize) -> Result<(Vec<u32>, Vec<u32>)> {
        let tokenizer = Text::open_sized(&self.dir, vocab)?;
        Ok((tokenizer.prefix().to_vec(), tokenizer.encode(text)?))
    }

    /// A text by its file or its name on the hub.
    fn text(&self, path: &Path, rows: &Rows, progress: &dyn Progress) -> Result<String> {
        data::read_text(&self.files(path, progress)?, rows)
    }

    /// Conversations one after the other, as the model's own template writes them; those that it refuses are left out.
    fn conversations(&self, path: &Path, rows: &Rows, progress: &dyn Progress) -> Result<String> {
        let bad = |reason: String| PipelineError::Value { key: "calibrate.text".into(), reason };
        let Some(template) = ChatTemplate::open(&self.dir)? else {
            let dir = self.dir.display();
            return Err(bad(format!("{}: chat is true, but {dir} has no chat template", path.display())));
        };
        let chats = data::read_chats(&self.files(path, progress)?, rows)?;
        let mut text = String::new();
        let mut refused = None;
        for chat in &chats {
            match template.render(chat) {
                Ok(rendered) => text.push_str(template.without_bos(&rendered)),
                Err(ModelError::Conversation { reason, .. }) => refused = Some(reason),
                Err(other) => return Err(other.into()),
            }
        }
        match refused {
            Some(reason) if text.is_empty() => {
                let found = format!("{}: the chat template refuses all {} conversations", path.display(), chats.len());
                Err(bad(format!("{found}: {reason}")))
            }
            _ => Ok(text),
        }
    }

    /// Files by their path or their name on the hub.
    fn files(&self, path: &Path, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
        Ok(match path.to_str().map(|p| data::on_hub(p, "text")).transpose()?.flatten() {
            Some(asked) => {
                let Some(pattern) = asked.pattern.clone() else {
                    let reason = format!("hf:{0} names no files; give some as hf:{0}:FOLDER/test-*.parquet", asked.id);
                    return Err(PipelineError::Value { key: "text".into(), reason });
                };
                let wanted = [vec![pattern]];
                waterfill_store::matching_files(&self.dataset(&asked, &wanted, progress)?, &wanted[0])
            }
            None => vec![path.to_path_buf()],
        })
    }
}

/// Parts of `count` in proportion to shares, the largest remainders rounded up.
fn apportion(count: usize, shares: &[f64]) -> Vec<usize> {
    let total: f64 = shares.iter().sum();
    let exact: Vec<f64> = shares.iter().map(|share| count as f64 * share / total).collect();
    let mut parts: Vec<usize> = exact.iter().map(|part| part.floor() as usize).collect();
    let left = count - parts.iter().sum::<usize>().min(count);
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    order.iter().take(left).for_each(|&n| parts[n] += 1);
    parts
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
    fn sequences_are_divided_by_share() {
        assert_eq!(apportion(16, &[1.0]), [16]);
        assert_eq!(apportion(16, &[1.0, 1.0, 2.0]), [4, 4, 8]);
        assert_eq!(apportion(7, &[1.0, 1.0, 1.0]), [3, 2, 2]);
        assert_eq!(apportion(1, &[1.0, 3.0]), [0, 1]);
        assert_eq!(apportion(0, &[1.0, 3.0]), [0, 0]);
    }

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
