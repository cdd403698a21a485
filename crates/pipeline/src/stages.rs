//! The stage graph: every stage's identity, inputs and files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use waterfill_allocate as alloc;
use waterfill_artifacts::{Artifact, Identity, Progress, Store};
use waterfill_calibrate as calib;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::{BitsPerWeight, Format, Lambda, Rate};
use waterfill_evaluate as eval;
use waterfill_model::{EMBEDDING, Model, Text, Windows, device, lm_head_name};

use crate::config::{self, Config, PolicyName, Target};
use crate::console::Console;
use crate::error::{PipelineError, Result};
use crate::sources::Source;

/// Tokens of a batch in calibration and evaluation.
const BATCH_TOKENS: usize = 2048;

/// The last stage to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// Sensitivities.
    Calibrate,
    /// Allocations.
    Allocate,
    /// Tuned checkpoints.
    Encode,
    /// Their quality.
    Evaluate,
    /// Tables and figures.
    Report,
}

/// What an allocation aims at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    Lambda(f64),
    Bytes(u64),
}

/// `summary.json` of an allocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AllocationSummary {
    pub lambda: f64,
    pub target_bytes: Option<u64>,
    pub predicted_loss: f64,
    pub estimated_bytes: u64,
    pub resident_bits: f64,
    pub weights: u64,
    pub tensors: Vec<TensorSummary>,
}

/// One coded tensor of an allocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TensorSummary {
    pub name: String,
    pub weights: u64,
    pub bits: f64,
    pub loss: f64,
    /// Weights in each format.
    pub formats: BTreeMap<String, u64>,
}

/// `result.json` of an evaluation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    pub text: eval::TextResult,
    pub choice: Option<Choice>,
}

/// Multiple choice, with the paired change from the original.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Choice {
    pub accuracy: f64,
    pub interval: (f64, f64),
    pub change: eval::Estimate,
    pub questions: usize,
}

/// A configuration with its model opened, ready to run stages.
pub struct Session<'a> {
    pub(crate) config: &'a Config,
    pub(crate) store: Store,
    pub(crate) console: &'a Console,
    pub(crate) model: Model,
    source: Source,
    model_digest: String,
    device: String,
}

impl<'a> Session<'a> {
    /// Opens the model of a configuration on a device (`cpu` or `cuda:N`).
    ///
    /// # Errors
    /// Models that cannot be opened and devices that are not there.
    pub fn open(config: &'a Config, device_name: &str, console: &'a Console) -> Result<Self> {
        let store = Store::new(&config.store);
        let device = device(device_name)?;
        let source = Source::open(config, &store)?;
        let model = Model::open(&source.dir, &device)?;
        let model_digest = model.checkpoint().digest()?;
        let kind = device_name.split(':').next().unwrap_or_default().to_string();
        Ok(Self { config, store, console, model, source, model_digest, device: kind })
    }

    fn identity<const N: usize>(
        &self,
        stage: &str,
        version: u32,
        inputs: [(&str, String); N],
        config: impl Serialize,
    ) -> Identity {
        let mut all = BTreeMap::from([("model".to_string(), self.model_digest.clone())]);
        all.extend(inputs.map(|(name, digest)| (name.to_string(), digest)));
        let config = serde_json::to_value(config).expect("configurations are plain data");
        Identity { stage: stage.into(), version, inputs: all, config, seeds: BTreeMap::new() }
    }

    /// Runs or finds one artifact and tells the console.
    fn stage(&self, label: &str, identity: &Identity, make: impl FnOnce(&Path) -> Result<()>) -> Result<Artifact> {
        self.console.step(label);
        let start = Instant::now();
        let artifact = self.store.get_or_make(&self.config.name, identity, make)?;
        self.console.step_done(artifact.cached, start.elapsed().as_secs_f64());
        Ok(artifact)
    }

    /// Sensitivities of all weights.
    pub(crate) fn calibrate(&self) -> Result<Artifact> {
        let c = &self.config.calibrate;
        let windows = self.source.calibration(self.config, &self.model)?;
        let settings = calib::Settings {
            labels: match c.labels {
                config::Labels::Sampled => calib::Labels::Sampled,
                config::Labels::Data => calib::Labels::Data,
            },
            seed: c.seed,
            shards: c.shards,
            second_moment: calib::SecondMoment {
                kind: match c.second_moment {
                    config::SecondMoment::Full => calib::MomentKind::Full,
                    config::SecondMoment::BlockDiagonal => calib::MomentKind::BlockDiagonal(c.second_moment_block),
                    config::SecondMoment::Diagonal => calib::MomentKind::Diagonal,
                },
                weighting: match c.second_moment_weighting {
                    config::Weighting::Plain => calib::Weighting::Plain,
                    config::Weighting::Gradient => calib::Weighting::Gradient,
                },
            },
            batch_tokens: BATCH_TOKENS,
        };
        // The text's path does not matter, its tokens do.
        let settled = serde_json::json!({
            "context": windows.context, "labels": c.labels, "shards": c.shards, "second_moment": c.second_moment,
            "second_moment_block": c.second_moment_block, "second_moment_weighting": c.second_moment_weighting,
            "batch_tokens": BATCH_TOKENS, "device": self.device,
        });
        let mut identity = self.identity("calibrate", 2, [("tokens", tokens_digest(&windows))], settled);
        identity.seeds.insert("labels".into(), c.seed);
        self.stage("calibrate", &identity, |dir| {
            let summary = calib::calibrate(&self.model, &windows, &settings, dir, self.console)?;
            write_json(&dir.join("summary.json"), &summary)
        })
    }

