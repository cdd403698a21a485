//! Encoding: every tensor to a blob, then the blobs to shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use waterfill_adapt::{Adaptation, coding_order};
use waterfill_allocate::{Allocation, PlannedWeight, read_plan};
use waterfill_artifacts::{Progress, Work, in_groups};
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_file};
use waterfill_checkpoint::{Checkpoint, CheckpointError, TensorInfo, Values};
use waterfill_codec::{CodecError, CodedTensor, Format, Loss, Rate, TILE, TensorPlan, TilePlan, Trellis};

use crate::feedback::{FeedbackOptions, QuadraticLoss, SecondMoments, encode_with_feedback};
use crate::search::{Tool, Usage, encode_searched};
use crate::{EncodeError, Result};

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
}

/// Writes the tuned checkpoint of `source` under `allocation` into `checkpoint/` of `work`, where a
/// tensor is a unit. Tensors without a plan are copied as they are. With an `adaptation`, parts of blocks are
/// coded one after the other, and what is coded are the weights that made up for those before. The
/// result does not depend on the number of threads.
///
/// # Errors
/// Tensors that cannot be read, plans that do not fit, files that cannot be written.
pub fn encode(
    source: &Checkpoint,
    allocation: &Allocation,
    options: &EncodeOptions,
    mut adaptation: Option<Adaptation>,
    work: &Work,
    progress: &dyn Progress,
) -> Result<EncodeSummary> {
    let names = allocation.names();
    if let Some(missing) = names.iter().find(|n| !source.contains(n)) {
        source.tensor(missing)?;
    }
    let out = work.path("checkpoint");
    std::fs::create_dir(&out).map_err(CheckpointError::io(&out))?;
    let tensors: Vec<&TensorInfo> = source.tensors().collect();
    progress.start("encode", tensors.len() as u64);
    let one = |i: usize, adaptation: Option<&Adaptation>| -> Result<(Entry, Option<Found>)> {
        let info = tensors[i];
        let coded = names.contains(&info.name);
        let target = || Target::read(source, allocation, info, adaptation);
        let blob = work.file(&format!("tensor-{i}"), |path| -> Result<()> {
            let bytes = if coded { code(&target()?, info, options)? } else { source.read_raw(&info.name)? };
            Ok(write_file(path, &bytes)?)
        })?;
        let bytes = blob.metadata().map_err(CheckpointError::io(&blob))?.len();
        let plain = (!coded).then_some(info.element);
        let found = if coded { Some(read_back(&target()?, &blob, info, options, adaptation.is_some())?) } else { None };
        progress.advance(1);
        let entry = Entry { name: info.name.clone(), shape: info.shape.clone(), plain, data: Data::File(blob), bytes };
        Ok((entry, found))
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
            let decoded = |(entry, found): &mut (Entry, Option<Found>)| {
                Some((entry.name.clone(), found.as_mut()?.decoded.take()?))
            };
            let descended = adaptation.coded(entries.iter_mut().filter_map(decoded).collect())?;
            descents.extend(descended.map(|d| [d.from, d.to]));
        }
        made.extend(group.into_iter().zip(entries));
    }
    let entries: Vec<(Entry, Option<Found>)> = made.into_values().collect();
    let (mut usage, mut loss, mut widened_bits): (BTreeMap<String, Usage>, f64, f64) = Default::default();
    let mut losses = BTreeMap::new();
    for (entry, found) in entries.iter().filter_map(|(e, found)| Some((e, found.as_ref()?))) {
        usage.entry(kind_of(&entry.name)).or_default().add(&found.usage);
        loss += found.loss;
        losses.insert(entry.name.clone(), found.loss);
        widened_bits += found.widened_bits;
    }
    let entries: Vec<Entry> = entries.into_iter().map(|(e, _)| e).collect();
    write_checkpoint(source.dir(), &out, &entries, true)?;
    let written = Checkpoint::open(&out)?;
    let linear = |info: &&TensorInfo| info.name.contains("_proj.");
    Ok(EncodeSummary {
        bytes: written.bytes(),
        weights: written.weights(),
        linear_bytes: written.tensors().filter(linear).map(|t| t.bytes).sum(),
        linear_weights: written.tensors().filter(linear).map(TensorInfo::weights).sum(),
        widened_bits,
        loss,
        losses,
        usage,
        descents,
    })
}

/// What a tensor is to become.
struct Target {
    weight: PlannedWeight,
    weights: Vec<f32>,
}

