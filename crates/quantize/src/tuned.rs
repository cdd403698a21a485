//! Encoding: every tensor to a blob, then the blobs to shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use waterfill_allocate::Allocation;
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_file, write_layers};
use waterfill_checkpoint::{Checkpoint, CheckpointError, Prefix, TensorInfo};
use waterfill_codec::Trellis;
use waterfill_model::TensorRole;
use waterfill_model::roles::{coding_order, label_of};
use waterfill_sequential::Adaptation;
use waterfill_store::{Progress, Work, in_groups};

use crate::Result;
use crate::search::{Tool, Usage};
use crate::tensor::{Found, Target, code, read_back, refine};

/// Bytes that coding a matrix holds at most: weights, samples, errors and what was decoded, and with
/// feedback the factors of its second moments, in double precision while they are computed.
fn tensor_bytes(rows: u64, cols: u64, feedback: bool) -> u64 {
    // Rows beyond those of any layer are a vocabulary's, whose outputs have no second moment.
    let outputs = if rows > 32_768 { 0 } else { rows * rows };
    16 * (rows * cols + if feedback { cols * cols + outputs } else { 0 })
}

/// Bytes that coding matrices of these rows and columns holds at most, within `memory` side by side.
pub fn encode_bytes(shapes: impl Iterator<Item = [usize; 2]>, feedback: bool, memory: u64) -> u64 {
    let bytes = shapes.map(|[rows, cols]| tensor_bytes(rows as u64, cols as u64, feedback));
    let (largest, all) = bytes.fold((0, 0), |(largest, all): (u64, u64), b| (largest.max(b), all + b));
    largest.max(memory.min(all))
}

/// Sizes of a written checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EncodeSummary {
    /// Bytes of all `.safetensors` files, whole.
    pub bytes: u64,
    /// Weights of all tensors.
    pub weights: u64,
    /// Bytes of the coded linear layers alone, embedding and head not included.
    pub linear_bytes: u64,
    /// Weights of those.
    pub linear_weights: u64,
    /// Bits in a runtime's memory beyond what allocation chose: tools may widen planes.
    pub widened_bits: f64,
    /// Loss of the decoded weights by the allocation's quadratic model, nats per token.
    pub loss: f64,
    /// The same by tensor.
    pub losses: BTreeMap<String, f64>,
    /// Numbers of tiles by tool, by kind of tensor.
    pub usage: BTreeMap<String, Usage>,
    /// Where weights adapted to those coded before: divergence after each part was coded and after the
    /// weights left had made up for it, nats per token of calibration text.
    #[serde(default)]
    pub descents: Vec<[f64; 2]>,
    /// Where there are several, layers: each with those before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerSummary>,
}

/// A checkpoint up to one of its layers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// Bytes of the shards, whole.
    pub bytes: u64,
    /// Loss by tensor, as [`EncodeSummary::losses`].
    pub losses: BTreeMap<String, f64>,
}

/// How tiles are coded.
#[derive(Debug, Clone, Default)]
pub struct EncodeOptions {
    /// Tools that may be used.
    pub tools: BTreeSet<Tool>,
    /// Whether tiles may have wider planes than allocation chose: memory is free.
    pub widen: bool,
    /// Whether tiles may be lossless where allocation did not choose so.
    pub escape: bool,
    /// Error feedback, with the sensitivities that it needs.
    pub feedback: Option<Feedback>,
    /// Bytes that tensors hold which are coded side by side; a larger one is alone.
    pub memory: u64,
}

/// Error feedback of all tensors.
#[derive(Debug, Clone)]
pub struct Feedback {
    /// Where the second moments are.
    pub sensitivities: Sensitivities,
    /// Those of other tokens, by which losses are predicted: feedback fits its own.
    pub held_out: Option<Sensitivities>,
    /// Share of the mean of a second moment's diagonal that is added to it.
    pub damping: f64,
    /// States of the trellis; none rounds every level alone.
    pub trellis: Option<Trellis>,
    /// Share of the price of bits that levels are chosen by.
    pub rounding: f32,
    /// Of layers but the last, share of each row's and column's own second moment that is added to it.
    pub restraint: f64,
    /// Whether at most two of four levels of a refinement are not zero.
    pub sparse: bool,
}

