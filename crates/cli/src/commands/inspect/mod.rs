//! `waterfill inspect` and `waterfill verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

mod allocated;

use anyhow::{Context as _, Result, bail};
use waterfill_checkpoint::delta::{self, is_delta};
use waterfill_checkpoint::pack::{PackedRecord, is_packed, packed_records, verify_packed};
use waterfill_checkpoint::{Checkpoint, Storage, Values};
use waterfill_codec::{CodedTensor, Format};
use waterfill_model::roles::label_of;
use waterfill_quantize::rdo::Usage;
use waterfill_store::Artifact;

/// Neither of the two that are understood.
const UNKNOWN: &str =
    "neither an artifact (manifest.json) nor a checkpoint (config.json and safetensors) nor a packed file";

fn is_checkpoint(path: &Path) -> bool {
    path.join("model.safetensors").exists() || path.join("model.safetensors.index.json").exists()
}

/// Describes an artifact, a checkpoint or a packed file.
///
/// # Errors
/// Paths that are neither, and files that are damaged.
pub fn inspect(path: &Path) -> Result<String> {
    if is_packed(path) {
        return inspect_packed(path);
    }
    if path.join("manifest.json").exists() {
        return inspect_artifact(path);
    }
    if is_checkpoint(path) {
        return inspect_checkpoint(&Checkpoint::open(path)?);
    }
    bail!("{}: {UNKNOWN}", path.display())
}

/// Checks every digest of an artifact, a checkpoint, a packed file, a delta of `base`, or all artifacts of a store; returns
/// a list of the things checked.
///
/// # Errors
/// The first damage found; of a store, all that is damaged; a delta without its base.
pub fn verify(path: &Path, base: Option<&Path>) -> Result<String> {
    if is_delta(path) {
        let reason = || format!("{}: a delta; the files that it restores are checked with --base BASE", path.display());
        let base = base.with_context(reason)?;
        let restored = delta::verify(base, path, &|_| {})?;
        return Ok(format!("{}: {} restored bytes match their digests\n", path.display(), restored.fine_tune));
    }
    if is_packed(path) {
        let summary = verify_packed(path)?;
        return Ok(format!("{}: packed file of {} bytes matches its digests\n", path.display(), summary.original));
    }
    let artifacts = artifacts_below(path, 3);
    if !artifacts.is_empty() {
        return verify_store(path, &artifacts);
    }
    let mut text = String::new();
    let mut known = false;
    if path.join("manifest.json").exists() {
        let artifact = Artifact::open(path)?;
        artifact.verify()?;
        let files = artifact.manifest.files.len();
        writeln!(text, "{}: {files} files match their digests", path.display()).expect("a string");
        known = true;
    }
    for dir in [path.to_path_buf(), path.join("checkpoint")] {
        if is_checkpoint(&dir) {
            text += &(Checkpoint::open(&dir)?.verify()?.join("\n") + "\n");
            known = true;
        }
    }
    match known {
        true => Ok(text),
        false => bail!("{}: {UNKNOWN}", path.display()),
    }
}

/// Artifacts at most `depth` folders below `path`, itself not included.
fn artifacts_below(path: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let (dir, hidden) = (entry.path(), entry.file_name().to_string_lossy().starts_with('.'));
        if hidden || !dir.is_dir() {
            continue;
        }
        match dir.join("manifest.json").exists() {
            true => found.push(dir),
            false if depth > 1 => found.extend(artifacts_below(&dir, depth - 1)),
            false => {}
        }
    }
    found.sort();
    found
}

fn verify_store(path: &Path, artifacts: &[PathBuf]) -> Result<String> {
    let checked = |dir: &PathBuf| Artifact::open(dir).and_then(|a| a.verify()).err();
    let damaged: Vec<String> = artifacts.iter().filter_map(checked).map(|e| e.to_string()).collect();
    if damaged.is_empty() {
        return Ok(format!("{}: {} artifacts match their digests\n", path.display(), artifacts.len()));
    }
    let reason = format!("{} of {} artifacts are damaged: {}", damaged.len(), artifacts.len(), damaged.join("; "));
    bail!("{}: {reason}", path.display())
}

