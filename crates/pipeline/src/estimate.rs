//! Time and memory, before a run.

use std::collections::BTreeMap;

use waterfill_store::Artifact;

use crate::context::Context;
use crate::stage::Estimate;

/// Floating-point operations a second of one core, where no earlier figure is known.
const FLOPS: f64 = 8e10;
/// Memory of the program itself with its tables and the tokenizer, bytes.
pub(crate) const PROGRAM: u64 = 120_000_000;

/// Seconds that stages took before, in this store and pipeline.
pub(crate) struct Times(BTreeMap<String, f64>);

impl Times {
    /// Means over the artifacts of each stage.
    pub fn read(context: &Context) -> Self {
        let root = context.store.root().join(&context.config.name);
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

    /// Seconds of a stage, and whether that is a guess from its operations.
    pub fn of(&self, stage: &str, estimate: &Estimate) -> (f64, bool) {
        match self.0.get(stage) {
            Some(&seconds) => (seconds, false),
            None => (estimate.operations / (FLOPS * rayon::current_num_threads() as f64), true),
        }
    }
}

/// A size for people.
pub fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Bytes for tensors that are coded at the same time: half of what is free, within bounds that suit small and large
/// machines.
pub(crate) fn coding_memory() -> u64 {
    (available_memory() / 2).clamp(4 << 30, 10 << 30)
}

/// Memory that the system can still give, bytes; 8 GB where it is not known.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(8_000_000_000, |kb| kb * 1024)
}
