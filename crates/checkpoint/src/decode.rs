//! Whole tensors on all threads.

use rayon::prelude::*;
use waterfill_codec::{CodedTensor, Result, TilePlan};

/// Decodes a tensor, its slices side by side, and checks its digest; bytes and tiles.
pub(crate) fn decode_parallel(coded: &CodedTensor) -> Result<(Vec<u8>, Vec<TilePlan>)> {
    let mut bytes = coded.buffer()?;
    let part = coded.bytes(coded.header().slice_rows).max(1);
    let tiles = bytes.par_chunks_mut(part).enumerate().map(|(n, out)| coded.decode_slice(n, out));
    let tiles = tiles.collect::<Result<Vec<_>>>()?.concat();
    coded.check_digest(&bytes)?;
    Ok((bytes, tiles))
}
