//! Compressed checkpoints whose codes and scales another format can hold as they are: nothing is quantized again.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_directory};
use waterfill_checkpoint::{Checkpoint, QualityPrefix, Storage, TensorInfo, element_of};
use waterfill_codec::{BitsPerWeight, CodedTensor};
use waterfill_export::{ExportError, Scheme, Stored, describe, exact, read_values};
use waterfill_model::roles::{input_group, is_linear};
use waterfill_store::{Progress, in_groups};

use super::{ExportOutput, ExportPoint};
use crate::console::Console;
use crate::context::Context;
use crate::engine::Engine;
use crate::error::{PipelineError, Result};
use crate::estimate::coding_memory;
use crate::flow::compress::{Inputs, compress};
use crate::output::{BaseOutput, SCHEMA};
use crate::results::ExportSummary;
use crate::stages::{Evaluation, Measure, Subject, calibrate};

/// The export of a compressed checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// Bytes of its safetensors files.
    pub bytes: u64,
    /// Bits of them over all weights.
    pub bits_per_weight: f64,
    /// Weights by type.
    pub types: BTreeMap<String, u64>,
}

fn refused(reason: String) -> PipelineError {
    ExportError::Target { target: "compressed-tensors", reason }.into()
}

fn refuse_existing(dir: &Path) -> Result<()> {
    if dir.exists() { Err(PipelineError::Exists { path: dir.into() }) } else { Ok(()) }
}

/// Writes the compressed checkpoint in `from` as a compressed-tensors directory `to`, which is created, with its own codes
/// and scales, and compares the values read back with its decoded weights bit for bit.
///
/// # Errors
/// Allocations that the format cannot hold, with the tensor and the reason; damaged checkpoints; a directory that exists.
pub fn export_exact(from: &Path, to: &Path, console: &Console) -> Result<Exported> {
    let source = Checkpoint::open(from)?;
    refuse_existing(to)?;
    // Runtimes compute q, k and v as one matrix, and gate and up.
    let mut sets: BTreeMap<String, Vec<&TensorInfo>> = BTreeMap::new();
    for info in source.tensors() {
        sets.entry(input_group(&info.name).unwrap_or_else(|| info.name.clone())).or_default().push(info);
    }
    let sets: Vec<Vec<&TensorInfo>> = sets.into_values().collect();
    console.start("export", sets.len() as u64);
    let sizes: Vec<u64> = sets.iter().map(|set| set.iter().map(|info| 12 * info.weights()).sum()).collect();
    // Next to the target: the temporary folder of a system may be in memory.
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(PipelineError::io(parent))?;
    let blobs = tempfile::tempdir_in(parent).map_err(PipelineError::io(parent))?;
    // Everything is checked before anything is written.
    let written = in_groups(&sizes, coding_memory(), |n| -> Result<Vec<Written>> {
        let stored = sets[n].iter().map(|info| stored(&source, info)).collect::<Result<Vec<_>>>()?;
        let stored = agreed(&sets[n], stored)?;
        console.advance(1);
        sets[n].iter().zip(stored).map(|(info, stored)| write_blobs(&source, info, stored, blobs.path())).collect()
    })?;
    let tensors: Vec<Written> = written.into_iter().flatten().collect();
    let schemes: BTreeMap<&str, Scheme> =
        tensors.iter().filter_map(|t| Some((t.info.name.as_str(), t.scheme?))).collect();
    if schemes.is_empty() {
        return Err(refused("no linear layer has codes; --to hf-bf16 writes dense weights".into()));
    }
    let plain = tensors.iter().map(|t| t.info.name.as_str()).filter(|name| is_linear(name));
    let plain: Vec<&str> = plain.filter(|name| !schemes.contains_key(name)).collect();
    let mut types: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in &tensors {
        *types.entry(tensor.scheme.map_or("plain".into(), Scheme::name)).or_default() += tensor.info.weights();
    }
    let entries: Vec<Entry> = tensors.into_iter().flat_map(|t| t.entries).collect();
    let bytes = write_directory(to, |place| -> Result<u64> {
        write_checkpoint(from, place, &entries, false)?;
        describe(place, &schemes, plain.into_iter())?;
        let written = Checkpoint::open(place)?;
        schemes.iter().try_for_each(|(name, scheme)| same(&source, &written, name, *scheme))?;
        Ok(written.bytes())
    })?;
    Ok(Exported { bytes, bits_per_weight: BitsPerWeight::of_bytes(bytes, source.weights()).0, types })
}

/// Codes and scales of a linear layer; `None` for a tensor that stays as it is.
fn stored(source: &Checkpoint, info: &TensorInfo) -> Result<Option<Stored>> {
    if !is_linear(&info.name) || info.storage != Storage::Coded {
        return Ok(None);
    }
    if info.quality_layers() > 1 {
        return Err(refused(format!("{} has several quality layers, whose codes do not add up to codes", info.name)));
    }
    let raw = source.read_raw(&info.name)?;
    let path = source.dir().to_path_buf();
    let failed = |source| waterfill_checkpoint::CheckpointError::Codec {
        path,
        tensor: info.name.clone(),
        source: Box::new(source),
    };
    let coded = CodedTensor::parse(&raw).map_err(failed)?;
    let advice = "allocate.granularity tensor, channel or group:32, group:64, group:128 allocates what it can hold";
    exact(&coded).map_err(|reason| refused(format!("{} {reason}; {advice}", info.name)))
}

/// A tensor whose bytes wait in files.
struct Written<'a> {
    info: &'a TensorInfo,
    scheme: Option<Scheme>,
    entries: Vec<Entry<'static>>,
}

