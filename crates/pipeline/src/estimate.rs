//! How long stages take and how much memory a run needs, before it runs.

use std::collections::BTreeMap;

use waterfill_artifacts::Artifact;
use waterfill_model::LINEARS;

use crate::config::SecondMoment;
use crate::session::Session;
use crate::stages::BATCH_TOKENS;

/// Arithmetic of one core without any figure to go by, floating-point operations a second.
const FLOPS: f64 = 2e10;
/// Memory of the program itself with its tables and the tokenizer.
const PROGRAM: u64 = 120_000_000;
/// Logits of a thread at a time, and what is computed from them.
const LOGITS: u64 = (1 << 23) * 4 * 3;

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
        let questions = e.multiple_choice.as_ref().map_or(0.0, |m| (m.questions * 100 * (m.shots + 1)) as f64);
        let text = (e.sequences * e.context) as f64;
        let operations = match stage {
            "calibrate" => (c.sequences * c.context) as f64 * weights * 8.0,
            "evaluate" | "evaluate-base" => (text + questions) * weights * 2.0,
            "points" => weights * 1e5,
            "encode" => weights * 4e3,
            _ => weights * 2e3,
        };
        (operations / (FLOPS * rayon::current_num_threads() as f64), true)
    }
}

/// Peak memory of a run, bytes: the largest of its stages.
pub(crate) fn memory(session: &Session) -> u64 {
    let model = &session.model.config;
    let threads = rayon::current_num_threads() as u64;
    let side = |i: usize| model.linear_shape(i).map(|n| n as u64);
    let block: u64 = (0..LINEARS.len()).map(|i| side(i)[0] * side(i)[1]).sum();
    let table = (model.vocab * model.hidden) as u64;
    let context = session.config.calibrate.context as u64;
    // Activations of one batch in the vector-Jacobian product, kept and with their gradients.
    let wide: u64 = (0..LINEARS.len()).map(|i| side(i)[0] + side(i)[1]).sum();
    let batch = BATCH_TOKENS as u64 * (3 * wide + 8 * model.hidden as u64) * 4 + context * context * 8;
    let moments: u64 = match session.config.calibrate.second_moment {
        SecondMoment::Full => (0..LINEARS.len()).map(|i| side(i)[1] * side(i)[1] * 4).sum(),
        SecondMoment::BlockDiagonal => wide * session.config.calibrate.second_moment_block as u64 * 4,
        SecondMoment::Diagonal => 0,
    };
    // Twice the batch: candle keeps gradients of what it passes through.
    let calibrate = 3 * (block + table) * 4 + threads * (2 * batch + LOGITS + moments) + 2 * moments;
    let largest = (0..LINEARS.len()).map(|i| side(i)[0] * side(i)[1]).max().unwrap_or(0).max(table);
    // Values, squares and sensitivities in f64, about 40 points of 24 bytes for 256 weights.
    let points = largest * 24;
    let encode = threads * largest * 16;
    let questions = session.config.evaluate.multiple_choice.is_some();
    let text = (session.config.evaluate.sequences * session.config.evaluate.context) as u64;
    let states = text.min(1 << 17).max(if questions { 1 << 17 } else { 0 }) * model.hidden as u64 * 4 * 2;
    let evaluate = 2 * (block + 2 * table) * 4 + states + threads * (batch + LOGITS);
    PROGRAM + calibrate.max(points).max(encode).max(evaluate)
}

/// Memory that the system has to give, bytes; 8 GB where it does not tell.
pub(crate) fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(8_000_000_000, |kb| kb * 1024)
}
