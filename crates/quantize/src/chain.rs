//! The quality layers of one coded tensor, decoded one on the other.

use std::path::PathBuf;

use waterfill_checkpoint::CheckpointError;
use waterfill_codec::{CodedTensor, TilePlan};

use crate::error::Result;

pub(crate) fn read_blobs(blobs: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let read = |blob: &PathBuf| Ok(std::fs::read(blob).map_err(CheckpointError::io(blob))?);
    blobs.iter().map(read).collect()
}

/// Layers from the base on, each a refinement of the one before.
pub(crate) fn chain_of(raw: &[Vec<u8>]) -> waterfill_codec::Result<Vec<CodedTensor<'_>>> {
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

/// Decodes all layers: tiles of the base, and bytes of the last; calls `each` with the bytes after every layer.
pub(crate) fn decode_chain(
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
