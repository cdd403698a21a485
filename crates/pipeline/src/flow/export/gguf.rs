//! GGUF files with a type for every matrix.

use std::path::{Path, PathBuf};

use waterfill_checkpoint::QualityPrefix;
use waterfill_checkpoint::writer::copy_file;
use waterfill_codec::{BitsPerWeight, Lambda};
use waterfill_export::{Candidate, Chosen, ExportError, GgufType, choose, head_bytes};

use super::{ExportOutput, ExportPoint, no_baseline};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::{PipelineError, Result};
use crate::goal::Goal;
use crate::output::{BaseOutput, SCHEMA};
use crate::results::ExportSummary;
use crate::stage::ArtifactRef;
use crate::stages::gguf::{FILE, RECIPE, gguf_metadata, gguf_name, gguf_recipe};
use crate::stages::{Evaluation, GgufMatrix, Measure, MeasureGguf, Subject, WriteGguf, calibrate};

/// Writes a GGUF file for every goal of the configuration, evaluated as its values are read back.
///
/// # Errors
/// The first failure of any stage; models that llama.cpp does not know.
pub fn export_gguf(context: &Context, out: Option<&Path>) -> Result<ExportOutput> {
    if let Some(out) = out {
        std::fs::create_dir_all(out).map_err(PipelineError::io(out))?;
    }
    let engine = Engine::running(context);
    let (measured, matrices) = matrices(&engine)?;
    let base = Evaluation::make(&engine, Subject::Original)?;
    let original = base.read(None)?;
    let mut all = Vec::new();
    for goal in context.goals() {
        let chosen = choice(context, &matrices, goal)?;
        let artifact = engine.make(&WriteGguf { measured: &measured, matrices: &matrices, chosen: &chosen })?;
        let subject = Subject::Compressed(&artifact, QualityPrefix::All, &base);
        let text = Evaluation::make(&engine, subject)?.read(Some(&base))?.text;
        let summary: ExportSummary = artifact.read("summary.json")?;
        let mut file = artifact.path(FILE);
        let mut recipe = artifact.path(RECIPE);
        let bytes = file.metadata().map_err(PipelineError::io(&file))?.len();
        let bits = BitsPerWeight::of_bytes(bytes, context.model.checkpoint().weights());
        if let Some(out) = out {
            let name = format!("{}-{:.2}bpw", context.config.name, bits.0);
            for (path, ending) in [(&mut file, "gguf"), (&mut recipe, "recipe.txt")] {
                let to = out.join(format!("{name}.{ending}"));
                copy_file(path, &to)?;
                *path = to;
            }
        }
        all.push(ExportPoint::of(summary, bytes, bits, &text, (file, Some(recipe))));
    }
    all.sort_by_key(|p| p.bytes);
    Ok(ExportOutput {
        schema: SCHEMA,
        model: context.config.name.clone(),
        base: BaseOutput::of(&original),
        points: all,
    })
}

/// Writes, for every goal, the types of all matrices for `llama-quantize --tensor-type-file` into `out`; returns the files.
///
/// # Errors
/// As [`export_gguf`].
pub fn write_recipes(context: &Context, out: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(out).map_err(PipelineError::io(out))?;
    let (_, matrices) = matrices(&Engine::running(context))?;
    let weights: u64 = matrices.iter().map(|m| m.weights).sum();
    let mut files = Vec::new();
    for goal in context.goals() {
        let chosen = choice(context, &matrices, goal)?;
        let bits = BitsPerWeight::of_bytes(chosen.bytes, weights);
        let path = out.join(format!("{}-{:.2}bpw.recipe.txt", context.config.name, bits.0));
        std::fs::write(&path, gguf_recipe(context, &matrices, &chosen)?).map_err(PipelineError::io(&path))?;
        files.push(path);
    }
    Ok(files)
}

/// Candidates of all matrices: those of the codec, whose loss weights types need, and size and loss in every type.
fn matrices(engine: &Engine) -> Result<(ArtifactRef, Vec<GgufMatrix>)> {
    // A model that cannot be exported is refused before anything is computed.
    gguf_metadata(engine.context(), GgufType::Q8_0)?;
    let calibration = calibrate(engine)?;
    let measured = engine.make(&Measure { calibration: &calibration })?;
    let types = engine.make(&MeasureGguf { calibration: &calibration, measured: &measured })?;
    let matrices = MeasureGguf::read(&types, engine.context())?;
    Ok((measured, matrices))
}

fn choice(context: &Context, matrices: &[GgufMatrix], goal: Goal) -> Result<Chosen> {
    let candidates: Vec<Vec<Candidate<GgufType>>> = matrices.iter().map(|m| m.candidates.clone()).collect();
    let goal = match goal {
        Goal::Lambda(lambda) => Err(Lambda(lambda)),
        // A runtime holds the file as it is.
        Goal::Bytes(_) | Goal::Resident(_) | Goal::Within { .. } => {
            let bytes = goal.least_bytes();
            let (architecture, metadata) = gguf_metadata(context, GgufType::Q8_0)?;
            let mut around = 0;
            let mut names = Vec::new();
            for info in context.model.checkpoint().tensors() {
                names.push(gguf_name(context, architecture, &info.name)?.gguf.len());
                around += if matrices.iter().any(|m| m.name == info.name) { 16 } else { 4 * info.weights() + 16 };
            }
            around += head_bytes(&metadata, names.into_iter());
            let least: u64 = candidates.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
            if around + least > bytes {
                let reason = format!("{bytes} bytes are wanted, the smallest file takes {}", around + least);
                return Err(ExportError::Target { target: "gguf", reason }.into());
            }
            Ok(bytes - around)
        }
        Goal::Width(_) => return Err(no_baseline("gguf")),
    };
    Ok(choose(&candidates, goal))
}
