//! Lossy deltas: a tensor of a fine-tune, given the same tensor of its base.

use waterfill_allocate::Allocation;
use waterfill_checkpoint::delta::Lossy;
use waterfill_checkpoint::{Checkpoint, TensorInfo, Values};
use waterfill_codec::{CodedTensor, Loss, Rate, TILE, TensorPlan, TilePlan};
use waterfill_quadratic::QuadraticLoss;

use crate::error::{EncodeError, Result};
use crate::ldlq::{LayerBefore, LdlqOptions, refine_ldlq};
use crate::low_rank::find_factors;
use crate::options::EncodeOptions;
use crate::tensor::{Target, code, failed};

/// One way to code a tensor of a fine-tune, given its base.
pub struct DeltaCandidate {
    /// The coded tensor.
    pub coded: Lossy,
    /// Loss of the decoded weights, nats per token.
    pub loss: f64,
}

/// Codes the tensor `info` of `source` under an allocation in the way of lowest `J = loss + lambda * rate`: as a refinement
/// of `base` (bytes of the same tensor in the base checkpoint), as a change of low rank from it, or on its own.
///
/// # Errors
/// Tensors that cannot be read, plans that do not fit, options without feedback.
pub fn code_delta(
    source: &Checkpoint,
    allocation: &Allocation,
    info: &TensorInfo,
    base: Option<Vec<u8>>,
    options: &EncodeOptions,
) -> Result<DeltaCandidate> {
    let Some(feedback) = &options.feedback else {
        return Err(EncodeError::Layers { tensor: info.name.clone() });
    };
    let target = Target::read(source, allocation, info, None)?;
    let (weight, curvature) = (&target.weight, feedback.curvature(&info.name)?);
    let model = QuadraticLoss::new(&weight.loss_weights, TILE, curvature.get());
    let dtype = weight.plan.dtype;
    let loss = |bytes: Vec<u8>| {
        let mut errors = Values { dtype, bytes, tiles: vec![] }.to_f32();
        errors.iter_mut().zip(&target.weights).for_each(|(is, was)| *is -= was);
        model.of(errors)
    };
    let alone = code(&target, info, options, true)?;
    let (decoded, _) = CodedTensor::parse(&alone).and_then(|c| c.decode()).map_err(failed(info))?;
    let alone = DeltaCandidate { loss: loss(decoded), coded: Lossy::Coded(alone) };
    let Some(base) = base else { return Ok(alone) };
    let before = TensorPlan::uniform(dtype, weight.plan.rows, weight.plan.cols, TilePlan::default());
    let settings = options.ldlq(feedback, true);
    let cost = |given: &DeltaCandidate| weight.lambda.cost(Loss(given.loss), Rate(given.coded.bytes() as f64 * 8.0));
    let mut best = alone;
    let shape = [weight.plan.rows, weight.plan.cols];
    let known = Values { dtype, bytes: base.clone(), tiles: vec![] }.to_f32();
    for factors in find_factors(shape, dtype, &known, &target.weights) {
        let low_rank = DeltaCandidate { loss: loss(factors.add_to(dtype, &base)), coded: Lossy::Factors(factors) };
        if cost(&low_rank) < cost(&best) {
            best = low_rank;
        }
    }
    // Half of a trellis' states have no zero, which changes below a bit are best coded by.
    for trellis in [settings.trellis, None].into_iter().take(1 + usize::from(settings.trellis.is_some())) {
        let settings = LdlqOptions { trellis, ..settings };
        let mut values = base.clone();
        let before = LayerBefore { plan: &before, bytes: base.clone() };
        let bytes = refine_ldlq(weight, &target.weights, before, curvature.get(), &settings).map_err(failed(info))?;
        let refined = CodedTensor::parse(&bytes).and_then(CodedTensor::refining_plain);
        refined.and_then(|c| c.refine(&mut values)).map_err(failed(info))?;
        let inter = DeltaCandidate { loss: loss(values), coded: Lossy::Refined(bytes) };
        if cost(&inter) < cost(&best) {
            best = inter;
        }
    }
    Ok(best)
}
