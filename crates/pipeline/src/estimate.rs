//! How long stages take and how much memory a run needs, before it runs.

use std::collections::BTreeMap;

use waterfill_calibrate::head_bytes;
use waterfill_evaluate::{block_tokens, comparison_bytes};
use waterfill_model::{Projection, side_by_side};
use waterfill_quantize::encode_bytes;
use waterfill_store::Artifact;

use crate::config::{MultipleChoice, SecondMoment, Weighting};
use crate::session::Session;
use crate::stages::BATCH_TOKENS;

/// Arithmetic of one core without any figure to go by, floating-point operations a second.
const FLOPS: f64 = 8e10;
/// Memory of the program itself with its tables and the tokenizer.
const PROGRAM: u64 = 120_000_000;

/// Seconds that stages took before, in this store and pipeline.
pub(crate) struct Times(BTreeMap<String, f64>);

impl Times {
    /// Means over the artifacts of each stage.
    pub fn read(session: &Session) -> Self {
        let root = session.store.root().join(&session.config.name);
        let mut means = BTreeMap::new();
        for stage in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let artifacts = std::fs::read_dir(stage.path()).into_iter().flatten().flatten();
            let seconds: Vec<f64> =
                artifacts.filter_map(|e| Some(Artifact::open(&e.path()).ok()?.timings().seconds)).collect();
            if !seconds.is_empty() {
                let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
                means.insert(stage.file_name().to_string_lossy().into_owned(), mean);
            }
        }
        Self(means)
    }

    /// Seconds of a stage, and whether that is a guess from the model's size.
    pub fn of(&self, session: &Session, stage: &str) -> (f64, bool) {
        if let Some(&seconds) = self.0.get(stage) {
            return (seconds, false);
        }
        let (c, e) = (&session.config.calibrate, &session.config.evaluate);
        let weights = session.model.checkpoint().weights() as f64;
        let questions = e.choices().map(|m| (m.questions * 100 * (m.shots() + 1)) as f64).sum::<f64>();
        let questions = questions / e.choices().count().max(1) as f64;
        let long = e.long_context.map_or(0, |l| l.sequences * l.context.unwrap_or(session.model.config.positions));
        let text = (e.sequences * e.context) as f64;
        let operations = match stage {
            "calibrate" => (c.sequences * c.context) as f64 * weights * 8.0,
            "evaluate" | "evaluate-base" => text * weights * 2.0,
            "positions" | "positions-base" => long as f64 * weights * 2.0,
            "answers" => questions * weights * 2.0,
            "points" => weights * 4e4,
            "encode" => {
                let steps = session.config.encode.sequential.map_or(0, |s| s.steps * session.model.config.layers);
                weights * (4e3 + 3.0 * (steps * BATCH_TOKENS) as f64)
            }
            _ => weights * 2e3,
        };
        (operations / (FLOPS * rayon::current_num_threads() as f64), true)
    }
}

/// Peak memory of a run, bytes: the largest of its stages.
pub(crate) fn memory(session: &Session) -> u64 {
    let stages = ["calibrate", "points", "allocate", "encode", "evaluate-base", "evaluate", "positions", "answers"];
    stages.iter().map(|stage| stage_memory(session, stage)).max().unwrap_or(0)
}