    /// Rate-distortion points of all tiles.
    pub(crate) fn points(&self, calibration: &Artifact) -> Result<Artifact> {
        let a = &self.config.allocate;
        let settled = serde_json::json!({
            "shard_rule": a.shard_rule, "granularity": a.granularity, "sensitivity_floor": a.sensitivity_floor,
        });
        let identity = self.identity("points", 1, [("calibrate", calibration.digest())], settled);
        let rule = match a.shard_rule {
            config::ShardRule::Mean => alloc::ShardRule::Mean,
            config::ShardRule::Worst => alloc::ShardRule::Worst,
        };
        let granularity = match a.granularity {
            config::Granularity::Tile => alloc::Granularity::Tile,
            config::Granularity::RowColumn => alloc::Granularity::RowColumn,
        };
        self.stage("points", &identity, |dir| {
            let sensitivities = calib::Sensitivities::open(&calibration.dir)?;
            let summary: calib::Summary = read_json(&calibration.path("summary.json"))?;
            let weights = self.model.weights();
            let read = |(name, shape): &(String, [usize; 2])| -> Result<_> {
                let sensitivity = sensitivities.read(name, shape[0], shape[1])?;
                Ok((sensitivity, self.model.checkpoint().read_f32(name, shape)?))
            };
            let erasure = |weight| read(weight).map(|(s, values)| alloc::erasure_loss(&values, &s, rule));
            let erasures = weights.par_iter().map(erasure).collect::<Result<Vec<_>>>()?;
            let raises = alloc::raises(&erasures, a.sensitivity_floor);
            self.console.start("points", weights.len() as u64);
            let mut index = Vec::new();
            for (i, weight) in weights.iter().enumerate() {
                let ((sensitivity, values), name) = (read(weight)?, &weight.0);
                let dtype = self.model.checkpoint().dtype(name)?;
                let unseen = if name == EMBEDDING { 0.5 / summary.tokens as f64 } else { 0.0 };
                let points = alloc::measure_points(&values, dtype, &sensitivity, rule, granularity, unseen, raises[i]);
                let file = format!("{i:04}.safetensors");
                points.write(&dir.join(&file))?;
                index.push((name.clone(), file));
                self.console.advance(1);
            }
            write_json(&dir.join("index.json"), &index)
        })
    }

