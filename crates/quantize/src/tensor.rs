//! One tensor of a compressed checkpoint: its base layer, and the check of what was written.

use std::path::PathBuf;

use waterfill_allocate::{Allocation, PlannedWeight, Sharing, read_plan};
use waterfill_checkpoint::packed::PackedTensor;
use waterfill_checkpoint::{Checkpoint, TensorInfo, Values};
use waterfill_codec::{CodecError, CodedTensor, Format, Loss, Rate, TILE, Trellis};
use waterfill_quadratic::{Curvature, QuadraticLoss};
use waterfill_sequential::Adaptation;

use crate::chain::{chain_of, decode_chain, read_blobs};
use crate::error::{EncodeError, Result};
use crate::ldlq::{LdlqOptions, encode_ldlq};
use crate::options::EncodeOptions;
use crate::rdo::encode_rdo;
use crate::rdo::usage::Usage;

/// A tensor's plan, and the values that it is coded towards.
pub(crate) struct Target {
    pub weight: PlannedWeight,
    pub weights: Vec<f32>,
}

impl Target {
    /// Reads plan and weights: the source's, or the adapted ones where tiles are not lossless.
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

/// Codes the base layer.
pub(crate) fn code(
    Target { weight, weights }: &Target,
    info: &TensorInfo,
    options: &EncodeOptions,
    last: bool,
) -> Result<Vec<u8>> {
    let search = || encode_rdo(weight, weights, &options.tools, options.allow_int8).map_err(failed(info));
    let Some(feedback) = &options.feedback else {
        return match weight.widths.is_empty() {
            true => search(),
            // Prediction and transforms may need wider planes than are planned.
            false => encode_ldlq(weight, weights, Curvature::default(), &options.rounded()).map_err(failed(info)),
        };
    };
    let curvature = feedback.curvature(&info.name)?;
    let settings = options.ldlq(feedback, last);
    let fed = encode_ldlq(weight, weights, curvature.get(), &settings).map_err(failed(info))?;
    // Rows that are looked up may be alike, which prediction knows to use and feedback does not; and where steps are fine,
    // planes may not hold what feedback adds to some of them.
    let looked_up = curvature.hessian.is_none() || !weight.loss_weights.lookup.is_empty();
    if !looked_up || weight.sharing != Sharing::Tile || !weight.widths.is_empty() {
        return Ok(fed);
    }
    let searched = search()?;
    let model = QuadraticLoss::new(&weight.loss_weights, TILE, curvature.get());
    let cost = |coded: &[u8]| -> Result<f64> {
        let (decoded, _) = CodedTensor::parse(coded).and_then(|c| c.decode()).map_err(failed(info))?;
        let dtype = weight.plan.dtype;
        let mut errors = Values { dtype, bytes: decoded, tiles: vec![] }.to_f32();
        errors.iter_mut().zip(weights).for_each(|(is, was)| *is -= was);
        let loss = model.of(errors);
        Ok(weight.lambda.cost(Loss(loss), Rate(coded.len() as f64 * 8.0)))
    };
    Ok(if cost(&searched)? < cost(&fed)? { searched } else { fed })
}

/// Errors that coding the tensor `name` of `source` as planned leaves, about: decoded less original weights, row-major. With
/// error feedback it is a draft, for which no tools are searched. Nothing is written.
///
/// # Errors
/// Tensors that cannot be read, plans that do not fit.
pub fn coding_errors(
    source: &Checkpoint,
    allocation: &Allocation,
    name: &str,
    options: &EncodeOptions,
) -> Result<Vec<f32>> {
    let info = source.tensor(name)?;
    let Target { weight, weights } = Target::read(source, allocation, info, None)?;
    let coded = match &options.feedback {
        Some(feedback) => {
            let settings = options.ldlq(feedback, true);
            // A draft has the levels of the smallest trellis, or the codes that it will have. Without any, small weights would be
            // rounded to zero more often, and errors that agree over rows and blocks lose more than their size says.
            let trellis = settings.trellis.and(Trellis::new(2));
            let settings = LdlqOptions { draft: true, trellis, ..settings };
            encode_ldlq(&weight, &weights, feedback.curvature(name)?.get(), &settings)
        }
        None if weight.widths.is_empty() => encode_rdo(&weight, &weights, &options.tools, options.allow_int8),
        None => encode_ldlq(&weight, &weights, Curvature::default(), &options.rounded()),
    };
    let decoded = coded.and_then(|coded| Ok(CodedTensor::parse(&coded)?.decode()?.0)).map_err(failed(info))?;
    let mut errors = Values { dtype: weight.plan.dtype, bytes: decoded, tiles: vec![] }.to_f32();
    errors.iter_mut().zip(&weights).for_each(|(is, was)| *is -= was);
    Ok(errors)
}

/// Figures of a coded tensor, measured by decoding it.
pub(crate) struct EncodedStats {
    pub usage: Usage,
    /// Loss after each layer, nats per token.
    pub losses: Vec<f64>,
    /// Bytes in a runtime's memory after each layer; several layers are held as elements.
    pub resident_bytes: Vec<u64>,
    /// Decoded values, if they were to be kept.
    pub decoded: Option<Vec<f32>>,
}

impl EncodedStats {
    /// Loss with all layers, nats per token.
    pub fn loss(&self) -> f64 {
        self.losses.last().copied().unwrap_or(0.0)
    }
}

/// Decodes a written tensor, which checks it; counts its tiles and measures its loss.
pub(crate) fn read_back(
    Target { weight, weights }: &Target,
    blobs: &[PathBuf],
    info: &TensorInfo,
    options: &EncodeOptions,
    keep: bool,
) -> Result<EncodedStats> {
    let curvature = options.feedback.as_ref().map(|f| f.curvature(&info.name)).transpose()?.unwrap_or_default();
    let model = QuadraticLoss::new(&weight.loss_weights, TILE, curvature.get());
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
    let elements = (dtype.bytes() * weights.len()) as u64;
    let packed = PackedTensor::of_coded(&chain[0]).map_err(failed(info))?;
    let mut resident_bytes = vec![elements; chain.len()];
    resident_bytes[0] = packed.map_or(elements, |packed| packed.resident_bytes() as u64);
    Ok(EncodedStats { usage, losses, resident_bytes, decoded })
}

pub(crate) fn failed(info: &TensorInfo) -> impl FnOnce(CodecError) -> EncodeError {
    let tensor = info.name.clone();
    move |source| EncodeError::Codec { tensor, source }
}
