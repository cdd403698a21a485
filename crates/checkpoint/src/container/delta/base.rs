//! The base of a delta.

use std::collections::BTreeMap;

use waterfill_codec::Dtype;

use crate::container::source::{Piece, Source};
use crate::error::Result;

/// The base's tensors by name.
pub(super) struct Base<'a> {
    /// Names of the safetensors files.
    names: &'a [String],
    sources: &'a [Source<'a>],
    tensors: BTreeMap<&'a str, Vec<(usize, &'a Piece)>>,
}

impl<'a> Base<'a> {
    /// The tensors of `sources`, which have `names`. In deltas of version 1 only the last file counts that has a tensor.
    pub fn new(names: &'a [String], sources: &'a [Source<'a>], version: u32) -> Self {
        let mut tensors: BTreeMap<&str, Vec<(usize, &Piece)>> = BTreeMap::new();
        for (n, piece) in sources.iter().enumerate().flat_map(|(n, s)| s.pieces.iter().map(move |p| (n, p))) {
            let all = tensors.entry(&piece.name).or_default();
            if version == 1 {
                all.clear();
            }
            all.push((n, piece));
        }
        Self { names, sources, tensors }
    }

    /// As seen from a file of the fine-tune.
    pub fn beside<'b>(&'b self, file: &'b str) -> Beside<'b> {
        Beside { base: self, file }
    }

    /// Name of a file.
    pub fn name(&self, source: usize) -> &'a str {
        &self.names[source]
    }
}

/// The base as seen from a file of the fine-tune.
pub(super) struct Beside<'a> {
    base: &'a Base<'a>,
    file: &'a str,
}

impl Beside<'_> {
    /// The tensor that a piece is compared with, and the number of its file: of the same name, type and size. Of several
    /// the one in the file of the same name, else in the same folder, else in the first file.
    pub fn find(&self, like: &Piece) -> Option<(usize, &Piece)> {
        let folder = |name: &str| name.rfind('/').map_or(0, |at| at + 1);
        let own = &self.file[..folder(self.file)];
        let alike = |p: &&(usize, &Piece)| p.1.bytes == like.bytes && dtype_of(p.1) == dtype_of(like);
        let distance = |p: &&(usize, &Piece)| {
            let name = self.base.name(p.0);
            (name != self.file, &name[..folder(name)] != own, p.0)
        };
        self.base.tensors.get(like.name.as_str())?.iter().filter(alike).min_by_key(distance).copied()
    }

    /// Bytes of the tensor that a piece is compared with.
    pub fn read(&self, like: &Piece) -> Result<Option<Vec<u8>>> {
        self.find(like).map(|(n, piece)| self.base.sources[n].read(piece)).transpose()
    }
}

/// Element type that a piece is coded as; none where it is no matrix of elements.
pub(super) fn dtype_of(piece: &Piece) -> Option<Dtype> {
    piece.elements.as_ref().map(|e| e.dtype)
}
