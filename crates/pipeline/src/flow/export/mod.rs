//! Files for other runtimes, with types chosen from the same calibration as allocations.

mod compressed;
mod exact;
mod gguf;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use waterfill_codec::BitsPerWeight;
use waterfill_evaluate::TextResult;
use waterfill_export::ExportError;

pub use self::compressed::export_compressed;
pub use self::exact::{Exported, export_exact};
pub use self::gguf::{export_gguf, write_recipes};
use crate::error::PipelineError;
use crate::output::BaseOutput;
use crate::results::ExportSummary;

/// The object that `export --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct ExportOutput {
    /// Version of this object's names.
    pub schema: u32,
    /// Name of the pipeline.
    pub model: String,
    /// The original.
    pub base: BaseOutput,
    /// Files, smallest first.
    pub points: Vec<ExportPoint>,
}

/// One exported file.
#[derive(Debug, Clone, Serialize)]
pub struct ExportPoint {
    /// Nats of loss for one bit.
    pub lambda: f64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bits of the file over all weights.
    pub bits_per_weight: f64,
    /// Loss that its types are predicted to have.
    pub predicted_loss: f64,
    /// KL(original || exported) of the values that a runtime reads from the file, nats per token.
    pub kl: f64,
    /// Standard error of `kl` over sequences.
    pub kl_se: f64,
    /// exp(nats per token).
    pub perplexity: f64,
    /// Share of positions with the original's most likely token.
    pub top1: f64,
    /// Weights by type.
    pub types: BTreeMap<String, u64>,
    /// The file or directory.
    pub file: PathBuf,
    /// For a GGUF file, the types of its matrices as `llama-quantize --tensor-type-file` reads them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<PathBuf>,
}

impl ExportPoint {
    fn of(
        summary: ExportSummary,
        bytes: u64,
        bits: BitsPerWeight,
        text: &TextResult,
        (file, recipe): (PathBuf, Option<PathBuf>),
    ) -> Self {
        Self {
            lambda: summary.lambda,
            bytes,
            bits_per_weight: bits.0,
            predicted_loss: summary.predicted_loss,
            kl: text.kl.mean,
            kl_se: text.kl.se,
            perplexity: text.perplexity,
            top1: text.top1.mean,
            types: summary.types,
            file,
            recipe,
        }
    }
}

fn no_baseline(target: &'static str) -> PipelineError {
    let reason = "baselines have no types to choose from; leave the section baseline out".to_string();
    ExportError::Target { target, reason }.into()
}
