//! Probes: compressed tensors measured on held-out calibration text against their predicted loss.

use std::collections::BTreeSet;

use waterfill_config::{Probes, Sequential};
use waterfill_model::roles::{block_of, label_of};

use super::compress::encode_at;
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Result;
use crate::goal::Goal;
use crate::stage::ArtifactRef;
use crate::stages::corrections::{Groups, TOGETHER};
use crate::stages::{AloneCorrections, Calibration, EvaluateHeldOut, EvaluatePart, TogetherCorrections};

/// Predicted losses at which all tensors are compressed together, nats per token.
const PROBED_LOSSES: [f64; 4] = [0.0002, 0.002, 0.015, 0.06];
/// The one of them at which groups are compressed alone: the quadratic model still holds there, and parts of the loss
/// stand out of the noise.
const ALONE: usize = 1;

/// Corrections of predicted losses; `None` where the configuration does not ask for probes.
pub(crate) fn probe(engine: &Engine, calibration: &Calibration, measured: &ArtifactRef) -> Result<Option<ArtifactRef>> {
    let context = engine.context();
    let probes = context.config.allocate.probes;
    if probes == Probes::None {
        return Ok(None);
    }
    let original = engine.make(&EvaluateHeldOut)?;
    let lambdas = probed_lambdas(context);
    let encode = |corrections: Option<&ArtifactRef>, lambda: f64, sequential: Option<Sequential>| {
        encode_at(engine, calibration, (measured, corrections), Goal::Lambda(lambda), sequential)
    };
    // Adjusted weights compensate others and are worse without them.
    let encoded = encode(None, lambdas[ALONE], None)?;
    let groups = groups(context, probes);
    let parts = parts(engine, &groups, &original, &encoded)?;
    let lambda = lambdas[ALONE];
    let alone = engine.make(&AloneCorrections { lambda, groups: &groups, parts: &parts, encoded: &encoded })?;
    let names: BTreeSet<String> = groups.into_values().flatten().collect();
    let mut whole = Vec::new();
    for lambda in lambdas {
        let encoded = encode(Some(&alone), lambda, context.config.encode.sequential)?;
        let part = EvaluatePart { group: TOGETHER, names: &names, original: &original, encoded: &encoded };
        let part = engine.make(&part)?;
        whole.push((encoded, part));
    }
    Ok(Some(engine.make(&TogetherCorrections { alone: &alone, whole: &whole })?))
}

/// Lambdas of the probes: at the optimum of reverse water-filling each weight loses lambda / (2 ln 2) nats.
fn probed_lambdas(context: &Context) -> [f64; PROBED_LOSSES.len()] {
    let weights = context.matrix_weights() as f64;
    PROBED_LOSSES.map(|loss| loss * 2.0 * std::f64::consts::LN_2 / weights)
}

/// Every group with the names of its tensors.
pub(super) fn groups(context: &Context, probes: Probes) -> Groups {
    let mut groups = Groups::new();
    for (name, _) in context.model.weights() {
        groups.entry(group_of(&name, probes)).or_default().insert(name);
    }
    groups
}

/// Group of a tensor.
fn group_of(name: &str, probes: Probes) -> String {
    match (probes, block_of(name)) {
        (Probes::Tensors, Some(block)) => format!("{} of layer {block}", label_of(name)),
        _ => label_of(name).into(),
    }
}

/// Evaluations of the original with each group compressed alone.
pub(super) fn parts(
    engine: &Engine,
    groups: &Groups,
    original: &ArtifactRef,
    encoded: &ArtifactRef,
) -> Result<Vec<ArtifactRef>> {
    groups.iter().map(|(group, names)| engine.make(&EvaluatePart { group, names, original, encoded })).collect()
}
