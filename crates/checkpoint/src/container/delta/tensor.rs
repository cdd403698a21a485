//! One tensor of a delta: how it is coded and restored.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_codec::syntax::difference::{SLICE, decode_difference, encode_difference};
use waterfill_codec::syntax::header::check_of;
use waterfill_codec::{CodecError, CodedTensor, Dtype};

use crate::container::delta::base::{Beside, dtype_of};
use crate::container::delta::factors::{Factors, Shape};
use crate::container::source::{self, Piece, Source};
use crate::error::{CheckpointError, Result, TensorError};
use crate::parallel::decode_parallel;
use crate::read::Values;

/// Tensors by how they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Equal to the base's.
    pub same: usize,
    /// Coded as differences from the base's or refinements of it.
    pub given: usize,
    /// Coded as a low-rank change of the base's.
    pub low_rank: usize,
    /// Coded without the base.
    pub alone: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.same += other.same;
        self.given += other.given;
        self.low_rank += other.low_rank;
        self.alone += other.alone;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { same, given, low_rank, alone } = self;
        write!(f, "{same} tensors equal the base's, {given} are coded as differences from it, ")?;
        if *low_rank > 0 {
            write!(f, "{low_rank} as low-rank changes of it, ")?;
        }
        write!(f, "{alone} without it")
    }
}

/// Form and size of a stored tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Tensor {
    /// The base's.
    Same,
    /// Streams of differences from the base's.
    Difference(Vec<u64>),
    /// A coded tensor.
    Coded(u64),
    /// A refinement of the base's values.
    Refined(u64),
    /// A change of low rank in so many bytes, and streams of differences from the base with it; none where it is
    /// all there is.
    Factors(Shape, u64, Vec<u64>),
    /// Its bytes, and their check.
    Plain(u64, u64),
}

/// A coded tensor to be stored.
pub(super) struct Stored {
    pub tensor: Tensor,
    /// Its bytes, one part after the other.
    pub parts: Vec<Vec<u8>>,
    /// Check of what is to be restored; none where it is coded with loss.
    pub check: Option<u64>,
}

/// A tensor coded with loss.
pub enum Lossy {
    /// As a refinement of the base's values.
    Refined(Vec<u8>),
    /// As a change of low rank.
    Factors(Factors),
    /// Without the base.
    Coded(Vec<u8>),
}

impl Lossy {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Refined(coded) | Self::Coded(coded) => coded.len(),
            Self::Factors(factors) => factors.len(),
        }
    }
}

/// Codes a tensor with loss; `None` keeps it lossless. Arguments: its name, and the base's bytes of the same tensor.
type CodeLossy<'a> = &'a (dyn Fn(&str, Option<Vec<u8>>) -> Result<Option<Lossy>> + Sync);
/// Finds low-rank changes between the values of two matrices. Arguments: shape, type, values of the base, values of
/// the fine-tune.
type FindFactors<'a> = &'a (dyn Fn([usize; 2], Dtype, &[f32], &[f32]) -> Vec<Factors> + Sync);

/// Coders that are tried besides differences.
#[derive(Clone, Copy)]
pub struct Coders<'a> {
    /// With loss.
    pub lossy: CodeLossy<'a>,
    /// Changes of low rank, which differences then make exact.
    pub factors: Option<FindFactors<'a>>,
}

impl Default for Coders<'_> {
    fn default() -> Self {
        Self { lossy: &|_, _| Ok(None), factors: None }
    }
}

fn lengths(streams: &[Vec<u8>]) -> Vec<u64> {
    streams.iter().map(|s| s.len() as u64).collect()
}

impl Tensor {
    /// Its bytes in the delta.
    pub fn stored(&self) -> Option<u64> {
        let sum = |first: u64, streams: &[u64]| streams.iter().try_fold(first, |sum, n| sum.checked_add(*n));
        match self {
            Self::Same => Some(0),
            Self::Difference(streams) => sum(0, streams),
            Self::Factors(_, bytes, streams) => sum(*bytes, streams),
            Self::Coded(n) | Self::Refined(n) | Self::Plain(n, _) => Some(*n),
        }
    }

    /// True if the base's tensor is needed.
    pub fn needs_base(&self) -> bool {
        matches!(self, Self::Same | Self::Difference(_) | Self::Refined(_) | Self::Factors(..))
    }

    /// Adds it to a summary.
    pub fn count(&self, counts: &mut Counts) {
        *match self {
            Self::Same => &mut counts.same,
            Self::Difference(_) | Self::Refined(_) => &mut counts.given,
            Self::Factors(..) => &mut counts.low_rank,
            Self::Coded(_) | Self::Plain(..) => &mut counts.alone,
        } += 1;
    }

