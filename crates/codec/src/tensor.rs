//! A whole coded tensor: from bytes to values, slice by slice.

use std::ops::Range;

use crate::TILE;
use crate::error::{CodecError, Result};
use crate::format::Format;
use crate::header::{Header, slice_check};
use crate::lanes::BAND;
use crate::plan::{Parameters, TensorPlan};
use crate::plane::{MAX_TILE, Planes, write_tile};
use crate::rans::Decoder;
use crate::sample::SampleDecoder;
use crate::side::{Books, code_side};
use crate::simd::{decode_bf16_block, decode_block, write_block};
use crate::slice::{Carried, MAX_BLOCK, SlicePlan, code_block};
use crate::tile::{Kind, TilePlan};
use crate::tools::Tools;
use crate::walk::decode_trellis_block;

/// Bytes before the streams of a slice: lengths of all but the last.
pub(crate) const SLICE_PREFIX: usize = 12;

/// A coded tensor whose header and side information have been read and checked.
pub struct CodedTensor<'a> {
    header: Header,
    /// Plan with the vectors filled in; tiles are known only once a slice is decoded.
    plan: TensorPlan,
    /// Of a uniform tensor, every tile.
    first: TilePlan,
    books: Books,
    /// Bytes of every slice.
    slices: Vec<&'a [u8]>,
    /// Whether all is known that slices are decoded by: a refinement needs the layer before.
    whole: bool,
}

/// Planes of a decoded slice, for runtimes that keep tiles packed.
pub struct DecodedSlice {
    /// Tiles of the slice in raster order.
    pub tiles: Vec<TilePlan>,
    /// Row-major integers of the planes; codes of floating-point tiles, patterns of lossless ones.
    pub plane: Vec<i32>,
}

