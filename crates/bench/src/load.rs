//! From files to the first token, in processes of their own so that peaks of memory are theirs.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use waterfill_checkpoint::writer::{Data, Entry, write_companions, write_shards};
use waterfill_checkpoint::{Checkpoint, CheckpointError, Element, QualityPrefix, SafetensorsFile};
use waterfill_codec::Dtype;
use waterfill_model::Model;
use waterfill_runtime::{Form, Runtime};
use waterfill_store::{Progress, peak_memory_bytes};

use crate::error::BenchError;

/// File of codes in the directory of flat INT8.
const CODES: &str = "codes.safetensors";

/// The kind of checkpoint that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The first layer of a checkpoint in layers.
    Base,
    /// The compressed checkpoint.
    Tuned,
    /// The same with linear layers kept as tiles.
    TunedPacked,
    /// Its values as bf16 safetensors.
    Bf16,
    /// Codes of eight bits with a scale for each row.
    FlatInt8,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Base, Self::Tuned, Self::TunedPacked, Self::Bf16, Self::FlatInt8];

    /// Name on command lines.
    pub fn name(self) -> String {
        serde_json::to_string(&self).expect("a unit variant").trim_matches('"').to_string()
    }
}

/// One start.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Start {
    /// Seconds until all weights are in memory, ready to multiply.
    pub load: f64,
    /// Seconds until the first token after the prompt.
    pub first_token: f64,
    /// Most bytes that the process held.
    pub peak_bytes: u64,
}

/// Starts from one source.
#[derive(Debug, Clone, Serialize)]
pub struct LoadRow {
    /// The kind of checkpoint.
    pub source: Source,
    /// Bytes of its shards.
    pub bytes: u64,
    /// Seconds in which these alone are read: median, and spread from the least to the most. The page cache was asked to
    /// forget the files before, as for the next.
    pub read: [f64; 3],
    /// Seconds from the files to the first token.
    pub cold: [f64; 3],
    /// The same with the files in the page cache.
    pub warm: [f64; 3],
    /// Seconds of the warm start in which weights are read and decoded.
    pub load: [f64; 3],
    /// Most bytes that a process held.
    pub peak_bytes: u64,
}

/// Load times of a kind of checkpoint.
#[derive(Default)]
struct Measured {
    reads: Vec<f64>,
    colds: Vec<Start>,
    warms: Vec<Start>,
}

/// Loads a checkpoint in this process, up to the first token after `prompt`.
///
/// # Errors
/// Checkpoints that cannot be loaded.
pub fn start_once(source: Source, dir: &Path, prompt: &str) -> Result<Start, BenchError> {
    let start = Instant::now();
    let runtime = match source {
        Source::Base => Runtime::open_prefix(dir, QualityPrefix::Layers(1), Form::Dense)?,
        Source::Tuned | Source::Bf16 => Runtime::open(dir, Form::Dense)?,
        Source::TunedPacked => Runtime::open(dir, Form::Packed)?,
        Source::FlatInt8 => Runtime::of(&flat_model(dir)?, dir, Form::Dense, start)?,
    };
    let load = start.elapsed().as_secs_f64();
    runtime.write(prompt, 1)?;
    let first_token = start.elapsed().as_secs_f64();
    Ok(Start { load, first_token, peak_bytes: peak_memory_bytes() })
}

