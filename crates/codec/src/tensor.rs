//! A whole coded tensor: from a plan and weights to bytes, and back slice by slice.

use crate::TILE;
use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::header::{Header, check_of, check_slice, slice_count};
use crate::plane::{quantize_slice, reconstruct_slice, slice_range};
use crate::rans::{Decoder, Encoder};
use crate::side::{Codebook, code_codebook, code_vector};
use crate::slice::code_slice;
use crate::symbol::{Coder, RateCounter, SymbolTable};
use crate::units::Rate;

/// What is decided for one 16x16 tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TilePlan {
    /// Number format of the samples.
    pub format: Format,
    /// Step index, quarter octaves over the tensor's step base.
    pub step: i16,
    /// Deviation of the tile's spread from the row and column model, quarter octaves.
    pub spread: i16,
}

impl Default for TilePlan {
    fn default() -> Self {
        Self { format: Format::Int8, step: 0, spread: 0 }
    }
}

/// Everything decided about a tensor but its samples.
///
/// The step of weight (i, j) in tile t is 2^((step_base + 2 (t.step + row_scale\[i\] +
/// col_scale\[j\]))/8). The entropy coder expects the weight's standard deviation to be the base
/// step times 2^((spread_base + t.spread + row_spread\[i\] + col_spread\[j\])/4). Empty vectors
/// count as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Element type of the original and of the decoded tensor.
    pub dtype: Dtype,
    /// Rows (output features).
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Eighths of an octave.
    pub step_base: i32,
    /// Quarter octaves over the base step.
    pub spread_base: i32,
    /// Step index of each row, or empty.
    pub row_scale: Vec<i8>,
    /// Step index of each column, or empty.
    pub col_scale: Vec<i8>,
    /// Spread index of each row, or empty.
    pub row_spread: Vec<i8>,
    /// Spread index of each column, or empty.
    pub col_spread: Vec<i8>,
    /// Tiles in raster order.
    pub tiles: Vec<TilePlan>,
}

impl TensorPlan {
    /// Tiles in a row of tiles.
    pub fn tiles_across(&self) -> usize {
        self.cols.div_ceil(TILE)
    }

    /// Tile that holds the weight (row, col).
    #[inline]
    pub fn tile_at(&self, row: usize, col: usize) -> &TilePlan {
        &self.tiles[row / TILE * self.cols.div_ceil(TILE) + col / TILE]
    }

    /// Rows of a slice: at least 64 Ki weights, 64 to 1024 rows.
    pub fn slice_rows(&self) -> usize {
        (65536usize.div_ceil(self.cols)).next_multiple_of(64).clamp(64, 1024).min(self.rows.next_multiple_of(TILE))
    }

    /// Slices of the tensor.
    pub fn slices(&self) -> usize {
        slice_count(self.rows, self.slice_rows())
    }

    /// Interleaved rANS states of its slices: eight pay their 32 bytes only on large slices.
    fn lanes(&self) -> usize {
        match self.slice_rows().min(self.rows) * self.cols {
            0..16384 => 1,
            16384..65536 => 4,
            _ => 8,
        }
    }