    /// All goals of the configuration, in its order.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let a = &self.config.allocate;
        let weights = self.model.checkpoint().weights();
        let targets = a.targets.iter().map(|t| match *t {
            Target::BitsPerWeight(bits) => Goal::Bytes(BitsPerWeight(bits).bytes(weights)),
            Target::Bytes(bytes) => Goal::Bytes(bytes),
        });
        a.lambdas.iter().map(|&l| Goal::Lambda(l)).chain(targets).collect()
    }

    fn policy(&self) -> Result<alloc::Policy> {
        let a = &self.config.allocate;
        let format = |f: config::Format| match f {
            config::Format::Int4 => Format::Int4,
            config::Format::Int8 => Format::Int8,
            config::Format::Fp8 => Format::Fp8,
            config::Format::Lossless => Format::Lossless,
        };
        let mut floors: Vec<alloc::Floor> = Vec::new();
        if a.policy == PolicyName::Safe {
            for name in
                [EMBEDDING, lm_head_name(&self.model.config), "*.q_proj.weight", "*.k_proj.weight", "*.v_proj.weight"]
            {
                floors.push(alloc::Floor::new(name, Format::Fp8)?);
            }
        }
        for floor in &a.floors {
            floors.push(alloc::Floor::new(&floor.pattern, format(floor.at_least))?);
        }
        let rate = alloc::RateWeights { storage: a.rate.storage, resident: a.rate.resident };
        Ok(alloc::Policy { formats: a.formats.iter().map(|&f| format(f)).collect(), floors, margin: a.margin, rate })
    }

    /// One allocation.
    pub(crate) fn allocate(&self, points: &Artifact, goal: Goal) -> Result<Artifact> {
        let a = &self.config.allocate;
        let settled = serde_json::json!({
            "goal": goal, "formats": a.formats, "policy": a.policy, "floors": a.floors, "margin": a.margin, "rate": a.rate,
        });
        let identity = self.identity("allocate", 1, [("points", points.digest())], settled);
        let label = match goal {
            Goal::Lambda(lambda) => format!("allocate at lambda {lambda:.1e}"),
            Goal::Bytes(bytes) => format!("allocate for {bytes} bytes"),
        };
        self.stage(&label, &identity, |dir| {
            let policy = self.policy()?;
            let index: Vec<(String, String)> = read_json(&points.path("index.json"))?;
            let files: Vec<(String, PathBuf)> = index.into_iter().map(|(n, f)| (n, points.path(&f))).collect();
            let overhead = overhead(self.model.checkpoint(), &files);
            let lambda = match goal {
                Goal::Lambda(lambda) => Lambda(lambda),
                Goal::Bytes(bytes) => {
                    alloc::meet_target(bytes, &files, self.model.checkpoint(), &policy, overhead)?.lambda
                }
            };
            let selections = files
                .par_iter()
                .map(|(name, path)| {
                    let points = alloc::WeightPoints::read(path)?;
                    Ok((name.as_str(), alloc::select_weight(name, &points, &policy, lambda)?))
                })
                .collect::<Result<Vec<_>>>()?;
            let mut map = alloc::Allocation::new(&dir.join("allocation.safetensors"));
            selections.iter().for_each(|(name, selection)| map.add(name, selection));
            map.write()?;
            alloc::write_table(&dir.join("tiles.parquet"), selections.iter().map(|(n, s)| (*n, s)))?;
            let summary = summarise(&selections, lambda, goal, overhead, self.model.checkpoint().weights());
            write_json(&dir.join("summary.json"), &summary)
        })
    }

    /// The tuned checkpoint of an allocation, in `checkpoint/` of the artifact.
    pub(crate) fn encode(&self, allocation: &Artifact) -> Result<Artifact> {
        let version = waterfill_checkpoint::writer::VERSION;
        let settled = serde_json::json!({"bitstream": version});
        let identity = self.identity("encode", 1, [("allocate", allocation.digest())], settled);
        self.stage("encode", &identity, |dir| {
            let out = dir.join("checkpoint");
            std::fs::create_dir(&out).map_err(|source| PipelineError::Io { path: out.clone(), source })?;
            let map = alloc::Allocation::open(&allocation.path("allocation.safetensors"))?;
            let summary = waterfill_encode::encode(self.model.checkpoint(), &map, &out, self.console)?;
            write_json(&dir.join("summary.json"), &summary)
        })
    }

    fn evaluation_config(&self) -> serde_json::Value {
        let m = self.config.evaluate.multiple_choice.as_ref();
        serde_json::json!({
            "context": self.config.evaluate.context, "shots": m.map(|m| m.shots), "batch_tokens": BATCH_TOKENS,
            "device": self.device,
        })
    }

    /// Quality of the original, and its final states for comparisons.
    pub(crate) fn evaluate_base(&self) -> Result<Artifact> {
        let windows = self.source.evaluation(self.config, &self.model)?;
        let questions = self.questions()?;
        let inputs = [("tokens", tokens_digest(&windows)), ("questions", questions_digest(questions.as_ref()))];
        let identity = self.identity("evaluate-base", 1, inputs, self.evaluation_config());
        self.stage("evaluate the original", &identity, |dir| {
            let states = eval::final_states(&self.model, &windows.batches(BATCH_TOKENS), self.console)?;
            eval::write_states(&states, &dir.join("states.safetensors"))?;
            let text = eval::evaluate_text(&windows, (&self.model.head()?, &states), None)?;
            let choice = self.answer(&self.model, questions.as_ref(), None, dir)?;
            write_json(&dir.join("result.json"), &Evaluation { text, choice })
        })
    }

    /// Quality of a tuned checkpoint, read back from its files.
    pub(crate) fn evaluate(&self, base: &Artifact, encoded: &Artifact) -> Result<Artifact> {
        let inputs = [("checkpoint", encoded.digest()), ("base", base.digest())];
        let identity = self.identity("evaluate", 1, inputs, self.evaluation_config());
        self.stage("evaluate", &identity, |dir| {
            let windows = self.source.evaluation(self.config, &self.model)?;
            let questions = self.questions()?;
            let tuned = Model::open(&encoded.path("checkpoint"), self.model.device())?;
            let reference = eval::read_states(&base.path("states.safetensors"), self.model.device())?;
            let states = eval::final_states(&tuned, &windows.batches(BATCH_TOKENS), self.console)?;
            let (head, tuned_head) = (self.model.head()?, tuned.head()?);
            let text = eval::evaluate_text(&windows, (&head, &reference), Some((&tuned_head, &states)))?;
            let choice = self.answer(&tuned, questions.as_ref(), Some(base), dir)?;
            write_json(&dir.join("result.json"), &Evaluation { text, choice })
        })
    }

    fn questions(&self) -> Result<Option<eval::QuestionSet>> {
        self.config.evaluate.multiple_choice.as_ref().map(|m| self.source.questions(m)).transpose()
    }

    /// Answers the questions, keeps every answer, and pairs with the original's.
    fn answer(
        &self,
        model: &Model,
        questions: Option<&eval::QuestionSet>,
        base: Option<&Artifact>,
        dir: &Path,
    ) -> Result<Option<Choice>> {
        let (Some(questions), Some(m)) = (questions, &self.config.evaluate.multiple_choice) else { return Ok(None) };
        let text = Text::open(&self.source.dir, &self.model.config)?;
        let result = eval::evaluate_choices(model, &text, questions, m.shots, self.console)?;
        write_json(&dir.join("questions.json"), &result.questions)?;
        let original: Vec<eval::QuestionResult> = match base {
            Some(base) => read_json(&base.path("questions.json"))?,
            None => result.questions.clone(),
        };
        let point = |correct: bool| f64::from(u8::from(correct));
        let changes: Vec<f64> =
            result.questions.iter().zip(&original).map(|(a, b)| point(a.correct) - point(b.correct)).collect();
        let (accuracy, interval) = (result.accuracy, result.interval);
        Ok(Some(Choice { accuracy, interval, change: eval::Estimate::of(&changes), questions: changes.len() }))
    }
}

