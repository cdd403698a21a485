//! `waterfill evaluate --original`: the original alone, of any architecture that can run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use waterfill_checkpoint::Checkpoint;
use waterfill_evaluate as eval;
use waterfill_evaluate::tasks::Items;
use waterfill_model::other::{self, OtherModel};
use waterfill_model::{Text, architectures, device};
use waterfill_store::{Identity, Progress, Store, Work};

use waterfill_config::{Config, MultipleChoice};

use crate::console::Console;
use crate::context::Context;
use crate::engine::Engine;
use crate::error::{PipelineError, Result};
use crate::output::{BenchmarkOutput, SCHEMA};
use crate::results::write_json;
use crate::sources::Source;
use crate::stage::ArtifactRef;
use crate::stages::{ANSWERS, Evaluation, Subject, answer, identity_of_answers, tokens_digest};

/// The object that `--json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct OriginalOutput {
    /// Version of this object's names.
    pub schema: u32,
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
    let evaluated = match other::names().any(|name| found == [name]) {
        true => evaluate_other(config, store, device, &source, console)?,
        false => {
            let context = Context::of_source(source, config, store, device, console)?;
            console.steps(
                1 + u64::from(config.evaluate.long_context.is_some()) + config.evaluate.choices().count() as u64,
            );
            Evaluation::make(&Engine::running(&context), Subject::Original)?
        }
    };
    let result = evaluated.read(None)?;
    let text = &result.text;
    Ok(OriginalOutput {
        schema: SCHEMA,
        model: config.name.clone(),
        nll: text.nll.mean,
        nll_se: text.nll.se,
        perplexity: text.perplexity,
        sequences: text.sequences,
        context: text.context,
        accuracy: result.choices.first().map(|c| c.result.all.accuracy),
        benchmarks: BenchmarkOutput::all(&result),
        by_position: result.by_position,
        artifact: evaluated.text.dir().to_path_buf(),
    })
}

fn evaluate_other(
    config: &Config,
    store: &Store,
    device_name: &str,
    source: &Source,
    console: &Console,
) -> Result<Evaluation> {
    let checkpoint = Checkpoint::open(&source.dir)?;
    let memory = checkpoint.weights() * 4;
    console.note(&format!("runs whole and token by token: about {} of memory", crate::estimate::gigabytes(memory)));
    if config.evaluate.long_context.is_some() {
        console.note("figures by position are left out: they need an architecture that can be calibrated");
    }
    console.steps(1 + config.evaluate.choices().count() as u64);
    let digest = checkpoint.digest()?;
    drop(checkpoint);
    let model = OtherModel::open(&source.dir, &device(device_name)?)?;
    let sizes = (model.vocab, model.positions);
    let (windows, _) = source.evaluation(config, None, sizes, console)?;
    let questions: Vec<(&MultipleChoice, Items)> =
        config.evaluate.choices().map(|m| Ok((m, source.questions(m, sizes, console)?))).collect::<Result<_>>()?;
    let identity = |stage: &str, version: u32| {
        let mut inputs = BTreeMap::from([("model".to_string(), digest.clone())]);
        inputs.extend(source.commit.iter().map(|commit| ("commit".to_string(), commit.clone())));
        Identity { stage: stage.into(), version, inputs, config: serde_json::Value::Null, seeds: BTreeMap::new() }
    };
    let stage = |label: &str, identity: &Identity, make: &dyn Fn(&Work) -> Result<()>| {
        console.step(label);
        let artifact = store.get_or_make::<PipelineError>(&config.name, identity, console, make)?;
        let timings = artifact.timings();
        console.step_done(artifact.cached, timings.seconds, Some(timings.peak_memory_bytes));
        Ok::<_, PipelineError>(ArtifactRef::found(artifact))
    };
    let mut of_text = identity("evaluate-original", 2);
    of_text.inputs.insert("tokens".into(), tokens_digest(&windows));
    of_text.config = serde_json::json!({"context": windows.context, "token_by_token": true});
    let text = stage("evaluate the original", &of_text, &|work| {
        write_json(&work.path("result.json"), &eval::evaluate_other(&model, &windows, work, console)?)
    })?;
    let tokenizer = Text::open_sized(&source.dir, model.vocab)?;
    let kind = device_name.split(':').next().unwrap_or_default();
    let mut answers = Vec::new();
    for (m, items) in &questions {
        let identity =
            identity_of_answers(identity(ANSWERS.0, ANSWERS.1), (&source.dir, &tokenizer), (*m, items), config, kind)?;
        answers.push(stage(&format!("answer {} with the original", m.task.name()), &identity, &|work| {
            answer(eval::Answering::Whole(&model), &tokenizer, (*m, items), config, work, console)
        })?);
    }
    Ok(Evaluation { text, by_position: None, answers })
}