/// Sizes of a packed file's tensors by what coding found out about them.
fn inspect_packed(path: &Path) -> Result<String> {
    let records = packed_records(path)?;
    let files: BTreeSet<&str> = records.iter().map(|r| r.file.as_str()).collect();
    let mut kinds: BTreeMap<&str, Vec<&PackedRecord>> = BTreeMap::new();
    for record in &records {
        let found = record.found.as_deref().unwrap_or("no structure");
        let kind = if found.starts_with("equal to") { "equal to another tensor" } else { found };
        kinds.entry(kind).or_default().push(record);
    }
    let sum = |records: &[&PackedRecord], n: usize| records.iter().map(|r| r.bytes[n]).sum::<u64>();
    let all: Vec<&PackedRecord> = records.iter().collect();
    let (from, to) = (sum(&all, 0), sum(&all, 1));
    let mut text =
        format!("{}: packed, {} tensors of {} files, {from} bytes in {to}\n", path.display(), all.len(), files.len());
    for (kind, records) in &kinds {
        let (from, to) = (sum(records, 0), sum(records, 1));
        let example = records.first().map_or("", |r| r.tensor.as_str());
        writeln!(text, "{:>6} tensors {from:>13} bytes in {to:>13}  {kind}; {example}", records.len())
            .expect("a string");
    }
    Ok(text)
}

fn inspect_artifact(path: &Path) -> Result<String> {
    let artifact = Artifact::open(path)?;
    let (identity, timings) = (&artifact.manifest.identity, artifact.timings());
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("a string");
    line(format!("artifact of stage {}, version {}, key {}", identity.stage, identity.version, artifact.manifest.key));
    identity
        .inputs
        .iter()
        .for_each(|(name, digest)| line(format!("  input {name}: {}", &digest[..digest.len().min(16)])));
    if !identity.config.is_null() {
        line(format!("  configuration: {}", identity.config));
    }
    identity.seeds.iter().for_each(|(name, seed)| line(format!("  seed {name}: {seed}")));
    let memory = timings.peak_memory_bytes as f64 / 1e6;
    line(format!("  took {:.1} s; peak memory of its process until then {memory:.0} MB", timings.seconds));
    artifact.manifest.files.keys().for_each(|file| line(format!("  file {file}")));
    if let Ok(summary) = std::fs::read_to_string(artifact.path("summary.json")) {
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap_or_default();
        let fields = summary.as_object().into_iter().flatten().filter(|(_, v)| !v.is_array());
        fields.for_each(|(key, value)| line(format!("  {key}: {value}")));
    }
    if is_checkpoint(&artifact.path("checkpoint")) {
        let checkpoint = Checkpoint::open(artifact.path("checkpoint"))?;
        text += &inspect_checkpoint(&checkpoint)?;
        text += &allocated::beside(&artifact, &checkpoint)?.unwrap_or_default();
    }
    Ok(text)
}

/// Sums over the tensors of one role.
#[derive(Default)]
struct RoleSums {
    tensors: usize,
    weights: u64,
    bytes: u64,
    side_bytes: u64,
    formats: BTreeMap<&'static str, u64>,
    usage: Usage,
    /// Counts of decoded values by bit pattern.
    histogram: BTreeMap<u32, u64>,
}

