//! The configuration's limits of an allocation, and the bits outside coded tensors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use waterfill_allocate as allocate;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::{Format, Rate};
use waterfill_config::PolicyName;
use waterfill_model::TensorRole;
use waterfill_model::roles::input_group;

use super::measure::formats;
use crate::context::Context;
use crate::error::Result;

/// Formats, floors and rate of the configuration.
pub(crate) fn policy(context: &Context) -> Result<allocate::Policy> {
    let a = &context.config.allocate;
    let mut floors: Vec<allocate::Floor> = Vec::new();
    if a.policy == PolicyName::Safe {
        let names = context.model.weights().into_iter().map(|(name, _)| name);
        for name in names.filter(|name| TensorRole::parse(name).is_some_and(TensorRole::is_floored_by_safe)) {
            floors.push(allocate::Floor::new(&name, Format::Fp8)?);
        }
    }
    for floor in &a.floors {
        floors.push(allocate::Floor::new(&floor.pattern, floor.at_least.0)?);
    }
    let (formats, corrections, structure) = (formats(context), BTreeMap::new(), structure(context));
    Ok(allocate::Policy { formats, floors, margin: a.margin, rate: a.rate(), corrections, structure })
}

/// Matrices that have one format each.
fn structure(context: &Context) -> Option<allocate::Structure> {
    let sharing = context.config.allocate.granularity.sharing();
    let sets = || context.model.weights().into_iter().filter_map(|(name, _)| input_group(&name).map(|set| (name, set)));
    (sharing != allocate::Sharing::Tile).then(|| allocate::Structure {
        sharing,
        sets: sets().collect(),
        formats: BTreeMap::new(),
    })
}

/// Bits outside coded tensors: plain tensors, and the shard's header with offsets of about the right number of digits.
pub(crate) fn overhead(checkpoint: &Checkpoint, coded: &[(String, PathBuf)]) -> allocate::Overhead {
    let (mut plain, mut held, mut header, mut offset) = (0, 0, 110, 0);
    for tensor in checkpoint.tensors() {
        let is_coded = coded.iter().any(|(name, _)| *name == tensor.name);
        let (dtype, bytes) = if is_coded { ("U8", tensor.weights() / 2) } else { ("BF16", tensor.bytes) };
        plain += if is_coded { 0 } else { bytes };
        held += if is_coded { 0 } else { tensor.plain_resident_bytes() };
        let entry = format!(
            "\"{}\":{{\"dtype\":\"{dtype}\",\"shape\":[{bytes}],\"data_offsets\":[{offset},{}]}},",
            tensor.name,
            offset + bytes
        );
        header += entry.len() as u64;
        offset += bytes;
    }
    allocate::Overhead { plain: Rate((plain + header) as f64 * 8.0), plain_resident: Rate(held as f64 * 8.0) }
}
