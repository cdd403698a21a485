//! Decoding the slices of a coded tensor side by side.

use rayon::prelude::*;
use waterfill_codec::{CodecError, CodedTensor, TilePlan};

use crate::control::Parts;
use crate::error::{CheckpointError, Result};

/// Decodes a tensor, its slices side by side, and checks its digest; bytes and tiles.
pub(crate) fn decode_parallel(coded: &CodedTensor) -> std::result::Result<(Vec<u8>, Vec<TilePlan>), CodecError> {
    let mut bytes = coded.buffer()?;
    let part = coded.bytes(coded.header().slice_rows).max(1);
    let tiles = bytes.par_chunks_mut(part).enumerate().map(|(n, out)| coded.decode_slice(n, out));
    let tiles = tiles.collect::<std::result::Result<Vec<_>, _>>()?.concat();
    coded.check_digest(&bytes)?;
    Ok((bytes, tiles))
}

/// Adds a refinement to values, slices side by side.
pub(crate) fn refine_parallel(
    coded: &CodedTensor,
    values: &mut [u8],
    parts: &Parts,
    failed: impl Fn(CodecError) -> CheckpointError + Sync,
) -> Result<()> {
    let wide = coded.bytes(coded.header().slice_rows).max(1);
    values.par_chunks_mut(wide).enumerate().try_for_each(|(n, out)| {
        parts.go_on()?;
        coded.decode_slice(n, out).map_err(&failed)?;
        parts.done();
        Ok(())
    })
}