fn inspect_checkpoint(checkpoint: &Checkpoint) -> Result<String> {
    let mut kinds: BTreeMap<String, RoleSums> = BTreeMap::new();
    for info in checkpoint.tensors() {
        let kind = kinds.entry(label_of(&info.name).to_string()).or_default();
        kind.tensors += 1;
        kind.weights += info.weights();
        kind.bytes += info.stored_bytes();
        if info.storage == Storage::Plain {
            *kind.formats.entry("plain").or_default() += info.weights();
            continue;
        }
        let raw = checkpoint.read_raw(&info.name)?;
        let failed = |source| waterfill_checkpoint::CheckpointError::Codec {
            path: checkpoint.dir().to_path_buf(),
            tensor: info.name.clone(),
            source: Box::new(source),
        };
        let coded = CodedTensor::parse(&raw).map_err(failed)?;
        let slices: u64 = coded.header().slices.iter().map(|s| u64::from(s.0)).sum();
        kind.side_bytes += info.bytes - slices;
        let (bytes, tiles) = coded.decode().map_err(failed)?;
        kind.usage.add(&Usage::of(&tiles, coded.plan()));
        let side = coded.plan().tile;
        let across = info.shape[1].div_ceil(side);
        for (n, tile) in tiles.iter().enumerate() {
            let (row, col) = (n / across * side, n % across * side);
            let inside = side.min(info.shape[0] - row) * side.min(info.shape[1] - col);
            *kind.formats.entry(Format::name(tile.format)).or_default() += inside as u64;
        }
        let values = Values { dtype: coded.header().dtype, bytes, tiles: Vec::new() };
        values.to_f32().iter().for_each(|v| *kind.histogram.entry(v.to_bits()).or_default() += 1);
    }
    let (bytes, weights) = (checkpoint.bytes(), checkpoint.weights());
    let mut text = format!(
        "checkpoint of {weights} weights in {bytes} bytes: {:.3} bits per weight, headers and plain tensors included\n",
        bytes as f64 * 8.0 / weights.max(1) as f64
    );
    if checkpoint.quality_layers() > 1 {
        let layers = checkpoint.quality_layers();
        writeln!(
            text,
            "{layers} quality layers; below are the sizes of all of them, and formats, tools and entropy of the base"
        )
        .expect("a string");
    }
    let head = ["role", "tensors", "weights", "bits/weight", "side bits", "entropy", "formats"];
    writeln!(
        text,
        "{:<26}{:>8}{:>12}{:>13}{:>11}{:>9}  {}",
        head[0], head[1], head[2], head[3], head[4], head[5], head[6]
    )
    .expect("a string");
    for (name, kind) in &kinds {
        let per_weight = |bytes: u64| bytes as f64 * 8.0 / kind.weights.max(1) as f64;
        let formats: Vec<String> = kind
            .formats
            .iter()
            .map(|(f, n)| format!("{f} {:.1} %", *n as f64 * 100.0 / kind.weights.max(1) as f64))
            .collect();
        let entropy = match kind.histogram.is_empty() {
            true => "-".to_string(),
            false => format!("{:.3}", entropy(&kind.histogram)),
        };
        writeln!(
            text,
            "{name:<26}{:>8}{:>12}{:>13.3}{:>11.3}{entropy:>9}  {}",
            kind.tensors,
            kind.weights,
            per_weight(kind.bytes),
            per_weight(kind.side_bytes),
            formats.join(", ")
        )
        .expect("a string");
    }
    for (name, kind) in &kinds {
        let tiles = kind.usage.0.get("tiles").copied().unwrap_or(0).max(1);
        let share = |(tool, n): (&String, &u64)| format!("{tool} {:.1} %", *n as f64 * 100.0 / tiles as f64);
        let tools =
            kind.usage.0.iter().filter(|(tool, _)| *tool != "tiles" && !kind.formats.contains_key(tool.as_str()));
        let tools: Vec<String> = tools.map(share).collect();
        if !tools.is_empty() {
            writeln!(text, "{name:<26}tiles with {}", tools.join(", ")).expect("a string");
        }
    }
    text += "entropy: of the decoded values of a role without any context, bits per weight\n";
    Ok(text)
}

fn entropy(histogram: &BTreeMap<u32, u64>) -> f64 {
    let total: u64 = histogram.values().sum();
    let share = |n: u64| n as f64 / total as f64;
    histogram.values().map(|&n| -share(n) * share(n).log2()).sum()
}