    fn check(&self, weights: usize) -> Result<()> {
        let shape = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(CodecError::Shape { what, found, expected }),
        };
        shape("weights", weights, self.rows * self.cols)?;
        check_slice(self.rows, self.cols, self.slice_rows())?;
        shape("tiles", self.tiles.len(), self.rows.div_ceil(TILE) * self.tiles_across())?;
        for (what, vector, length) in [
            ("row_scale", &self.row_scale, self.rows),
            ("col_scale", &self.col_scale, self.cols),
            ("row_spread", &self.row_spread, self.rows),
            ("col_spread", &self.col_spread, self.cols),
        ] {
            if !vector.is_empty() {
                shape(what, vector.len(), length)?;
            }
        }
        Ok(())
    }

    fn code_side<C: Coder>(&mut self, coder: &mut C, codebook: &mut Option<Codebook>) -> Result<()> {
        code_vector(coder, &mut self.row_scale, self.rows);
        code_vector(coder, &mut self.col_scale, self.cols);
        code_vector(coder, &mut self.row_spread, self.rows);
        code_vector(coder, &mut self.col_spread, self.cols);
        code_codebook(coder, codebook)
    }

    /// Codebook over the weights of the plan's lossless tiles.
    fn codebook(&self, weights: &[f32]) -> Option<Codebook> {
        let mut counts = [0; 256];
        for (row, line) in weights.chunks_exact(self.cols).enumerate() {
            for (first, run) in line.chunks(TILE).enumerate() {
                if self.tile_at(row, first * TILE).format == Format::Lossless {
                    for &w in run {
                        counts[usize::from(self.dtype.split(self.dtype.pattern_of(w)).0)] += 1;
                    }
                }
            }
        }
        Codebook::from_counts(&counts)
    }

    /// Bits of header, slice table and side information as [`encode_tensor`] writes them.
    ///
    /// # Errors
    /// None for a plan of consistent shape.
    pub fn side_rate(&self, weights: &[f32]) -> Result<Rate> {
        let mut counter = RateCounter::default();
        self.clone().code_side(&mut counter, &mut self.codebook(weights))?;
        Ok(counter.rate() + Rate(Header::bytes(self.slices()) as f64 * 8.0 + 24.0))
    }

    /// Bits of slice `n` as [`encode_tensor`] writes it, without writing it.
    ///
    /// # Errors
    /// As [`encode_tensor`].
    pub fn slice_rate(&self, n: usize, weights: &[f32]) -> Result<Rate> {
        let range = slice_range(self.rows, self.slice_rows(), n);
        let mut samples = quantize_slice(self, range.clone(), weights)?;
        let codebook = self.codebook(weights).map(|c| c.table());
        let mut counter = RateCounter::default();
        code_slice(&mut counter, &mut self.clone(), codebook.as_ref(), range, &mut samples)?;
        // A final state holds about 24 of its 32 bits as payload.
        Ok(counter.rate() + Rate(self.lanes() as f64 * 8.0))
    }
}

/// Codes `weights` (row-major, exact values of the plan's dtype) as the plan says.
///
/// # Errors
/// Plans of another shape than the weights, weights that are not finite, scales out of range.
pub fn encode_tensor(plan: &TensorPlan, weights: &[f32]) -> Result<Vec<u8>> {
    plan.check(weights.len())?;
    let mut plan = plan.clone();
    let mut codebook = plan.codebook(weights);
    let mut encoder = Encoder::default();
    plan.code_side(&mut encoder, &mut codebook)?;
    let side = encoder.finish(1);
    let table = codebook.map(|c| c.table());
    let (slice_rows, lanes) = (plan.slice_rows(), plan.lanes());
    let mut digest = blake3::Hasher::new();
    let mut slices = Vec::new();
    for n in 0..plan.slices() {
        let range = slice_range(plan.rows, slice_rows, n);
        let mut samples = quantize_slice(&plan, range.clone(), weights)?;
        let mut encoder = Encoder::default();
        code_slice(&mut encoder, &mut plan, table.as_ref(), range.clone(), &mut samples)?;
        slices.push(encoder.finish(lanes));
        hash_patterns(&mut digest, plan.dtype, &reconstruct_slice(&plan, range, &samples)?);
    }
    let header = Header {
        dtype: plan.dtype,
        lanes,
        slice_rows,
        rows: plan.rows,
        cols: plan.cols,
        step_base: plan.step_base,
        spread_base: plan.spread_base,
        side_bytes: side.len(),
        digest: truncate(&digest),
        slices: slices.iter().map(|s| (s.len() as u32, check_of(&[s]))).collect(),
    };
    let mut out = header.write(&side);
    out.extend_from_slice(&side);
    slices.iter().for_each(|s| out.extend_from_slice(s));
    Ok(out)
}