fn write_blobs<'a>(
    source: &Checkpoint,
    info: &'a TensorInfo,
    stored: Option<Stored>,
    blobs: &Path,
) -> Result<Written<'a>> {
    let blob = |part: &str, bytes: Vec<u8>| {
        Ok::<_, PipelineError>(Data::keep(blobs.join(format!("{}{part}", info.name)), &bytes)?)
    };
    if let Some(stored) = stored {
        return Ok(Written { info, scheme: Some(stored.scheme), entries: stored.entries(&info.name, blob)? });
    }
    let (name, shape) = (info.name.clone(), info.shape.clone());
    let (plain, values) = match info.storage {
        Storage::Coded => {
            let values = source.read(&name)?;
            (element_of(values.dtype), values.bytes)
        }
        _ => (info.element, source.read_raw(&name)?),
    };
    let bytes = values.len() as u64;
    let entry = Entry { name, shape, plain: Some(plain), data: blob("", values)?, bytes };
    Ok(Written { info, scheme: None, entries: vec![entry] })
}

/// A set with one scheme: of several widths of groups the narrowest.
fn agreed(infos: &[&TensorInfo], stored: Vec<Option<Stored>>) -> Result<Vec<Option<Stored>>> {
    let groups = stored.iter().flatten().filter_map(|s| s.scheme.group);
    let (narrowest, first) = (groups.min(), stored.first().and_then(|s| s.as_ref().map(|s| s.scheme)));
    let number = |scheme: Option<Scheme>| scheme.map(|s| (s.bits, s.float));
    let stored: Vec<Option<Stored>> = stored.into_iter().map(|s| Some(s?.in_groups(narrowest))).collect();
    for (info, own) in infos.iter().zip(&stored) {
        let own = own.as_ref().map(|s| s.scheme);
        if number(own) != number(first) {
            let named = |scheme: Option<Scheme>| scheme.map_or("unquantized".to_string(), Scheme::name);
            let (other, one) = (named(own), named(first));
            let reason =
                format!("{} is {one}, {} {other}; runtimes compute both as one matrix", infos[0].name, info.name);
            return Err(refused(reason));
        }
    }
    Ok(stored)
}

/// Checks that codes and scales are read back as the values that the compressed checkpoint decodes to.
fn same(source: &Checkpoint, written: &Checkpoint, name: &str, scheme: Scheme) -> Result<()> {
    let decoded = source.read(name)?;
    let info = source.tensor(name)?;
    let found = read_values(written, name, [info.shape[0], info.shape[1]], scheme)?;
    let dtype = decoded.dtype;
    let mut expected = decoded.to_f32().into_iter().zip(found).enumerate();
    match expected.find(|(_, (is, was))| dtype.pattern_of(*is) != dtype.pattern_of(*was)) {
        None => Ok(()),
        Some((i, (expected, found))) => {
            let reason = format!("weight {i} of {name} comes back as {found}, it is {expected}; please report it");
            Err(ExportError::File { path: written.dir().into(), reason }.into())
        }
    }
}

/// Whether all files of a directory are in the other too.
fn alike(dir: &Path, other: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(dir).map_err(PipelineError::io(dir))? {
        let entry = entry.map_err(PipelineError::io(dir))?;
        let read = |path: &Path| std::fs::read(path).map_err(PipelineError::io(path));
        let counterpart = other.join(entry.file_name());
        if entry.path().is_dir() {
            if !counterpart.is_dir() || !alike(&entry.path(), &counterpart)? {
                return Ok(false);
            }
            continue;
        }
        if !counterpart.is_file() || read(&entry.path())? != read(&counterpart)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The compressed checkpoints of a configuration whose granularity the format can hold, each as a directory.
pub(super) fn export_compressed_checkpoints(context: &Context, out: &Path) -> Result<ExportOutput> {
    let engine = Engine::running(context);
    let calibration = calibrate(&engine)?;
    let measured = engine.make(&Measure { calibration: &calibration })?;
    let inputs = Inputs { calibration, measured: Some(measured), corrections: None };
    let base = Evaluation::make(&engine, Subject::Original)?;
    let original = base.read(None)?;
    std::fs::create_dir_all(out).map_err(PipelineError::io(out))?;
    let mut all = Vec::new();
    for goal in context.goals() {
        let compressed = compress(&engine, &inputs, goal)?;
        let subject = Subject::Compressed(&compressed.encoded, QualityPrefix::All, &base);
        let text = Evaluation::make(&engine, subject)?.read(Some(&base))?.text;
        let sizes: waterfill_quantize::EncodeSummary = compressed.encoded.read("summary.json")?;
        let place = tempfile::tempdir_in(out).map_err(PipelineError::io(out))?;
        let checkpoint = compressed.encoded.path("checkpoint");
        let exported = export_exact(&checkpoint, &place.path().join("model"), context.console)?;
        let lambda = compressed.allocation()?.map_or(0.0, |allocation| allocation.lambda);
        // There may be several of one size, one better for a file, one for a runtime.
        let name = &context.config.name;
        let dir = out.join(format!("{name}-{:.2}bpw-{lambda:.1e}", exported.bits_per_weight));
        if !(dir.exists() && alike(&place.path().join("model"), &dir)?) {
            refuse_existing(&dir)?;
            std::fs::rename(place.path().join("model"), &dir).map_err(PipelineError::io(&dir))?;
        }
        let (predicted_loss, types) = (sizes.loss, exported.types);
        let summary = ExportSummary { lambda, predicted_loss, types };
        let bits = BitsPerWeight(exported.bits_per_weight);
        all.push(ExportPoint::of(summary, exported.bytes, bits, &text, (dir, None)));
    }
    all.sort_by_key(|p| p.bytes);
    Ok(ExportOutput {
        schema: SCHEMA,
        model: context.config.name.clone(),
        base: BaseOutput::of(&original),
        points: all,
    })
}