    /// Codes a tensor.
    pub fn code(base: &Beside, source: &Source, coders: &Coders, piece: &Piece) -> Result<Stored> {
        let before = base.read(piece)?;
        let bytes = source.read(piece)?;
        if before.as_ref() == Some(&bytes) {
            return Ok(Stored { tensor: Self::Same, parts: vec![], check: Some(check_of(&[&bytes])) });
        }
        if let Some(lossy) = (coders.lossy)(&piece.name, before.clone())? {
            let (tensor, stored) = match lossy {
                Lossy::Refined(coded) => (Self::Refined(coded.len() as u64), coded),
                Lossy::Coded(coded) => (Self::Coded(coded.len() as u64), coded),
                Lossy::Factors(factors) => {
                    let bytes = factors.bytes();
                    (Self::Factors(factors.shape().clone(), bytes.len() as u64, vec![]), bytes)
                }
            };
            return Ok(Stored { tensor, parts: vec![stored], check: None });
        }
        let (record, stored, _) = source.code(piece)?;
        let alone = match record.stored {
            source::Stored::Plain { check } => Self::Plain(stored.len() as u64, check),
            _ => Self::Coded(stored.len() as u64),
        };
        let mut best = (alone, vec![stored]);
        if let (Some(before), Some(dtype)) = (before, dtype_of(piece).filter(|d| d.is_weight())) {
            let failed = |error| CheckpointError::Codec {
                path: source.path.into(),
                tensor: piece.name.clone(),
                source: Box::new(error),
            };
            let length = |parts: &[Vec<u8>]| parts.iter().map(Vec::len).sum::<usize>();
            let streams = encode_difference(dtype, &before, &bytes).map_err(failed)?;
            if length(&streams) < length(&best.1) {
                best = (Self::Difference(lengths(&streams)), streams);
            }
            let values = |bytes: &[u8]| Values { dtype, bytes: bytes.to_vec(), tiles: vec![] }.to_f32();
            let found = match (coders.factors, piece.matrix()) {
                (Some(find), Some(shape)) => find(shape, dtype, &values(&before), &values(&bytes)),
                _ => vec![],
            };
            for factors in found {
                let near = factors.add_to(dtype, &before);
                let streams = encode_difference(dtype, &near, &bytes).map_err(failed)?;
                let own = factors.bytes();
                if own.len() + length(&streams) < length(&best.1) {
                    let tensor = Self::Factors(factors.shape().clone(), own.len() as u64, lengths(&streams));
                    best = (tensor, std::iter::once(own).chain(streams).collect());
                }
            }
        }
        Ok(Stored { tensor: best.0, parts: best.1, check: Some(check_of(&[&bytes])) })
    }

    /// The tensor from its `bytes` in the delta file `from`.
    pub fn restore(&self, base: &Beside, piece: &Piece, bytes: Vec<u8>, from: &Path) -> Result<Vec<u8>> {
        let failed =
            |source| CheckpointError::Codec { path: from.into(), tensor: piece.name.clone(), source: Box::new(source) };
        let damaged = |reason| CheckpointError::tensor(from, &piece.name, reason);
        let before = || base.read(piece)?.ok_or_else(|| damaged(TensorError::NoCounterpart));
        let weights = || dtype_of(piece).filter(|d| d.is_weight()).ok_or_else(|| damaged(TensorError::NotWeights));
        let restored = match self {
            Self::Same => before()?,
            Self::Difference(lengths) => {
                let streams = parts(lengths, &bytes);
                decode_streams(weights()?, &before()?, &streams).map_err(failed)?
            }
            Self::Factors(shape, own, lengths) => {
                let (own, rest) = bytes.split_at(*own as usize);
                let factors = piece.matrix().and_then(|sides| Factors::parse(shape, own, sides));
                let factors = factors.ok_or_else(|| damaged(TensorError::FactorsSize))?;
                let dtype = weights()?;
                let near = factors.add_to(dtype, &before()?);
                match lengths.is_empty() {
                    true => near,
                    false => decode_streams(dtype, &near, &parts(lengths, rest)).map_err(failed)?,
                }
            }
            Self::Coded(_) => {
                let coded = CodedTensor::parse(&bytes).map_err(failed)?;
                let found = coded.bytes(coded.header().rows) as u64;
                if found != piece.bytes {
                    return Err(damaged(TensorError::DecodedSize { found, expected: piece.bytes }));
                }
                decode_parallel(&coded).map_err(failed)?.0
            }
            Self::Refined(_) => {
                let coded = CodedTensor::parse(&bytes).and_then(CodedTensor::refining_plain).map_err(failed)?;
                let mut values = before()?;
                coded.refine(&mut values).map_err(failed)?;
                values
            }
            Self::Plain(_, found) => match check_of(&[&bytes]) {
                computed if computed == *found => bytes,
                computed => return Err(damaged(TensorError::StoredCheck { found: *found, computed })),
            },
        };
        if restored.len() as u64 != piece.bytes {
            let (found, expected) = (restored.len() as u64, piece.bytes);
            return Err(damaged(TensorError::RestoredSize { found, expected }));
        }
        Ok(restored)
    }
}

/// Bytes one part after the other.
fn parts<'a>(lengths: &[u64], mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let part = |&length: &u64| {
        let (part, rest) = bytes.split_at(length as usize);
        bytes = rest;
        part
    };
    lengths.iter().map(part).collect()
}

fn decode_streams(dtype: Dtype, base: &[u8], streams: &[&[u8]]) -> std::result::Result<Vec<u8>, CodecError> {
    let mut out = vec![0; base.len()];
    let part = SLICE * dtype.bytes();
    if base.len().div_ceil(part) != streams.len() {
        let (found, expected) = (streams.len(), base.len().div_ceil(part));
        return Err(CodecError::Shape { what: "streams", found, expected });
    }
    out.par_chunks_mut(part)
        .zip(base.par_chunks(part))
        .zip(streams)
        .try_for_each(|((out, base), stream)| decode_difference(dtype, base, stream, out))?;
    Ok(out)
}