impl Target {
    /// The source's weights, or what adaptation made of them where tiles are not lossless.
    fn read(
        source: &Checkpoint,
        allocation: &Allocation,
        info: &TensorInfo,
        adaptation: Option<&Adaptation>,
    ) -> Result<Self> {
        let weight = read_plan(allocation, &info.name)?;
        let mut weights = source.read_f32(&info.name, &info.shape)?;
        let plan = &weight.plan;
        if let Some(adapted) = adaptation.and_then(|a| a.weights(&info.name)) {
            for (i, (weight, &adapted)) in weights.iter_mut().zip(adapted).enumerate() {
                let tile = plan.tile_index(i / plan.cols, i % plan.cols);
                if plan.tiles[tile].format != Format::Lossless {
                    *weight = plan.dtype.value_of(plan.dtype.pattern_of(adapted));
                }
            }
        }
        Ok(Self { weight, weights })
    }
}

fn code(Target { weight, weights }: &Target, info: &TensorInfo, options: &EncodeOptions) -> Result<Vec<u8>> {
    let search = || encode_searched(weight, weights, &options.tools, options.widen).map_err(failed(info));
    let Some(feedback) = &options.feedback else { return search() };
    let input = feedback.sensitivities.second_moment(&info.name)?;
    let output = feedback.sensitivities.output_moment(&info.name)?;
    let moments = SecondMoments { input: input.as_ref(), output: output.as_ref() };
    let settings = FeedbackOptions {
        trellis: feedback.trellis,
        rounding: feedback.rounding,
        widen: options.widen,
        escape: options.escape,
        damping: feedback.damping,
    };
    let fed = encode_with_feedback(weight, weights, moments, &settings).map_err(failed(info))?;
    // Rows that are looked up may be alike, which prediction knows to use and feedback does not.
    let looked_up = input.is_none() || !weight.importance.lookup.is_empty();
    if options.tools.is_empty() || !looked_up {
        return Ok(fed);
    }
    let searched = search()?;
    let model = QuadraticLoss::new(&weight.importance, TILE, moments);
    let cost = |coded: &[u8]| -> Result<f64> {
        let (decoded, _) = CodedTensor::parse(coded).and_then(|c| c.decode()).map_err(failed(info))?;
        let dtype = weight.plan.dtype;
        let mut errors = Values { dtype, bytes: decoded, tiles: vec![] }.to_f32();
        errors.iter_mut().zip(weights).for_each(|(is, was)| *is -= was);
        let loss = model.of(errors);
        Ok(weight.price.cost(Loss(loss), Rate(coded.len() as f64 * 8.0)))
    };
    Ok(if cost(&searched)? < cost(&fed)? { searched } else { fed })
}

/// What a coded tensor was found to be.
struct Found {
    usage: Usage,
    loss: f64,
    widened_bits: f64,
    /// Its values, where they are asked for.
    decoded: Option<Vec<f32>>,
}

/// Decodes what was written, which checks it; counts its tiles and measures its loss.
fn read_back(
    Target { weight, weights }: &Target,
    blob: &Path,
    info: &TensorInfo,
    options: &EncodeOptions,
    keep: bool,
) -> Result<Found> {
    let bytes = std::fs::read(blob).map_err(CheckpointError::io(blob))?;
    let coded = CodedTensor::parse(&bytes).map_err(failed(info))?;
    let (decoded, tiles) = coded.decode().map_err(failed(info))?;
    let dtype = coded.header().dtype;
    let mut errors = Values { dtype, bytes: decoded, tiles: vec![] }.to_f32();
    let decoded = keep.then(|| errors.clone());
    errors.iter_mut().zip(weights).for_each(|(is, was)| *is -= was);
    let (input, output) = match &options.feedback {
        Some(Feedback { sensitivities, held_out, .. }) => {
            let sensitivities = held_out.as_ref().unwrap_or(sensitivities);
            (sensitivities.second_moment(&info.name)?, sensitivities.output_moment(&info.name)?)
        }
        None => (None, None),
    };
    let moments = SecondMoments { input: input.as_ref(), output: output.as_ref() };
    let loss = QuadraticLoss::new(&weight.importance, TILE, moments).of(errors);
    let usage = Usage::of(&tiles, coded.plan());
    let widened_bits = plane_bits(&TensorPlan { tiles, ..coded.plan().clone() }) - plane_bits(&weight.plan);
    Ok(Found { usage, loss, widened_bits, decoded })
}

/// Bits of all planes, codes and patterns in a runtime's memory.
fn plane_bits(plan: &TensorPlan) -> f64 {
    let bits = |(n, tile): (usize, &TilePlan)| {
        let (rows, cols) = plan.tile_range(n);
        tile.format.resident_bits(plan.dtype) * (rows.len() * cols.len()) as f64
    };
    plan.tiles.iter().enumerate().map(bits).sum()
}

fn failed(info: &TensorInfo) -> impl FnOnce(CodecError) -> EncodeError {
    let tensor = info.name.clone();
    move |source| EncodeError::Codec { tensor, source }
}

/// Kind of a tensor: the last part of its name, such as `q_proj`.
pub fn kind_of(name: &str) -> String {
    let name = name.trim_end_matches(".weight");
    name.rsplit('.').next().unwrap_or(name).to_string()
}
