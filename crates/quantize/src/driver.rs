//! Drives quantization: every tensor to a blob, then the blobs to shards.

use std::collections::BTreeMap;
use std::path::PathBuf;

use waterfill_allocate::Allocation;
use waterfill_checkpoint::writer::{Data, Entry, write_file};
use waterfill_checkpoint::{Checkpoint, CheckpointError, QualityPrefix, TensorInfo};
use waterfill_model::TensorRole;
use waterfill_model::roles::{coding_order, label_of};
use waterfill_sequential::Adaptation;
use waterfill_store::{Progress, Work, in_groups};

use crate::error::Result;
use crate::layers::{refine, write_in_layers};
use crate::options::EncodeOptions;
use crate::rdo::usage::Usage;
use crate::summary::{EncodeSummary, LayerSummary};
use crate::tensor::{EncodedStats, Target, code, read_back};

/// Bytes that coding a matrix holds at most: weights, samples, errors and decoded values, and with error
/// feedback the LDL factors of its Hessian and gradient covariance, in double precision while they are computed.
pub fn tensor_bytes(rows: u64, cols: u64, feedback: bool) -> u64 {
    // Rows beyond those of any layer are a vocabulary's, which has no gradient covariance.
    let outputs = if rows > 32_768 { 0 } else { rows * rows };
    16 * (rows * cols + if feedback { cols * cols + outputs } else { 0 })
}

/// Bytes that coding matrices of these rows and columns holds at most, within `memory` side by side.
pub fn encode_bytes(shapes: impl Iterator<Item = [usize; 2]>, feedback: bool, memory: u64) -> u64 {
    let bytes = shapes.map(|[rows, cols]| tensor_bytes(rows as u64, cols as u64, feedback));
    let (largest, all) = bytes.fold((0, 0), |(largest, all): (u64, u64), b| (largest.max(b), all + b));
    largest.max(memory.min(all))
}

/// Unit of a quality layer, 0 for the base, of the `n`-th tensor.
pub fn unit(n: usize, layer: usize) -> String {
    if layer == 0 { format!("tensor-{n}") } else { format!("tensor-{n}-{layer}") }
}

/// Writes the compressed checkpoint of `source` into `checkpoint/` of `work`.
///
/// The first of `allocations` plans the base, each of the others a refinement layer on top. Tensors without a plan are
/// copied as they are. With an `adaptation`, parts of blocks are coded one after the other, each from weights that have
/// made up for the errors of the parts before (sequential coding). A layer of a tensor is a unit of `work`, so that an
/// interrupted run goes on where it stopped. The result does not depend on the number of threads.
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
    let one = |i: usize, adaptation: Option<&Adaptation>| -> Result<(Vec<Entry>, Option<EncodedStats>)> {
        let info = tensors[i];
        let coded = names.contains(&info.name);
        let mut blobs: Vec<PathBuf> = Vec::new();
        for (layer, allocation) in allocations.iter().enumerate().take(if coded { usize::MAX } else { 1 }) {
            let unit = unit(i, layer);
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
            // What is coded was decoded above, and has its own digest.
            let data = match coded {
                true => Data::File(blob),
                false => Data::checked(blob, &source.read_raw(&info.name)?),
            };
            Ok(Entry { name: info.name.clone(), shape: info.shape.clone(), plain, data, bytes })
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
            let decoded = |(layers, found): &mut (Vec<Entry>, Option<EncodedStats>)| {
                Some((layers.first()?.name.clone(), found.as_mut()?.decoded.take()?))
            };
            let descended = adaptation.coded(entries.iter_mut().filter_map(decoded).collect())?;
            descents.extend(descended.map(|d| [d.from, d.to]));
        }
        made.extend(group.into_iter().zip(entries));
    }
    let entries: Vec<(Vec<Entry>, Option<EncodedStats>)> = made.into_values().collect();
    let (mut usage, mut loss): (BTreeMap<String, Usage>, f64) = Default::default();
    let plain = tensors.iter().filter(|info| !names.contains(&info.name)).map(|info| info.plain_resident_bytes()).sum();
    let mut layer_resident = vec![plain; allocations.len()];
    let mut losses = BTreeMap::new();
    let mut layer_losses = vec![BTreeMap::new(); allocations.len()];
    for (layers, found) in entries.iter().filter_map(|(e, found)| Some((e, found.as_ref()?))) {
        let name = &layers[0].name;
        usage.entry(label_of(name).to_string()).or_default().add(&found.usage);
        loss += found.loss();
        losses.insert(name.clone(), found.loss());
        for (all, &bytes) in layer_resident.iter_mut().zip(&found.resident_bytes) {
            *all += bytes;
        }
        for (all, &loss) in layer_losses.iter_mut().zip(&found.losses) {
            all.insert(name.clone(), loss);
        }
    }
    let count = write_in_layers(source, &out, entries)?;
    let written = Checkpoint::open(&out)?;
    let linear = |info: &&TensorInfo| TensorRole::parse(&info.name).is_some_and(TensorRole::is_of_linear_layer);
    let mut layers = Vec::new();
    for (n, losses) in layer_losses.into_iter().enumerate().filter(|_| count > 1) {
        let bytes = Checkpoint::open_prefix(&out, QualityPrefix::Layers(n + 1))?.bytes();
        layers.push(LayerSummary { bytes, resident_bytes: layer_resident[n], losses });
    }
    Ok(EncodeSummary {
        layers,
        bytes: written.bytes(),
        weights: written.weights(),
        linear_bytes: written.tensors().filter(linear).map(TensorInfo::stored_bytes).sum(),
        linear_weights: written.tensors().filter(linear).map(TensorInfo::weights).sum(),
        resident_bytes: layer_resident.last().copied().unwrap_or(plain),
        loss,
        losses,
        usage,
        descents,
    })
}