/// Writes the tuned checkpoint of `source` into `checkpoint/` of `work`, where a tensor's layer is a unit: the base
/// under the first of `allocations`, and a refinement layer under each of the others.
/// Tensors without a plan are copied as they are. With an `adaptation`, parts of blocks are
/// coded one after the other, and what is coded are the weights that made up for those before. The
/// result does not depend on the number of threads.
///
/// # Errors
/// Tensors that cannot be read, plans that do not fit, files that cannot be written.
pub fn encode(
    source: &Checkpoint,
    allocations: &[Allocation],
    options: &EncodeOptions,
    mut adaptation: Option<Adaptation>,
    work: &Work,
    progress: &dyn Progress,
) -> Result<EncodeSummary> {
    let names = allocations.last().map(Allocation::names).unwrap_or_default();
    if let Some(missing) = names.iter().find(|n| !source.contains(n)) {
        source.tensor(missing)?;
    }
    let out = work.path("checkpoint");
    std::fs::create_dir(&out).map_err(CheckpointError::io(&out))?;
    let tensors: Vec<&TensorInfo> = source.tensors().collect();
    progress.start("encode", tensors.len() as u64);
    let one = |i: usize, adaptation: Option<&Adaptation>| -> Result<(Vec<Entry>, Option<Found>)> {
        let info = tensors[i];
        let coded = names.contains(&info.name);
        let mut blobs: Vec<PathBuf> = Vec::new();
        for (layer, allocation) in allocations.iter().enumerate().take(if coded { usize::MAX } else { 1 }) {
            let unit = if layer == 0 { format!("tensor-{i}") } else { format!("tensor-{i}-{layer}") };
            let last = layer + 1 == allocations.len();
            blobs.push(work.file(&unit, |path| -> Result<()> {
                let target = || Target::read(source, allocation, info, adaptation);
                let bytes = match (coded, layer) {
                    (false, _) => source.read_raw(&info.name)?,
                    (true, 0) => code(&target()?, info, options, last)?,
                    (true, _) => refine(&target()?, &blobs, info, options, last)?,
                };
                Ok(write_file(path, &bytes)?)
            })?);
        }
        let found = match (coded, allocations.last()) {
            (true, Some(allocation)) => {
                let target = Target::read(source, allocation, info, adaptation)?;
                Some(read_back(&target, &blobs, info, options, adaptation.is_some())?)
            }
            _ => None,
        };
        progress.advance(1);
        let entry = |blob: PathBuf| -> Result<Entry> {
            let bytes = blob.metadata().map_err(CheckpointError::io(&blob))?.len();
            let plain = (!coded).then_some(info.element);
            Ok(Entry { name: info.name.clone(), shape: info.shape.clone(), plain, data: Data::File(blob), bytes })
        };
        Ok((blobs.into_iter().map(entry).collect::<Result<_>>()?, found))
    };
    let shape = |info: &TensorInfo| match info.shape[..] {
        [rows, cols] => (rows as u64, cols as u64),
        _ => (1, info.weights()),
    };
    let held = |info: &&TensorInfo| match (names.contains(&info.name), shape(info)) {
        (true, (rows, cols)) => tensor_bytes(rows, cols, options.feedback.is_some()),
        (false, _) => info.bytes,
    };
    let sizes: Vec<u64> = tensors.iter().map(held).collect();
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, info) in tensors.iter().enumerate() {
        let group = if adaptation.is_some() { coding_order(&info.name) } else { 0 };
        groups.entry(group).or_default().push(i);
    }
    let (mut made, mut descents) = (BTreeMap::new(), Vec::new());
    for group in groups.into_values() {
        let sizes: Vec<u64> = group.iter().map(|&i| sizes[i]).collect();
        let mut entries = in_groups(&sizes, options.memory, |n| one(group[n], adaptation.as_ref()))?;
        if let Some(adaptation) = &mut adaptation {
            let decoded = |(layers, found): &mut (Vec<Entry>, Option<Found>)| {
                Some((layers.first()?.name.clone(), found.as_mut()?.decoded.take()?))
            };
            let descended = adaptation.coded(entries.iter_mut().filter_map(decoded).collect())?;
            descents.extend(descended.map(|d| [d.from, d.to]));
        }
        made.extend(group.into_iter().zip(entries));
    }
    let entries: Vec<(Vec<Entry>, Option<Found>)> = made.into_values().collect();
    let (mut usage, mut loss, mut widened_bits): (BTreeMap<String, Usage>, f64, f64) = Default::default();
    let mut losses = BTreeMap::new();
    let mut layer_losses = vec![BTreeMap::new(); allocations.len()];
    for (layers, found) in entries.iter().filter_map(|(e, found)| Some((e, found.as_ref()?))) {
        let name = &layers[0].name;
        usage.entry(label_of(name).to_string()).or_default().add(&found.usage);
        loss += found.loss();
        losses.insert(name.clone(), found.loss());
        widened_bits += found.widened_bits;
        for (all, &loss) in layer_losses.iter_mut().zip(&found.losses) {
            all.insert(name.clone(), loss);
        }
    }
    let count = write_in_layers(source, &out, entries)?;
    let written = Checkpoint::open(&out)?;
    let linear = |info: &&TensorInfo| TensorRole::parse(&info.name).is_some_and(TensorRole::is_of_linear_layer);
    let mut layers = Vec::new();
    for (n, losses) in layer_losses.into_iter().enumerate().filter(|_| count > 1) {
        let bytes = Checkpoint::open_prefix(&out, Prefix::Layers(n + 1))?.bytes();
        layers.push(LayerSummary { bytes, losses });
    }
    Ok(EncodeSummary {
        layers,
        bytes: written.bytes(),
        weights: written.weights(),
        linear_bytes: written.tensors().filter(linear).map(TensorInfo::stored_bytes).sum(),
        linear_weights: written.tensors().filter(linear).map(TensorInfo::weights).sum(),
        widened_bits,
        loss,
        losses,
        usage,
        descents,
    })
}

/// Writes base and refinement layers, in each of which tensors come first that lose less for every byte; returns the
/// number of layers.
fn write_in_layers(source: &Checkpoint, out: &Path, entries: Vec<(Vec<Entry>, Option<Found>)>) -> Result<usize> {
    let mut layers: Vec<Vec<(f64, Entry)>> = Vec::new();
    for (tensor, found) in entries {
        for (n, entry) in tensor.into_iter().enumerate() {
            if layers.len() == n {
                layers.push(Vec::new());
            }
            let losses = found.as_ref().map_or(&[][..], |f| &f.losses);
            let gain = if n == 0 { 0.0 } else { (losses[n - 1] - losses[n]) / entry.bytes as f64 };
            layers[n].push((gain, entry));
        }
    }
    for layer in layers.iter_mut().skip(1) {
        layer.sort_by(|a, b| b.0.total_cmp(&a.0));
    }
    let mut layers = layers.into_iter().map(|layer| layer.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>());
    write_checkpoint(source.dir(), out, &layers.next().unwrap_or_default(), true)?;
    let finer: Vec<Vec<Entry>> = layers.collect();
    write_layers(out, &finer)?;
    Ok(1 + finer.len())
}
