//! Measurements for the claims of sweeps.

use std::path::{Path, PathBuf};
use std::process::Command;

use waterfill_bench::{LoadRow, Source, bench_load, xor_bytes};
use waterfill_experiments::Measure;
use waterfill_pipeline::{Console, Mode};

use crate::commands::delta::write_delta;

/// Number of measured loads.
const REPEATS: usize = 5;
/// Text that they continue.
const PROMPT: &str = "The";

/// Measures with this program, each load in its own process.
pub struct Measured {
    pub program: PathBuf,
    pub threads: Option<u16>,
}

impl Measured {
    pub fn new(threads: Option<u16>) -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, threads })
    }

    /// Loads of a checkpoint from every source that it has.
    pub fn load(
        &self,
        checkpoint: &Path,
        prompt: &str,
        repeats: usize,
        console: &Console,
    ) -> anyhow::Result<Vec<LoadRow>> {
        let again = |source: Source, dir: &Path| {
            let mut command = Command::new(&self.program);
            command.args(["bench", "load", "--prompt", prompt, "--once", &source.name()]).arg(dir);
            command.args(self.threads.iter().flat_map(|n| ["--threads".to_string(), n.to_string()]));
            command
        };
        Ok(bench_load(checkpoint, repeats, &again, console)?)
    }
}

impl Measure for Measured {
    fn load_time(&self, checkpoint: &Path) -> Result<[f64; 2], String> {
        let quiet = Console::new(Mode::Quiet);
        let rows = self.load(checkpoint, PROMPT, REPEATS, &quiet).map_err(|e| e.to_string())?;
        let median = |source: Source| {
            let row = rows.iter().find(|r| r.source == source);
            row.map(|r| r.cold[0]).ok_or_else(|| format!("no load from {}", source.name()))
        };
        Ok([median(Source::Tuned)?, median(Source::FlatInt8)?])
    }

    fn delta(&self, base: &Path, fine_tune: &Path) -> Result<[u64; 3], String> {
        let place = tempfile::tempdir().map_err(|e| e.to_string())?;
        let quiet = Console::new(Mode::Quiet);
        let s = write_delta(base, fine_tune, &place.path().join("delta"), &quiet).map_err(|e| e.to_string())?;
        let xor = xor_bytes(base, fine_tune).map_err(|e| e.to_string())?;
        Ok([s.delta, xor, s.fine_tune])
    }
}