/// Peak memory of a stage, bytes.
pub(crate) fn stage_memory(session: &Session, stage: &str) -> u64 {
    let (model, config) = (&session.model.config, session.config);
    let weights = session.model.checkpoint().weights();
    let largest = session.model.weights().iter().map(|(_, [rows, cols])| (rows * cols) as u64).max().unwrap_or(0);
    let (block, table) = (model.block_bytes(), model.table_bytes());
    // A batch is one sequence at least.
    let batch = |tokens: usize, context: usize| tokens.max(context);
    let side = |bytes: u64| bytes * side_by_side(session.model.device(), bytes) as u64;
    // Final states of `held` tokens, batches of `tokens`, and one head or two.
    let evaluating = |held: usize, tokens: usize, heads: u64| {
        let states = model.state_bytes(held);
        let blocks = block + block / 4 + side(model.forward_bytes(tokens));
        let compare = heads * table + table / 2 + side(comparison_bytes(model.vocab));
        states + states / 4 + blocks.max(compare)
    };
    PROGRAM
        + match stage {
            "calibrate" => {
                let tokens = batch(config.calibrate.batch_tokens, config.calibrate.context);
                let states = model.state_bytes(tokens);
                let moments = moment_bytes(session);
                let forward = side(model.forward_bytes(tokens) + 2 * states);
                let backward = side(model.vjp_bytes(tokens) + 2 * states) + 2 * moments;
                let head = table + side(head_bytes(model.vocab, tokens) + 4 * states);
                head.max(block + forward.max(backward))
            }
            // Values in f32, and points twice: as they are measured and as they are written.
            "points" => largest * 8 + if config.encode.feedback { factor_bytes(session) } else { 0 },
            // What was chosen for every tile, and the points of the largest matrix.
            "allocate" => weights / 256 * 80 + largest * 5,
            "encode" => {
                let shapes = session.model.weights().into_iter().map(|w| w.1);
                let coding = encode_bytes(shapes, config.encode.feedback, coding_memory());
                // Values twice, both moments and two gradients of every weight, tensors of the blocks, final
                // states of both models, and two batches on their way.
                let tokens = config.calibrate.sequences * config.calibrate.context;
                let adapting = 28 * weights
                    + 2 * model.state_bytes(tokens)
                    + 2 * (model.vjp_bytes(BATCH_TOKENS) + model.layers as u64 * model.state_bytes(BATCH_TOKENS));
                if config.encode.sequential.is_some() { coding + adapting } else { coding }
            }
            "evaluate" | "evaluate-base" | "positions" | "positions-base" => {
                let e = &config.evaluate;
                let long = e.long_context.map_or((0, 0), |l| (l.sequences, l.context.unwrap_or(model.positions)));
                let (sequences, context) = if stage.starts_with("positions") { long } else { (e.sequences, e.context) };
                let held = (sequences * context).min(block_tokens(model));
                let heads = if stage.ends_with("base") { 1 } else { 2 };
                evaluating(held, batch(e.batch_tokens, context), heads)
            }
            "answers" => {
                let written = if config.evaluate.choices().any(MultipleChoice::is_written) { weights * 4 } else { 0 };
                evaluating(block_tokens(model), 2 * config.evaluate.batch_tokens, 1).max(written)
            }
            _ => 0,
        }
}

/// Bytes of the largest factor of a second moment while it is computed.
fn factor_bytes(session: &Session) -> u64 {
    let widest = session.model.weights().iter().map(|(_, [_, cols])| *cols as u64).max().unwrap_or(0);
    16 * widest * widest
}

/// Bytes of a block's second moments while they are summed.
pub(crate) fn moment_bytes(session: &Session) -> u64 {
    let (model, c) = (&session.model.config, &session.config.calibrate);
    let of = |projection: Projection| {
        let width = model.linear_shape(projection)[1] as u64;
        match c.second_moment {
            SecondMoment::Full => width * (width + 512) / 2 * 4,
            SecondMoment::BlockDiagonal => width * c.second_moment_block as u64 * 4,
            SecondMoment::Diagonal => 0,
        }
    };
    // Plain ones are kept for four of the seven layers: the others have the same inputs.
    let plain = c.second_moment_weighting == Weighting::Plain;
    let layers = Projection::ALL.into_iter().filter(|&p| !plain || p.first_of_input() == p);
    let outputs = |projection: Projection| match c.output_moment {
        SecondMoment::Diagonal => 0,
        _ => {
            let rows = model.linear_shape(projection)[0] as u64;
            rows * (rows + 512) / 2 * 4
        }
    };
    layers.map(of).sum::<u64>() + Projection::ALL.into_iter().map(outputs).sum::<u64>()
}

/// Bytes that a calibration puts on the disk while it runs: states and gradients between blocks, and
/// the second moments that stay.
pub(crate) fn calibration_disk(session: &Session) -> u64 {
    let (model, c) = (&session.model.config, &session.config.calibrate);
    let states = model.state_bytes(c.sequences * c.context) * (model.layers as u64 + 3);
    // Correlations take half of what their sums take.
    states + moment_bytes(session) / 2 * model.layers as u64
}

/// A size for people.
pub(crate) fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Bytes for tensors that are coded side by side: half of what is free, within bounds that large and small
/// machines have.
pub(crate) fn coding_memory() -> u64 {
    (available_memory() / 2).clamp(4 << 30, 10 << 30)
}

/// Memory that the system has to give, bytes; 8 GB where it does not tell.
pub(crate) fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(8_000_000_000, |kb| kb * 1024)
}
