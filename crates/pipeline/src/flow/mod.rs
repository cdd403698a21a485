//! Which stages a command needs, in which order, from which inputs: written once for runs and for plans.

mod closed_loop;
mod compress;
mod delta;
pub(crate) mod export;
mod original;
mod run;
mod training;

pub use delta::{DeltaOutput, lossy_delta};
pub use export::{ExportOutput, ExportPoint, Exported, export_compressed, export_exact, export_gguf, write_recipes};
pub use original::{OriginalOutput, evaluate_original};
pub use run::{PointArtifacts, RunArtifacts, Until, plan, run};
pub use training::{TrainOutput, train};
