//! compressed-tensors directories: INT4 or INT8 for every linear layer, as vLLM multiplies from.

use std::collections::BTreeSet;
use std::path::Path;

use waterfill_allocate::Sharing;
use waterfill_checkpoint::writer::copy_files;
use waterfill_checkpoint::{Checkpoint, QualityPrefix, TensorInfo};
use waterfill_codec::{BitsPerWeight, Lambda};
use waterfill_export::{Candidate, Chosen, ExportError, Scheme, choose};

use super::exact::export_compressed_checkpoints;
use super::{ExportOutput, ExportPoint, no_baseline};
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Result;
use crate::goal::Goal;
use crate::output::{BaseOutput, SCHEMA};
use crate::results::ExportSummary;
use crate::stages::packed::ENTRY;
use crate::stages::{Evaluation, Measure, MeasurePacked, PackedGroup, Subject, WritePacked, calibrate};

/// Writes a directory for every goal of the configuration, evaluated as its codes and scales are read back: compressed
/// checkpoints with their own codes where the configuration's granularity is that of the format, else schemes and codes
/// chosen for it.
///
/// # Errors
/// The first failure of any stage.
pub fn export_compressed(context: &Context, out: Option<&Path>) -> Result<ExportOutput> {
    let granularity = context.config.allocate.granularity;
    if granularity.sharing() != Sharing::Tile {
        return match out {
            Some(out) => export_compressed_checkpoints(context, out),
            None => {
                let reason = format!("allocate.granularity {} needs --out, a directory", String::from(granularity));
                Err(ExportError::Target { target: "compressed-tensors", reason }.into())
            }
        };
    }
    let engine = Engine::running(context);
    let calibration = calibrate(&engine)?;
    let measured = engine.make(&Measure { calibration: &calibration })?;
    let schemes = engine.make(&MeasurePacked { calibration: &calibration, measured: &measured })?;
    let groups = MeasurePacked::read(&schemes, context)?;
    let base = Evaluation::make(&engine, Subject::Original)?;
    let original = base.read(None)?;
    let mut all = Vec::new();
    for goal in context.goals() {
        let chosen = choice(context, &groups, goal)?;
        let (calibration, measured, groups) = (&calibration, &measured, &groups);
        let artifact = engine.make(&WritePacked { calibration, measured, groups, chosen: &chosen })?;
        let subject = Subject::Compressed(&artifact, QualityPrefix::All, &base);
        let text = Evaluation::make(&engine, subject)?.read(Some(&base))?.text;
        let summary: ExportSummary = artifact.read("summary.json")?;
        let mut dir = artifact.path("model");
        let bytes = Checkpoint::open(&dir)?.bytes();
        let bits = BitsPerWeight::of_bytes(bytes, context.model.checkpoint().weights());
        if let Some(out) = out {
            let to = out.join(format!("{}-{:.2}bpw", context.config.name, bits.0));
            copy_files(&dir, &to)?;
            dir = to;
        }
        all.push(ExportPoint::of(summary, bytes, bits, &text, (dir, None)));
    }
    all.sort_by_key(|p| p.bytes);
    Ok(ExportOutput {
        schema: SCHEMA,
        model: context.config.name.clone(),
        base: BaseOutput::of(&original),
        points: all,
    })
}

fn choice(context: &Context, groups: &[PackedGroup], goal: Goal) -> Result<Chosen> {
    let candidates: Vec<Vec<Candidate<Option<Scheme>>>> = groups.iter().map(|g| g.candidates.clone()).collect();
    let goal = match goal {
        Goal::Lambda(lambda) => Err(Lambda(lambda)),
        // A runtime holds the files as they are.
        Goal::Bytes(_) | Goal::Resident(_) | Goal::Within { .. } => {
            let bytes = goal.least_bytes();
            let linears: BTreeSet<&String> = groups.iter().flat_map(|g| &g.names).collect();
            let around = |info: &TensorInfo| ENTRY + if linears.contains(&info.name) { 0 } else { info.bytes };
            let around: u64 = context.model.checkpoint().tensors().map(around).sum();
            let least: u64 = candidates.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
            if around + least > bytes {
                let reason = format!(
                    "{bytes} bytes are wanted; embedding, head and norms, which stay as they are, take {around}, and \
                     linear layers {least} at least"
                );
                return Err(ExportError::Target { target: "compressed-tensors", reason }.into());
            }
            Ok(bytes - around)
        }
        Goal::Width(_) => return Err(no_baseline("compressed-tensors")),
    };
    Ok(choose(&candidates, goal))
}
