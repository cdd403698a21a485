//! From a YAML file to results: configuration, the stages in order, and what people see meanwhile.

mod closed_loop;
mod compare;
mod config;
mod console;
mod curves;
mod data;
mod deltas;
mod device_memory;
mod error;
mod estimate;
mod evaluation;
mod export;
mod granularity;
mod inspect;
mod lambdas;
mod layers;
mod limits;
mod load;
mod make;
mod original;
mod packing;
mod peers;
mod pictures;
mod plan;
mod probe;
mod report;
mod results;
mod run;
mod runs;
mod session;
mod sources;
mod stages;
mod sweep;
mod targets;
mod training;
mod tune;

pub use closed_loop::{Allocated, Attempt};
pub use compare::Comparison;
pub use config::Config;
pub use console::{Console, Mode};
pub use deltas::{LossyDelta, lossy_delta};
pub use error::{PipelineError, Result};
pub use export::{ExportOutput, ExportPoint, Exported, export_compressed, export_exact, export_gguf, write_recipes};
pub use inspect::{inspect, verify};
pub use load::{json_schema, load, validate};
pub use make::make_checkpoint;
pub use original::{OriginalOutput, evaluate_original};
pub use packing::{apply, delta, pack, unpack, write_delta};
pub use peers::{Peers, Reach};
pub use pictures::draw_matrix;
pub use plan::PlannedStage;
pub use results::TensorSummary;
pub use run::{BaseOutput, BenchmarkOutput, PointOutput, RunOutput, run};
pub use runs::{
    Differences, Filter, Garbage, Record, collect, differences, export_notebook, list, write_tables, write_tile_table,
};
pub use session::Session;
pub use stages::Until;
pub use sweep::{DryRun, Sweep, SweepOutput, SweepRunOutput, dry_run, load_sweep, run_sweep};
pub use targets::{Measure, Reached, Target};
pub use training::{TrainConfig, TrainOutput, load_train, train, train_schema};
pub use waterfill_checkpoint::QualityPrefix;
pub use waterfill_evaluate::{Band, Share};
pub use waterfill_store::Store;

/// Decodes the checkpoint in `from`, or a prefix of it, to a dense Hugging Face directory `to`; `dtype` is `bf16`,
/// `f32` or `None` to keep each tensor's own. Returns the layers and bytes that were used.
///
/// # Errors
/// Damaged checkpoints, a directory that exists, files that cannot be written.
pub fn decode(
    (from, prefix): (&std::path::Path, QualityPrefix),
    to: &std::path::Path,
    dtype: Option<&str>,
    console: &Console,
) -> Result<(usize, u64)> {
    let dtype = match dtype {
        Some("bf16") => Some(waterfill_codec::Dtype::Bf16),
        Some("f32") => Some(waterfill_codec::Dtype::F32),
        _ => None,
    };
    let checkpoint = waterfill_checkpoint::Checkpoint::open_prefix(from, prefix)?;
    waterfill_quantize::write_dense(&checkpoint, to, dtype, console)?;
    Ok((checkpoint.quality_layers(), checkpoint.bytes()))
}
