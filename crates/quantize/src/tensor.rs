//! One tensor of a tuned checkpoint: its base and refinements, each decoded again once it is coded.

use std::path::PathBuf;

use waterfill_allocate::{Allocation, PlannedWeight, Sharing, read_plan};
use waterfill_calibrate::SecondMomentMatrix;
use waterfill_checkpoint::delta::Lossy;
use waterfill_checkpoint::{Checkpoint, CheckpointError, TensorInfo, Values};
use waterfill_codec::{CodecError, CodedTensor, Format, Loss, Rate, TILE, TensorPlan, TilePlan};
use waterfill_sequential::Adaptation;

use waterfill_model::roles::is_linear;

use crate::feedback::{FeedbackOptions, QuadraticLoss, SecondMoments, encode_with_feedback, refine_with_feedback};
use crate::low_rank::find_factors;
use crate::search::{Usage, encode_searched};
use crate::tuned::{EncodeOptions, Feedback};
use crate::{EncodeError, Result};

/// What a tensor is to become.
pub(crate) struct Target {
    weight: PlannedWeight,
    weights: Vec<f32>,
}

impl Target {
    /// The source's weights, or what adaptation made of them where tiles are not lossless.
    pub fn read(
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

impl Feedback {
    /// Second moments of a tensor's input and output gradient that errors are fed back by.
    fn moments(&self, name: &str) -> Result<Moments> {
        let input = self.sensitivities.second_moment(name)?;
        Ok(Moments { input, output: self.sensitivities.output_moment(name)? })
    }

    /// The same by which losses are predicted.
    fn predicting(&self, name: &str) -> Result<Moments> {
        let sensitivities = self.held_out.as_ref().unwrap_or(&self.sensitivities);
        Ok(Moments { input: sensitivities.second_moment(name)?, output: sensitivities.output_moment(name)? })
    }
}

impl EncodeOptions {
    /// How feedback quantises; `last` is the finest layer.
    fn of_feedback(&self, feedback: &Feedback, last: bool) -> FeedbackOptions {
        FeedbackOptions {
            trellis: feedback.trellis,
            rounding: feedback.rounding,
            widen: self.widen,
            escape: self.escape,
            damping: feedback.damping,
            restraint: if last { 0.0 } else { feedback.restraint },
            sparse: false,
        }
    }
}

/// A tensor's second moments.
#[derive(Default)]
struct Moments {
    input: Option<SecondMomentMatrix>,
    output: Option<SecondMomentMatrix>,
}

impl Moments {
    fn get(&self) -> SecondMoments<'_> {
        SecondMoments { input: self.input.as_ref(), output: self.output.as_ref() }
    }
}

/// A refinement of the layers in `blobs`.
pub(crate) fn refine(
    Target { weight, weights }: &Target,
    blobs: &[PathBuf],
    info: &TensorInfo,
    options: &EncodeOptions,
    last: bool,
) -> Result<Vec<u8>> {
    let Some(feedback) = &options.feedback else {
        return Err(EncodeError::Layers { tensor: info.name.clone() });
    };
    let moments = feedback.moments(&info.name)?;
    let raw = read_blobs(blobs)?;
    let chain = chain_of(&raw).map_err(failed(info))?;
    let (_, values) = decode_chain(&chain, |_| {}).map_err(failed(info))?;
    let before = chain.last().expect("a base").plan();
    let mut settings = options.of_feedback(feedback, last);
    if feedback.sparse && is_linear(&info.name) {
        settings = FeedbackOptions { sparse: true, trellis: None, ..settings };
    }
    refine_with_feedback(weight, weights, (before, values), moments.get(), &settings).map_err(failed(info))
}

/// A weight given what another checkpoint has in its place.
pub struct Given {
    /// How it is coded.
    pub coded: Lossy,
    /// Loss of the decoded weights, nats per token.
    pub loss: f64,
}

/// Codes a weight under an allocation, as a refinement of `base` (its bytes in another checkpoint), as a change of low rank
/// from it, or without it, whichever has the lowest J.
///
/// # Errors
/// Tensors that cannot be read, plans that do not fit, options without feedback.
pub fn code_given(
    source: &Checkpoint,
    allocation: &Allocation,
    info: &TensorInfo,
    base: Option<Vec<u8>>,
    options: &EncodeOptions,
) -> Result<Given> {
    let Some(feedback) = &options.feedback else {
        return Err(EncodeError::Layers { tensor: info.name.clone() });
    };
    let target = Target::read(source, allocation, info, None)?;
    let (weight, moments) = (&target.weight, feedback.predicting(&info.name)?);
    let model = QuadraticLoss::new(&weight.importance, TILE, moments.get());
    let dtype = weight.plan.dtype;
    let loss = |bytes: Vec<u8>| {
        let mut errors = Values { dtype, bytes, tiles: vec![] }.to_f32();
        errors.iter_mut().zip(&target.weights).for_each(|(is, was)| *is -= was);
        model.of(errors)
    };
    let alone = code(&target, info, options, true)?;
    let (decoded, _) = CodedTensor::parse(&alone).and_then(|c| c.decode()).map_err(failed(info))?;
    let alone = Given { loss: loss(decoded), coded: Lossy::Coded(alone) };
    let Some(base) = base else { return Ok(alone) };
    let before = TensorPlan::uniform(dtype, weight.plan.rows, weight.plan.cols, TilePlan::default());
    let (own, settings) = (feedback.moments(&info.name)?, options.of_feedback(feedback, true));
    let cost = |given: &Given| weight.price.cost(Loss(given.loss), Rate(given.coded.bytes() as f64 * 8.0));
    let mut best = alone;
    let shape = [weight.plan.rows, weight.plan.cols];
    let known = Values { dtype, bytes: base.clone(), tiles: vec![] }.to_f32();
    for factors in find_factors(shape, dtype, &known, &target.weights) {
        let low_rank = Given { loss: loss(factors.add_to(dtype, &base)), coded: Lossy::Factors(factors) };
        if cost(&low_rank) < cost(&best) {
            best = low_rank;
        }
    }
    // Half of a trellis' states have no zero, which changes below a bit are best coded by.
    for trellis in [settings.trellis, None].into_iter().take(1 + usize::from(settings.trellis.is_some())) {
        let settings = FeedbackOptions { trellis, ..settings };
        let mut values = base.clone();
        let bytes = refine_with_feedback(weight, &target.weights, (&before, base.clone()), own.get(), &settings)
            .map_err(failed(info))?;
        let refined = CodedTensor::parse(&bytes).and_then(CodedTensor::refining_plain);
        refined.and_then(|c| c.refine(&mut values)).map_err(failed(info))?;
        let inter = Given { loss: loss(values), coded: Lossy::Refined(bytes) };
        if cost(&inter) < cost(&best) {
            best = inter;
        }
    }
    Ok(best)
}

fn read_blobs(blobs: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let read = |blob: &PathBuf| Ok(std::fs::read(blob).map_err(CheckpointError::io(blob))?);
    blobs.iter().map(read).collect()
}

/// Layers, each with those before.
fn chain_of(raw: &[Vec<u8>]) -> waterfill_codec::Result<Vec<CodedTensor<'_>>> {
    let mut chain: Vec<CodedTensor> = Vec::new();
    for raw in raw {
        let coded = CodedTensor::parse(raw)?;
        chain.push(match chain.last() {
            Some(before) => coded.refining(before)?,
            None => coded,
        });
    }
    Ok(chain)
}