impl<'a> CodedTensor<'a> {
    /// Reads header and side information.
    ///
    /// # Errors
    /// Anything wrong in them, see [`Header::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let header = Header::parse(bytes)?;
        let start = Header::bytes(header.slices.len());
        let (side, mut rest) = bytes[start..].split_at(header.side_bytes);
        let mut plan = TensorPlan {
            tile: header.tools.tile(),
            step_base: header.step_base,
            spread_base: header.spread_base,
            parameters: Parameters {
                refinement: header.tools.has(Tools::REFINEMENT).then(Box::default),
                ..Parameters::default()
            },
            tiles: Vec::new(),
            ..TensorPlan::uniform(header.dtype, 0, 0, TilePlan::default())
        };
        (plan.rows, plan.cols) = (header.rows, header.cols);
        let mut first = TilePlan::default();
        let mut decoder = Decoder::new(side);
        code_side(&mut decoder, &mut plan, header.tools, &mut first)?;
        if !decoder.finish() {
            return Err(CodecError::Entropy { part: "side information".into() });
        }
        let mut slices = Vec::with_capacity(header.slices.len());
        for &(length, _) in &header.slices {
            let (slice, after) = rest.split_at(length as usize);
            slices.push(slice);
            rest = after;
        }
        let (books, whole) = (Books::new(&plan), plan.parameters.refinement.is_none());
        if !whole && !plan.dtype.is_weight() {
            let expected = "0, 1 or 2 in a refinement";
            return Err(CodecError::Field { field: "dtype", found: plan.dtype as i64, expected });
        }
        Ok(Self { header, plan, first, books, slices, whole })
    }

    /// A refinement of the tensor `before`, which may itself be one that refines another.
    ///
    /// # Errors
    /// A tensor that is no refinement, or of another shape or type, and one before that is not whole.
    pub fn refining(mut self, before: &Self) -> Result<Self> {
        let of = |t: &Self| (t.header.dtype, t.header.rows, t.header.cols);
        let reason = match () {
            _ if self.whole => "it is none".to_string(),
            _ if !before.whole => "the layer before is a refinement without its own".into(),
            _ if of(&self) != of(before) => format!("it is for {:?}, the layer before is {:?}", of(&self), of(before)),
            _ => {
                self.plan.follow(&before.plan);
                self.whole = true;
                return Ok(self);
            }
        };
        Err(CodecError::Layer { reason })
    }

    /// A refinement of values that are not coded: the layer before has no scales.
    ///
    /// # Errors
    /// A tensor that is no refinement.
    pub fn refining_plain(mut self) -> Result<Self> {
        if self.whole {
            return Err(CodecError::Layer { reason: "it is none".into() });
        }
        self.plan.follow(&TensorPlan::uniform(self.plan.dtype, 0, 0, self.first));
        self.whole = true;
        Ok(self)
    }

    /// Whether values are added to those of the layer before.
    pub fn is_refinement(&self) -> bool {
        self.plan.parameters.refinement.is_some()
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The plan without tiles: scales and what tools share.
    pub fn plan(&self) -> &TensorPlan {
        &self.plan
    }

    /// Number of slices.
    pub fn slices(&self) -> usize {
        self.slices.len()
    }

    /// Rows that slice `n` holds.
    pub fn slice_rows(&self, n: usize) -> Range<usize> {
        let rows = self.header.slice_rows;
        n * rows..((n + 1) * rows).min(self.header.rows)
    }

    /// Bytes of `rows` decoded rows.
    pub fn bytes(&self, rows: usize) -> usize {
        rows * self.header.cols * self.header.dtype.bits() / 8
    }

    /// Decodes slice `n` alone into `out`, little-endian elements of its rows, where a refinement finds
    /// those of the layer before; returns its tiles in raster order.
    ///
    /// # Errors
    /// A damaged slice, scales out of range, a buffer of another size, a refinement of nothing.
    pub fn decode_slice(&self, n: usize, out: &mut [u8]) -> Result<Vec<TilePlan>> {
        check_length("output", out.len(), self.bytes(self.slice_rows(n).len()))?;
        self.walk_slice(n, &mut Output(out))
    }

    /// Decodes the planes of slice `n`, before scales apply.
    ///
    /// # Errors
    /// As [`CodedTensor::decode_slice`].
    pub fn decode_planes(&self, n: usize) -> Result<DecodedSlice> {
        let cols = self.header.cols;
        let mut plane = PackedPlane(vec![0; self.slice_rows(n).len() * cols]);
        let tiles = self.walk_slice(n, &mut plane)?;
        Ok(DecodedSlice { tiles, plane: plane.0 })
    }

    /// Decodes slice `n` and hands its tiles on; returns their plans.
    fn walk_slice(&self, n: usize, sink: &mut impl Sink) -> Result<Vec<TilePlan>> {
        if !self.whole {
            return Err(CodecError::Layer { reason: "the layer before is needed".into() });
        }
        let (bytes, (_, found)) = (self.slices[n], self.header.slices[n]);
        let computed = slice_check(bytes);
        if computed != found && !cfg!(fuzzing) {
            return Err(CodecError::Check { part: format!("slice {n}"), found, computed });
        }
        let [headers, escapes, bits, symbols] = split_streams(bytes).ok_or(CodecError::Truncated {
            what: "streams of a slice",
            needed: SLICE_PREFIX as u64,
            available: bytes.len() as u64,
        })?;
        let mut slice = SlicePlan::blank(&self.plan, self.header.tools, self.slice_rows(n), self.first);
        let mut headers = Decoder::new(headers);
        let mut in_planes = std::collections::HashMap::new();
        slice.code_headers(&mut headers, &mut |tile, levels| {
            if let Some(levels) = levels {
                in_planes.insert(tile, levels.map(|l| l as i16));
            }
            [0; 256]
        })?;
        if !self.header.dtype.is_weight()
            && let Some(tile) = slice.tiles.iter().find(|t| t.format != Format::Lossless)
        {
            let expected = "lossless tiles only in a tensor of this type";
            return Err(CodecError::Field { field: "tile format", found: tile.format as i64, expected });
        }
        let mut decoder = SampleDecoder::new(symbols, self.header.lanes, bits, escapes);
        self.decode_blocks(&slice, &mut decoder, &in_planes, sink)?;
        if !(headers.finish() && decoder.finish()) {
            return Err(CodecError::Entropy { part: format!("slice {n}") });
        }
        Ok(slice.tiles)
    }

    fn decode_blocks(
        &self,
        slice: &SlicePlan,
        decoder: &mut SampleDecoder,
        in_planes: &std::collections::HashMap<usize, [i16; 256]>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let side = self.plan.tile;
        let mut block = [0; MAX_BLOCK];
        let mut tile_samples = [0; MAX_TILE];
        let mut plane = [0; MAX_TILE];
        let mut carried = Carried::new(&self.plan);
        let mut planes = Planes::new(slice);
        for (rows, cols) in slice.blocks() {
            if cols.start == 0 {
                carried.forget_left();
            }
            let (height, width) = (rows.len(), cols.len());
            if planes.is_empty() && sink.bf16_block(decoder, slice, &self.books, rows.clone(), cols.clone()) {
                // Patterns count as zeros for the levels to their right.
                carried.forget_left();
                continue;
            }
            let block = &mut block[..height * width];
            let known = decode_trellis_block(decoder, slice, rows.clone(), cols.clone(), &mut carried.states, block)
                || decode_block(decoder, slice, &self.books, rows.clone(), cols.clone(), block);
            if !known {
                code_block(decoder, slice, &self.books, rows.clone(), cols.clone(), &mut carried, block)?;
            } else if planes.is_empty()
                && height == BAND
                && side == TILE
                && sink.block(slice, rows.clone(), cols.clone(), block)?
            {
                continue;
            }
            for top in rows.clone().step_by(side) {
                let n = (top - slice.rows.start) / side * self.plan.tiles_across() + cols.start / side;
                let tall = side.min(rows.end - top);
                let count = tall * width;
                match in_planes.get(&n) {
                    Some(levels) if slice.tiles[n].kind == Kind::BitPlanes => {
                        tile_samples.iter_mut().zip(levels).for_each(|(s, &l)| *s = l.into());
                    }
                    _ => {
                        for (j, column) in block.chunks_exact(height).enumerate() {
                            let part = &column[top - rows.start..][..tall];
                            part.iter().enumerate().for_each(|(i, &s)| tile_samples[i * width + j] = s);
                        }
                    }
                }
                if slice.tiles[n].format.level_range().is_some() {
                    planes.predict(slice, n, &mut plane[..count])?;
                    planes.reconstruct(slice, n, &mut plane[..count], &tile_samples[..count]);
                }
                sink.tile(slice, n, &mut plane[..count], &tile_samples[..count])?;
            }
        }
        Ok(())
    }

    /// A buffer for all decoded bytes. Small files may declare large tensors: compare the header with
    /// what is expected before asking for it where files are not trusted.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn buffer(&self) -> Result<Vec<u8>> {
        let length = self.bytes(self.header.rows);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| CodecError::Memory { bytes: length })?;
        bytes.resize(length, 0);
        Ok(bytes)
    }

    /// Decodes everything but a refinement: little-endian bytes of the tensor in its own dtype, digest
    /// verified, and its tiles.
    ///
    /// # Errors
    /// As [`CodedTensor::decode_slice`], or values that do not match the tensor digest.
    pub fn decode(&self) -> Result<(Vec<u8>, Vec<TilePlan>)> {
        if self.is_refinement() {
            return Err(CodecError::Layer { reason: "the layer before is needed".into() });
        }
        let mut bytes = self.buffer()?;
        let mut tiles = Vec::new();
        for n in 0..self.slices() {
            let rows = self.slice_rows(n);
            tiles.extend(self.decode_slice(n, &mut bytes[self.bytes(rows.start)..self.bytes(rows.end)])?);
        }
        self.check_digest(&bytes)?;
        Ok((bytes, tiles))
    }

    /// Refines all of the layer before, of which `bytes` are the values; their digest is verified.
    ///
    /// # Errors
    /// As [`CodedTensor::decode_slice`], or values that do not match the tensor digest: `bytes`, of which
    /// nothing is to be used then, may have been another layer's.
    pub fn refine(&self, bytes: &mut [u8]) -> Result<()> {
        check_length("output", bytes.len(), self.bytes(self.header.rows))?;
        for n in 0..self.slices() {
            let rows = self.slice_rows(n);
            self.decode_slice(n, &mut bytes[self.bytes(rows.start)..self.bytes(rows.end)])?;
        }
        self.check_digest(bytes)
    }

    /// Decodes everything as [`CodedTensor::decode`] does, but keeps a slice at a time only.
    ///
    /// # Errors
    /// As [`CodedTensor::decode`].
    pub fn verify(&self) -> Result<()> {
        let mut digest = self.digest();
        let mut bytes = Vec::new();
        for n in 0..self.slices() {
            bytes.resize(self.bytes(self.slice_rows(n).len()), 0);
            self.decode_slice(n, &mut bytes)?;
            digest.update(&bytes);
        }
        digest.check()
    }

    /// Compares decoded bytes with the tensor digest.
    ///
    /// # Errors
    /// When they differ.
    pub fn check_digest(&self, bytes: &[u8]) -> Result<()> {
        let mut digest = self.digest();
        digest.update(bytes);
        digest.check()
    }

    /// The tensor's digest of decoded bytes, to be given them in order.
    pub fn digest(&self) -> TensorDigest {
        TensorDigest { hasher: blake3::Hasher::new(), expected: self.header.digest }
    }
}

