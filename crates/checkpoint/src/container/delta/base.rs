//! The base of a delta.

use std::collections::BTreeMap;

use waterfill_codec::Dtype;

use crate::container::source::{Piece, Source};
use crate::error::Result;

/// The base's tensors by name.
pub(super) struct Base<'a> {
    sources: &'a [Source<'a>],
    tensors: BTreeMap<&'a str, (usize, &'a Piece)>,
}

impl<'a> Base<'a> {
    pub fn new(sources: &'a [Source<'a>]) -> Self {
        let pieces = sources.iter().enumerate().flat_map(|(n, s)| s.pieces.iter().map(move |p| (n, p)));
        Self { sources, tensors: pieces.map(|(n, p)| (p.name.as_str(), (n, p))).collect() }
    }

    /// Bytes of the tensor that a piece is compared with: of the same name, type and size.
    pub fn read(&self, like: &Piece) -> Result<Option<Vec<u8>>> {
        match self.tensors.get(like.name.as_str()) {
            Some((n, piece)) if piece.bytes == like.bytes && dtype_of(piece) == dtype_of(like) => {
                self.sources[*n].read(piece).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Element type that a piece is coded as; none where it is no matrix of elements.
pub(super) fn dtype_of(piece: &Piece) -> Option<Dtype> {
    piece.elements.as_ref().map(|e| e.dtype)
}