/// A coded tensor whose header and side information have been read and checked.
pub struct CodedTensor<'a> {
    header: Header,
    /// Plan with the vectors filled in; tiles are known only once a slice is decoded.
    plan: TensorPlan,
    codebook: Option<SymbolTable>,
    /// Bytes of every slice.
    slices: Vec<&'a [u8]>,
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
            dtype: header.dtype,
            rows: header.rows,
            cols: header.cols,
            step_base: header.step_base,
            spread_base: header.spread_base,
            row_scale: Vec::new(),
            col_scale: Vec::new(),
            row_spread: Vec::new(),
            col_spread: Vec::new(),
            tiles: Vec::new(),
        };
        let mut codebook = None;
        let mut decoder = Decoder::new(side, 1);
        plan.code_side(&mut decoder, &mut codebook)?;
        if !decoder.finish() {
            return Err(CodecError::Entropy { part: "side information".into() });
        }
        let mut slices = Vec::with_capacity(header.slices.len());
        for &(length, _) in &header.slices {
            let (slice, after) = rest.split_at(length as usize);
            slices.push(slice);
            rest = after;
        }
        Ok(Self { header, plan, codebook: codebook.map(|c| c.table()), slices })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Number of slices.
    pub fn slices(&self) -> usize {
        self.slices.len()
    }

    /// Rows that slice `n` holds.
    pub fn slice_rows(&self, n: usize) -> std::ops::Range<usize> {
        slice_range(self.header.rows, self.header.slice_rows, n)
    }

    /// Decodes slice `n` alone: bit patterns of its rows, row-major, and its tiles in raster order.
    ///
    /// # Errors
    /// A damaged slice, or levels and scales out of range.
    pub fn decode_slice(&self, n: usize) -> Result<(Vec<u32>, Vec<TilePlan>)> {
        let (bytes, (_, found)) = (self.slices[n], self.header.slices[n]);
        let computed = check_of(&[bytes]);
        if computed != found {
            return Err(CodecError::Check { part: format!("slice {n}"), found, computed });
        }
        let range = self.slice_rows(n);
        // A plan of this slice alone, with rows counted from its first.
        let part = |v: &Vec<i8>| v.get(range.clone()).unwrap_or_default().to_vec();
        let mut plan = TensorPlan {
            rows: range.len(),
            row_scale: part(&self.plan.row_scale),
            row_spread: part(&self.plan.row_spread),
            tiles: vec![TilePlan::default(); range.len().div_ceil(TILE) * self.plan.tiles_across()],
            ..self.plan.clone()
        };
        let mut samples = vec![0; range.len() * plan.cols];
        let mut decoder = Decoder::new(bytes, self.header.lanes);
        code_slice(&mut decoder, &mut plan, self.codebook.as_ref(), 0..range.len(), &mut samples)?;
        if !decoder.finish() {
            return Err(CodecError::Entropy { part: format!("slice {n}") });
        }
        let patterns = reconstruct_slice(&plan, 0..range.len(), &samples)?;
        Ok((patterns, plan.tiles))
    }

    /// Decodes everything: little-endian bytes of the tensor in its own dtype, digest verified,
    /// and its tiles.
    ///
    /// # Errors
    /// As [`CodedTensor::decode_slice`], or values that do not match the tensor digest.
    pub fn decode(&self) -> Result<(Vec<u8>, Vec<TilePlan>)> {
        let mut bytes = Vec::new();
        let mut tiles = Vec::new();
        for n in 0..self.slices() {
            let (patterns, slice_tiles) = self.decode_slice(n)?;
            append_patterns(&mut bytes, self.header.dtype, &patterns);
            tiles.extend(slice_tiles);
        }
        let mut digest = blake3::Hasher::new();
        digest.update(&bytes);
        if truncate(&digest) != self.header.digest {
            return Err(CodecError::Digest);
        }
        Ok((bytes, tiles))
    }
}

fn append_patterns(bytes: &mut Vec<u8>, dtype: Dtype, patterns: &[u32]) {
    match dtype.bytes() {
        2 => bytes.extend(patterns.iter().flat_map(|&p| (p as u16).to_le_bytes())),
        _ => bytes.extend(patterns.iter().flat_map(|&p| p.to_le_bytes())),
    }
}

fn hash_patterns(digest: &mut blake3::Hasher, dtype: Dtype, patterns: &[u32]) {
    let mut bytes = Vec::with_capacity(patterns.len() * dtype.bytes());
    append_patterns(&mut bytes, dtype, patterns);
    digest.update(&bytes);
}

fn truncate(digest: &blake3::Hasher) -> [u8; 16] {
    digest.finalize().as_bytes()[..16].try_into().expect("32 bytes")
}