/// Measures starts from every source that a compressed checkpoint has; `again` is how this program measures one in a process
/// of its own, source and directory left out.
///
/// # Errors
/// Checkpoints that cannot be loaded.
pub fn bench_load(
    dir: &Path,
    repeats: usize,
    again: &dyn Fn(Source, &Path) -> Command,
    progress: &dyn Progress,
) -> Result<Vec<LoadRow>, BenchError> {
    let place = tempfile::tempdir().map_err(CheckpointError::io("temporary folder"))?;
    let (bf16, flat) = (place.path().join("bf16"), place.path().join("int8"));
    let checkpoint = Checkpoint::open(dir)?;
    waterfill_quantize::write_dense(&checkpoint, &bf16, Some(Dtype::Bf16), progress)?;
    write_flat(&checkpoint, &flat)?;
    let layered = checkpoint.quality_layers() > 1;
    let sources: Vec<Source> = Source::ALL
        .into_iter()
        .filter(|s| if layered { *s != Source::TunedPacked } else { *s != Source::Base })
        .collect();
    let dir_of = |source| match source {
        Source::Bf16 => &bf16,
        Source::FlatInt8 => &flat,
        _ => dir,
    };
    let mut found: BTreeMap<String, Measured> = BTreeMap::new();
    // Round by round, so that what changes on the machine meets all alike.
    for _ in 0..repeats {
        for &source in &sources {
            let files = files_of(source, dir_of(source))?;
            let measured = found.entry(source.name()).or_default();
            forget(&files)?;
            let start = Instant::now();
            for file in &files {
                std::fs::read(file).map_err(CheckpointError::io(file))?;
            }
            measured.reads.push(start.elapsed().as_secs_f64());
            forget(&files)?;
            measured.colds.push(run(again(source, dir_of(source)))?);
            measured.warms.push(run(again(source, dir_of(source)))?);
        }
    }
    let row = |source: &Source| {
        let Measured { reads, colds, warms } = &found[&source.name()];
        let of = |starts: &[Start], f: fn(&Start) -> f64| spread(starts.iter().map(f).collect());
        let bytes = match source {
            Source::Base => Checkpoint::open_prefix(dir, QualityPrefix::Layers(1))?.bytes(),
            _ => files_of(*source, dir_of(*source))?.iter().filter_map(|f| Some(f.metadata().ok()?.len())).sum(),
        };
        Ok(LoadRow {
            source: *source,
            bytes,
            read: spread(reads.clone()),
            cold: of(colds, |s| s.first_token),
            warm: of(warms, |s| s.first_token),
            load: of(warms, |s| s.load),
            peak_bytes: warms.iter().map(|s| s.peak_bytes).max().unwrap_or(0),
        })
    };
    sources.iter().map(row).collect()
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

fn run(mut command: Command) -> Result<Start, BenchError> {
    let failed = |reason: String| BenchError::Process { reason };
    let output = command.output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))
}

/// Shards that a source is loaded from.
fn files_of(source: Source, dir: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(CheckpointError::io(dir))? {
        let path = entry.map_err(CheckpointError::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_layer = name.starts_with("refinement-");
        if name.ends_with(".safetensors") && !(source == Source::Base && is_layer) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Asks the system to drop files from its page cache.
fn forget(files: &[PathBuf]) -> Result<(), BenchError> {
    for path in files {
        let file = File::open(path).map_err(CheckpointError::io(path))?;
        file.sync_all().map_err(CheckpointError::io(path))?;
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|e| CheckpointError::io(path)(e.into()))?;
    }
    Ok(())
}

/// Writes every matrix as codes of eight bits with a scale for each row, the rest as it is.
fn write_flat(checkpoint: &Checkpoint, to: &Path) -> Result<(), BenchError> {
    std::fs::create_dir(to).map_err(CheckpointError::io(to))?;
    write_companions(checkpoint.dir(), to, false)?;
    let (mut plain, mut codes) = (Vec::new(), Vec::new());
    let entry = |name: String, shape: Vec<usize>, element: Element, bytes: Vec<u8>| Entry {
        name,
        shape,
        plain: Some(element),
        bytes: bytes.len() as u64,
        data: Data::Made(Box::new(move || bytes.clone())),
    };
    for info in checkpoint.tensors() {
        let values = checkpoint.read_f32(&info.name, &info.shape)?;
        let &[_, cols] = info.shape.as_slice() else {
            let bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
            plain.push(entry(info.name.clone(), info.shape.clone(), Element::BF16, bytes));
            continue;
        };
        let (mut scales, mut bytes) = (Vec::new(), Vec::new());
        for row in values.chunks_exact(cols) {
            let scale = row.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs())) / 127.0;
            scales.extend(scale.to_le_bytes());
            bytes.extend(row.iter().map(|v| (v / scale).round() as i8 as u8));
        }
        codes.push(entry(format!("{}|scales", info.name), vec![info.shape[0]], Element::F32, scales));
        codes.push(entry(info.name.clone(), info.shape.clone(), Element::I8, bytes));
    }
    write_shards(to, &codes)?;
    std::fs::rename(to.join("model.safetensors"), to.join(CODES)).map_err(CheckpointError::io(to))?;
    Ok(write_shards(to, &plain)?)
}

/// A model whose matrices come from [`write_flat`]'s codes.
fn flat_model(dir: &Path) -> Result<Model, BenchError> {
    let mut model = Model::open(dir, &candle_core::Device::Cpu)?;
    let codes = SafetensorsFile::open(&dir.join(CODES))?;
    for name in codes.names().into_iter().filter(|n| !n.ends_with("|scales")) {
        let (shape, bytes) = codes.read(&name, Element::I8)?;
        let (_, scales) = codes.read_f32(&format!("{name}|scales"))?;
        let rows = bytes.chunks_exact(shape[1]).zip(scales);
        model.set_values(&name, rows.flat_map(|(row, s)| row.iter().map(move |&c| f32::from(c as i8) * s)).collect());
    }
    Ok(model)
}