/// A digest of decoded bytes, and what the tensor says it is.
pub struct TensorDigest {
    hasher: blake3::Hasher,
    expected: [u8; 16],
}

impl TensorDigest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Compares.
    ///
    /// # Errors
    /// When they differ.
    pub fn check(self) -> Result<()> {
        if truncate(&self.hasher) == self.expected { Ok(()) } else { Err(CodecError::Digest) }
    }
}

/// Prediction, reconstruction and output of one tile.
pub(crate) fn finish_tile(
    slice: &SlicePlan,
    planes: &mut Planes,
    n: usize,
    plane: &mut [i32],
    samples: &[i32],
    out: &mut [u8],
) -> Result<()> {
    if slice.tiles[n].format.level_range().is_some() {
        planes.predict(slice, n, plane)?;
        planes.reconstruct(slice, n, plane, samples);
    }
    write_tile(slice, n, plane, samples, out)
}

pub(crate) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(CodecError::Shape { what, found, expected }) }
}

/// What is done with decoded tiles.
trait Sink {
    /// Takes a tile: its plane if it is an integer tile, else its samples, row-major.
    fn tile(&mut self, slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) -> Result<()>;

    /// Decodes a block of lossless bf16 tiles straight to where it is wanted; false, with nothing read,
    /// when it is another or wanted otherwise.
    fn bf16_block(
        &mut self,
        _: &mut SampleDecoder,
        _: &SlicePlan,
        _: &Books,
        _: Range<usize>,
        _: Range<usize>,
    ) -> bool {
        false
    }

