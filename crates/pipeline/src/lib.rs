//! Stages of a pipeline and the flows that connect them.
//!
//! A [`Context`] is a configuration with its model opened. A [`Stage`] describes one artifact: identity, cost, units, and
//! how it is made. Flows ([`run`], [`lossy_delta`], the exports) ask an [`Engine`] for the artifacts they need; it makes
//! them, or, for [`plan`], lists them.

mod console;
mod context;
mod data;
mod device_memory;
mod engine;
mod error;
mod estimate;
mod flow;
mod goal;
mod output;
mod results;
mod sources;
mod stage;
mod stages;

pub use console::{Console, Mode};
pub use context::Context;
pub use engine::{Engine, PlannedStage};
pub use error::{PipelineError, Result};
pub use estimate::{available_memory, gigabytes};
pub use flow::{
    DeltaOutput, ExportOutput, ExportPoint, Exported, OriginalOutput, PointArtifacts, RunArtifacts, TrainOutput, Until,
    evaluate_original, export_compressed, export_exact, export_gguf, lossy_delta, plan, run, train, write_recipes,
};
pub use output::{
    Allocated, Attempt, BaseOutput, BenchmarkOutput, FloorsOutput, PointOutput, PredictedKl, QualityLayers, RunOutput,
    SCHEMA,
};
pub use results::{AllocationSummary, Choice, EvaluationResult, TensorSummary, read_json, write_json};
pub use stage::{ArtifactRef, BatchMemory, Estimate, Stage};
