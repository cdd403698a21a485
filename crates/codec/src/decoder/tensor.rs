//! Decoding a coded tensor slice by slice.

use std::ops::Range;

use crate::decoder::digest::TensorDigest;
use crate::decoder::slice::{CodedSlice, Output, PlaneBuffer, Sink, SymbolBuffer};
use crate::entropy::adaptive_rans::Decoder;
use crate::error::{CodecError, Part, Result, TensorType, check_length};
use crate::format::Format;
use crate::recon::reconstruct::pattern_at;
use crate::syntax::float_prefix::EntropyTables;
use crate::syntax::header::Header;
use crate::syntax::lattice::Groups;
use crate::syntax::side_info::code_side;
use crate::syntax::tensor_plan::{Parameters, TensorPlan};
use crate::syntax::tile_plan::TilePlan;
use crate::syntax::tools::Tools;

/// Planes of a decoded slice, for runtimes that keep tiles packed.
pub struct DecodedSlice {
    /// Tiles of the slice in raster order.
    pub tiles: Vec<TilePlan>,
    /// Integers of planes `[rows, cols]`; codes in floating-point tiles, bit patterns in lossless ones, and in those of a
    /// bit-shift trellis its states.
    pub plane: Vec<i32>,
}

/// A coded tensor with header and side information read and checked.
pub struct CodedTensor<'a> {
    header: Header,
    /// Plan with vectors and parameters; tiles are known only once a slice is decoded.
    plan: TensorPlan,
    /// Every tile, in a uniform tensor.
    first: TilePlan,
    entropy_tables: EntropyTables,
    /// Bytes of every slice.
    slices: Vec<&'a [u8]>,
    /// False for a refinement until the layer that it refines is known.
    whole: bool,
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
            sigma_base: header.sigma_base,
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
            return Err(CodecError::Entropy { part: Part::SideInfo });
        }
        let mut slices = Vec::with_capacity(header.slices.len());
        for &(length, _) in &header.slices {
            let (slice, after) = rest.split_at(length as usize);
            slices.push(slice);
            rest = after;
        }
        let floats = plan.parameters.lattice.is_none() && plan.parameters.rests.is_none();
        if !(floats || plan.dtype.is_weight()) {
            let expected = "0, 1 or 2 in a tensor with a lattice or rests";
            return Err(CodecError::Field { field: "dtype", found: plan.dtype as i64, expected });
        }
        if plan.parameters.lattice.is_some() && first.format != Format::Lossless {
            let expected = "lossless tiles only in a tensor with a lattice";
            return Err(CodecError::Field { field: "tile format", found: first.format as i64, expected });
        }
        let (entropy_tables, whole) = (EntropyTables::new(&plan), plan.parameters.refinement.is_none());
        if !whole && !plan.dtype.is_weight() {
            let expected = "0, 1 or 2 in a refinement";
            return Err(CodecError::Field { field: "dtype", found: plan.dtype as i64, expected });
        }
        Ok(Self { header, plan, first, entropy_tables, slices, whole })
    }

    /// Completes a refinement with the tensor `before` that it refines, which may itself be a completed refinement.
    ///
    /// # Errors
    /// [`CodecError::NotARefinement`], [`CodecError::MissingBase`] where `before` is a refinement that was not completed,
    /// [`CodecError::OtherBase`] where it has another type or shape.
    pub fn refining(mut self, before: &Self) -> Result<Self> {
        if self.whole {
            return Err(CodecError::NotARefinement);
        }
        if !before.whole {
            return Err(CodecError::MissingBase);
        }
        let (found, expected) = (self.tensor_type(), before.tensor_type());
        if found != expected {
            return Err(CodecError::OtherBase { found, expected });
        }
        self.plan.follow(&before.plan);
        self.whole = true;
        Ok(self)
    }

    /// Completes a refinement of values that are not coded, so that there are no scales to follow.
    ///
    /// # Errors
    /// [`CodecError::NotARefinement`].
    pub fn refining_plain(mut self) -> Result<Self> {
        if self.whole {
            return Err(CodecError::NotARefinement);
        }
        self.plan.follow(&TensorPlan::uniform(self.plan.dtype, 0, 0, self.first));
        self.whole = true;
        Ok(self)
    }

    fn tensor_type(&self) -> TensorType {
        TensorType { dtype: self.header.dtype, rows: self.header.rows, cols: self.header.cols }
    }

    /// True if decoded values are added to those of the layer before.
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

    /// Decodes slice `n` alone into `out`, little-endian elements of its rows. For a refinement, `out` holds the
    /// values of the layer before. Returns the tiles in raster order.
    ///
    /// # Errors
    /// A damaged slice, scales out of range, a buffer of another size, a refinement without its base.
    pub fn decode_slice(&self, n: usize, out: &mut [u8]) -> Result<Vec<TilePlan>> {
        check_length("output", out.len(), self.bytes(self.slice_rows(n).len()))?;
        if let Some(lattice) = &self.plan.parameters.lattice {
            let rows = self.slice_rows(n);
            let mut symbols = SymbolBuffer(vec![0; rows.len() * self.header.cols]);
            let (tiles, groups) = self.decode_to(n, &mut symbols)?;
            lattice.write(&symbols.0, &groups, (self.header.dtype, rows, self.header.cols), out);
            return Ok(tiles);
        }
        Ok(self.decode_to(n, &mut Output(out))?.0)
    }

    /// Decodes the planes of slice `n`, before scales apply.
    ///
    /// # Errors
    /// As [`CodedTensor::decode_slice`].
    pub fn decode_planes(&self, n: usize) -> Result<DecodedSlice> {
        let weights = self.slice_rows(n).len() * self.header.cols;
        if self.plan.parameters.lattice.is_some() {
            let mut bytes = vec![0; weights * self.header.dtype.bytes()];
            let tiles = self.decode_slice(n, &mut bytes)?;
            return Ok(DecodedSlice {
                tiles,
                plane: bytes
                    .chunks_exact(self.header.dtype.bytes())
                    .map(|element| pattern_at(element) as i32)
                    .collect(),
            });
        }
        let mut plane = PlaneBuffer(vec![0; weights]);
        let (tiles, _) = self.decode_to(n, &mut plane)?;
        Ok(DecodedSlice { tiles, plane: plane.0 })
    }

    /// Decodes slice `n` into a sink; returns its tiles, and what a lattice has besides its symbols.
    fn decode_to(&self, n: usize, sink: &mut impl Sink) -> Result<(Vec<TilePlan>, Groups)> {
        if !self.whole {
            return Err(CodecError::MissingBase);
        }
        let slice = CodedSlice {
            number: n,
            bytes: self.slices[n],
            rows: self.slice_rows(n),
            header: &self.header,
            plan: &self.plan,
            first: self.first,
            entropy_tables: &self.entropy_tables,
        };
        slice.decode(sink)
    }

    /// A buffer for all decoded bytes. A small file may declare a large tensor: compare the header with the expected
    /// shape first where files are not trusted.
    ///
    /// # Errors
    /// [`CodecError::Memory`].
    pub fn buffer(&self) -> Result<Vec<u8>> {
        let length = self.bytes(self.header.rows);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| CodecError::Memory { bytes: length })?;
        bytes.resize(length, 0);
        Ok(bytes)
    }

    /// Decodes the whole tensor: little-endian elements of its own type, verified against its digest, and its tiles.
    ///
    /// # Errors
    /// As [`CodedTensor::decode_slice`], values that do not match the digest, and a refinement, see
    /// [`CodedTensor::refine`].
    pub fn decode(&self) -> Result<(Vec<u8>, Vec<TilePlan>)> {
        if self.is_refinement() {
            return Err(CodecError::MissingBase);
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

    /// Refines `bytes`, the decoded values of the layer before, and verifies the result against the digest.
    ///
    /// # Errors
    /// As [`CodedTensor::decode_slice`], and values that do not match the digest: `bytes` may have been those of
    /// another layer, and must not be used.
    pub fn refine(&self, bytes: &mut [u8]) -> Result<()> {
        check_length("output", bytes.len(), self.bytes(self.header.rows))?;
        for n in 0..self.slices() {
            let rows = self.slice_rows(n);
            self.decode_slice(n, &mut bytes[self.bytes(rows.start)..self.bytes(rows.end)])?;
        }
        self.check_digest(bytes)
    }

    /// Checks the tensor as [`CodedTensor::decode`] does, but holds one slice at a time.
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

    /// Digest of the decoded bytes, which are to be added in order.
    pub fn digest(&self) -> TensorDigest {
        TensorDigest::new(self.header.digest)
    }
}