    /// Takes a whole block of samples, column by column, of tiles that are not predicted; false when
    /// its tiles are wanted one by one.
    fn block(&mut self, _: &SlicePlan, _: Range<usize>, _: Range<usize>, _: &[i32]) -> Result<bool> {
        Ok(false)
    }
}

/// Little-endian elements of the slice's rows.
struct Output<'a>(&'a mut [u8]);

impl Sink for Output<'_> {
    fn tile(&mut self, slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) -> Result<()> {
        write_tile(slice, n, plane, samples, self.0)
    }

    fn bf16_block(
        &mut self,
        decoder: &mut SampleDecoder,
        slice: &SlicePlan,
        books: &Books,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> bool {
        decode_bf16_block(decoder, slice, books, rows, cols, self.0)
    }

    fn block(&mut self, slice: &SlicePlan, rows: Range<usize>, cols: Range<usize>, block: &[i32]) -> Result<bool> {
        if slice.plan.parameters.refinement.is_some() {
            return Ok(false);
        }
        write_block(slice, rows, cols, block, self.0)
    }
}

/// Row-major planes, codes and patterns.
struct PackedPlane(Vec<i32>);

impl Sink for PackedPlane {
    fn tile(&mut self, slice: &SlicePlan, n: usize, plane: &mut [i32], samples: &[i32]) -> Result<()> {
        let (rows, range) = slice.tile_range(n);
        let from = if slice.tiles[n].format.level_range().is_some() { &*plane } else { samples };
        for (row, line) in rows.zip(from.chunks_exact(range.len())) {
            self.0[(row - slice.rows.start) * slice.plan.cols + range.start..][..line.len()].copy_from_slice(line);
        }
        Ok(())
    }
}

fn split_streams(bytes: &[u8]) -> Option<[&[u8]; 4]> {
    let (prefix, mut rest) = bytes.split_at_checked(SLICE_PREFIX)?;
    let mut streams = [&[][..]; 4];
    for (stream, length) in streams.iter_mut().zip(prefix.chunks_exact(4)) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        (*stream, rest) = rest.split_at_checked(length)?;
    }
    streams[3] = rest;
    Some(streams)
}

pub(crate) fn truncate(digest: &blake3::Hasher) -> [u8; 16] {
    digest.finalize().as_bytes()[..16].try_into().expect("32 bytes")
}
