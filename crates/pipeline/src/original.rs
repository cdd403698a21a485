//! `waterfill evaluate --original`: the original alone, of any architecture that can run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use waterfill_artifacts::{Artifact, Identity, Progress, Store};
use waterfill_checkpoint::Checkpoint;
use waterfill_evaluate as eval;
use waterfill_model::other::{self, OtherModel};
use waterfill_model::{architectures, device};

use crate::config::Config;
use crate::console::Console;
use crate::error::{PipelineError, Result};
use crate::evaluation::Whose;
use crate::results::{Evaluation, read_json, write_json};
use crate::run::BenchmarkOutput;
use crate::session::Session;
use crate::sources::Source;
use crate::stages::tokens_digest;

/// The object that `--json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct OriginalOutput {
    /// Name of the pipeline.
    pub model: String,
    /// Nats per token.
    pub nll: f64,
    /// Its standard error over sequences.
    pub nll_se: f64,
    /// exp(nll).
    pub perplexity: f64,
    /// Sequences evaluated.
    pub sequences: usize,
    /// Inputs of each.
    pub context: usize,
    /// Share of right answers to the first benchmark.
    pub accuracy: Option<f64>,
    /// Figures by position in long sequences, where they were asked for.
    pub by_position: Vec<eval::Band>,
    /// All benchmarks.
    pub benchmarks: Vec<BenchmarkOutput>,
    /// Directory of the text's artifact.
    pub artifact: PathBuf,
}

/// Evaluates the original model of a configuration.
///
/// # Errors
/// Models that cannot be opened or run, data that cannot be read.
pub fn evaluate_original(config: &Config, store: &Store, device: &str, console: &Console) -> Result<OriginalOutput> {
    let source = Source::open(config, store, console)?;
    let found = architectures(&source.dir)?;
    let (result, artifact) = match other::names().any(|name| found == [name]) {
        true => {
            console.steps(1);
            let artifact = evaluate_other(config, store, device, &source, console)?;
            let text = read_json(&artifact.path("result.json"))?;
            (Evaluation { text, by_position: vec![], choices: vec![] }, artifact)
        }
        false => {
            let session = Session::of_source(source, config, store, device, console)?;
            console.steps(session.evaluations() as u64);
            let evaluated = session.evaluate(Whose::Original, &session.asked()?)?;
            (evaluated.read(None)?, evaluated.text)
        }
    };
    let text = &result.text;
    Ok(OriginalOutput {
        model: config.name.clone(),
        nll: text.nll.mean,
        nll_se: text.nll.se,
        perplexity: text.perplexity,
        sequences: text.sequences,
        context: text.context,
        accuracy: result.choices.first().map(|c| c.result.all.accuracy),
        benchmarks: BenchmarkOutput::all(&result),
        by_position: result.by_position,
        artifact: artifact.dir,
    })
}

fn evaluate_other(
    config: &Config,
    store: &Store,
    device_name: &str,
    source: &Source,
    console: &Console,
) -> Result<Artifact> {
    let checkpoint = Checkpoint::open(&source.dir)?;
    let memory = checkpoint.weights() * 4;
    console.note(&format!("runs whole and token by token: about {} of memory", crate::estimate::gigabytes(memory)));
    if config.evaluate.choices().next().is_some() {
        console.note("multiple choice is left out: it needs an architecture that can be calibrated");
    }
    let digest = checkpoint.digest()?;
    drop(checkpoint);
    let model = OtherModel::open(&source.dir, &device(device_name)?)?;
    let windows = source.evaluation(config, (model.vocab, model.positions), console)?;
    let mut inputs = BTreeMap::from([("model".to_string(), digest), ("tokens".to_string(), tokens_digest(&windows))]);
    inputs.extend(source.commit.iter().map(|commit| ("commit".to_string(), commit.clone())));
    let identity = Identity {
        stage: "evaluate-base".into(),
        version: 2,
        inputs,
        config: serde_json::json!({"context": windows.context, "token_by_token": true}),
        seeds: BTreeMap::new(),
    };
    console.step("evaluate the original");
    let artifact = store.get_or_make::<PipelineError>(&config.name, &identity, console, |work| {
        let text = eval::evaluate_other(&model, &windows, work, console)?;
        write_json(&work.path("result.json"), &text)
    })?;
    let timings = artifact.timings();
    console.step_done(artifact.cached, timings.seconds, Some(timings.peak_memory_bytes));
    Ok(artifact)
}
