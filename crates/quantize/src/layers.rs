//! Quality layers: a base, and refinements in shards of their own.

use std::path::{Path, PathBuf};

use waterfill_checkpoint::writer::{Entry, write_checkpoint, write_quality_layers};
use waterfill_checkpoint::{Checkpoint, TensorInfo};
use waterfill_model::roles::is_linear;

use crate::chain::{chain_of, decode_chain, read_blobs};
use crate::error::{EncodeError, Result};
use crate::ldlq::{LayerBefore, LdlqOptions, refine_ldlq};
use crate::options::EncodeOptions;
use crate::tensor::{EncodedStats, Target, failed};

/// Codes a refinement of a tensor whose layers before are in `blobs`.
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
    let curvature = feedback.curvature(&info.name)?;
    let raw = read_blobs(blobs)?;
    let chain = chain_of(&raw).map_err(failed(info))?;
    let (_, values) = decode_chain(&chain, |_| {}).map_err(failed(info))?;
    let before = chain.last().expect("a base").plan();
    let mut settings = options.ldlq(feedback, last);
    if feedback.sparse && is_linear(&info.name) {
        settings = LdlqOptions { sparse: true, trellis: None, ..settings };
    }
    let before = LayerBefore { plan: before, bytes: values };
    refine_ldlq(weight, weights, before, curvature.get(), &settings).map_err(failed(info))
}

/// Writes base and refinement layers, and returns their number. In each refinement, tensors that lower the loss most per
/// byte come first, so that a file cut anywhere has spent its bytes well.
pub(crate) fn write_in_layers(
    source: &Checkpoint,
    out: &Path,
    entries: Vec<(Vec<Entry>, Option<EncodedStats>)>,
) -> Result<usize> {
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
    write_quality_layers(out, &finer)?;
    Ok(1 + finer.len())
}
