//! The four streams of a slice, one after the other: tile headers, escapes, raw bits, symbols (section 5 of
//! `docs/BITSTREAM.md`).

use crate::syntax::sample::SampleEncoder;

/// Bytes before the streams of a slice: lengths of all but the last.
pub(crate) const SLICE_PREFIX: usize = 12;

/// Streams of a slice: headers, escapes, raw bits, symbols; `None` where their lengths exceed its bytes.
pub(crate) fn split_streams(bytes: &[u8]) -> Option<[&[u8]; 4]> {
    let (prefix, mut rest) = bytes.split_at_checked(SLICE_PREFIX)?;
    let mut streams = [&[][..]; 4];
    for (stream, length) in streams.iter_mut().zip(prefix.chunks_exact(4)) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        (*stream, rest) = rest.split_at_checked(length)?;
    }
    streams[3] = rest;
    Some(streams)
}

/// Bytes of a slice from its coded tile headers and samples.
pub(crate) fn join_streams(headers: &[u8], encoder: SampleEncoder, lanes: usize) -> Vec<u8> {
    let (escapes, bits, symbols) = (encoder.escapes.finish(), encoder.bits.finish(), encoder.lanes.finish(lanes));
    let parts = [headers, &escapes, &bits, &symbols];
    let mut out = Vec::with_capacity(SLICE_PREFIX + parts.iter().map(|p| p.len()).sum::<usize>());
    parts[..3].iter().for_each(|part| out.extend_from_slice(&(part.len() as u32).to_le_bytes()));
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}