fn summarise(
    selections: &[(&str, alloc::Selection)],
    lambda: Lambda,
    goal: Goal,
    overhead: alloc::Overhead,
    weights: u64,
) -> AllocationSummary {
    let tensors = selections.iter().map(|(name, s)| {
        let mut formats = BTreeMap::new();
        for (n, point) in s.points.iter().enumerate() {
            let (row, col) = (n / s.plan.tiles_across() * 16, n % s.plan.tiles_across() * 16);
            let inside = 16.min(s.plan.rows - row) * 16.min(s.plan.cols - col);
            *formats.entry(point.format.name().to_string()).or_insert(0) += inside as u64;
        }
        let bits = alloc::estimated_bits(s).0;
        TensorSummary {
            name: name.to_string(),
            weights: (s.plan.rows * s.plan.cols) as u64,
            bits,
            loss: s.loss.0,
            formats,
        }
    });
    let tensors: Vec<TensorSummary> = tensors.collect();
    let bits = tensors.iter().map(|t| t.bits).sum::<f64>() + overhead.plain.0;
    let resident: Rate = selections.iter().map(|(_, s)| s.resident).sum();
    AllocationSummary {
        lambda: lambda.0,
        target_bytes: match goal {
            Goal::Bytes(bytes) => Some(bytes),
            Goal::Lambda(_) => None,
        },
        predicted_loss: tensors.iter().map(|t| t.loss).sum(),
        estimated_bytes: (bits / 8.0).round() as u64,
        resident_bits: (resident + overhead.plain_resident).0,
        weights,
        tensors,
    }
}

/// Bits outside coded tensors: plain tensors, and the shard's header with offsets of about the
/// right number of digits.
fn overhead(checkpoint: &Checkpoint, coded: &[(String, PathBuf)]) -> alloc::Overhead {
    let (mut plain, mut header, mut offset) = (0, 110, 0);
    for tensor in checkpoint.tensors() {
        let is_coded = coded.iter().any(|(name, _)| *name == tensor.name);
        let (dtype, bytes) = if is_coded { ("U8", tensor.weights() / 2) } else { ("BF16", tensor.bytes) };
        plain += if is_coded { 0 } else { bytes };
        let entry = format!(
            "\"{}\":{{\"dtype\":\"{dtype}\",\"shape\":[{bytes}],\"data_offsets\":[{offset},{}]}},",
            tensor.name,
            offset + bytes
        );
        header += entry.len() as u64;
        offset += bytes;
    }
    alloc::Overhead { plain: Rate((plain + header) as f64 * 8.0), plain_resident: Rate(plain as f64 * 8.0) }
}

fn tokens_digest(windows: &Windows) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in &windows.rows {
        row.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

fn questions_digest(set: Option<&eval::QuestionSet>) -> String {
    let text = set.map(|s| format!("{:?}{:?}", s.test, s.dev)).unwrap_or_default();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    std::fs::write(path, text).map_err(|source| PipelineError::Io { path: path.into(), source })
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|source| PipelineError::Io { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|e| PipelineError::Artifact { path: path.into(), reason: e.to_string() })
}