/// Tiles of the base and bytes of all layers; `each` is told the bytes after every layer.
fn decode_chain(
    chain: &[CodedTensor],
    mut each: impl FnMut(&[u8]),
) -> waterfill_codec::Result<(Vec<TilePlan>, Vec<u8>)> {
    let (mut bytes, tiles) = chain[0].decode()?;
    each(&bytes);
    for coded in &chain[1..] {
        coded.refine(&mut bytes)?;
        each(&bytes);
    }
    Ok((tiles, bytes))
}

/// The base layer.
pub(crate) fn code(
    Target { weight, weights }: &Target,
    info: &TensorInfo,
    options: &EncodeOptions,
    last: bool,
) -> Result<Vec<u8>> {
    let search = || encode_searched(weight, weights, &options.tools, options.widen).map_err(failed(info));
    let Some(feedback) = &options.feedback else { return search() };
    let moments = feedback.moments(&info.name)?;
    let settings = options.of_feedback(feedback, last);
    let fed = encode_with_feedback(weight, weights, moments.get(), &settings).map_err(failed(info))?;
    // Rows that are looked up may be alike, which prediction knows to use and feedback does not; and where steps are fine,
    // planes may not hold what feedback adds to some of them.
    let looked_up = moments.input.is_none() || !weight.importance.lookup.is_empty();
    if !looked_up || weight.sharing != Sharing::Tile {
        return Ok(fed);
    }
    let searched = search()?;
    let model = QuadraticLoss::new(&weight.importance, TILE, moments.get());
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
pub(crate) struct Found {
    pub usage: Usage,
    /// After each layer.
    pub losses: Vec<f64>,
    pub widened_bits: f64,
    /// Its values, where they are asked for.
    pub decoded: Option<Vec<f32>>,
}

impl Found {
    /// Of all layers.
    pub fn loss(&self) -> f64 {
        self.losses.last().copied().unwrap_or(0.0)
    }
}

/// Decodes what was written, which checks it; counts its tiles and measures its loss.
pub(crate) fn read_back(
    Target { weight, weights }: &Target,
    blobs: &[PathBuf],
    info: &TensorInfo,
    options: &EncodeOptions,
    keep: bool,
) -> Result<Found> {
    let moments = options.feedback.as_ref().map(|f| f.predicting(&info.name)).transpose()?.unwrap_or_default();
    let model = QuadraticLoss::new(&weight.importance, TILE, moments.get());
    let raw = read_blobs(blobs)?;
    let chain = chain_of(&raw).map_err(failed(info))?;
    let dtype = chain[0].header().dtype;
    let values = |bytes: &[u8]| Values { dtype, bytes: bytes.to_vec(), tiles: vec![] }.to_f32();
    let mut losses = Vec::new();
    let (tiles, decoded) = decode_chain(&chain, |bytes| {
        let mut errors = values(bytes);
        errors.iter_mut().zip(weights).for_each(|(is, was)| *is -= was);
        losses.push(model.of(errors));
    })
    .map_err(failed(info))?;
    let decoded = keep.then(|| values(&decoded));
    let usage = Usage::of(&tiles, chain[0].plan());
    let widened_bits = match chain.len() {
        1 => plane_bits(&TensorPlan { tiles, ..chain[0].plan().clone() }),
        // Layers are held as elements.
        _ => (dtype.bits() * weights.len()) as f64,
    } - plane_bits(&weight.plan);
    Ok(Found { usage, losses, widened_bits, decoded })
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
