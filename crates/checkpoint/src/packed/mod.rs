//! Matrices in the form that runtimes multiply with: tiles of one format together, scales separate.

use std::ops::Deref;

use rayon::prelude::*;
use waterfill_codec::{CodecError, CodedTensor, Dtype, Format, Minifloat, TILE, TilePlan};

use crate::control::{Control, Parts};
use crate::error::{CheckpointError, Result, TensorError};
use crate::open::Checkpoint;
use crate::types::Storage;

/// Weights of a tile.
const WEIGHTS: usize = TILE * TILE;
/// Alignment of a bucket's data, bytes: a tile of four-bit levels.
pub const ALIGNMENT: usize = 128;

/// Number format of the tiles of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// Levels -8 to 7 in two's complement, the first of two in the lower half of a byte: 128 bytes a tile.
    Int4,
    /// Levels -127 to 127: 256 bytes.
    Int8,
    /// FP8 E4M3: 256 bytes.
    E4m3,
    /// FP8 E5M2: 256 bytes.
    E5m2,
    /// Elements of the tensor's own type, without scales: 512 or 1024 bytes.
    Plain(Dtype),
}

impl PackedFormat {
    /// Bytes of a tile.
    pub const fn tile_bytes(self) -> usize {
        match self {
            Self::Int4 => WEIGHTS / 2,
            Self::Int8 | Self::E4m3 | Self::E5m2 => WEIGHTS,
            Self::Plain(dtype) => WEIGHTS * dtype.bits() / 8,
        }
    }

    /// Name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::E4m3 => "fp8-e4m3",
            Self::E5m2 => "fp8-e5m2",
            Self::Plain(_) => "plain",
        }
    }

    /// Packed form of a coded format; `None` for formats that are decoded to elements.
    fn of(format: Format, dtype: Dtype) -> Option<Self> {
        match format {
            Format::Int4 | Format::Int2 | Format::Int3 => Some(Self::Int4),
            Format::Int8 => Some(Self::Int8),
            Format::Fp8 => Some(Self::E4m3),
            Format::Fp8E5M2 => Some(Self::E5m2),
            Format::Lossless => Some(Self::Plain(dtype)),
            Format::Fp4 => None,
        }
    }
}

/// Bytes aligned to [`ALIGNMENT`].
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn zeros(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT - 1];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT - 1);
        Self { bytes, start }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        let end = self.bytes.len() + 1 - ALIGNMENT + self.start;
        &mut self.bytes[self.start..end]
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.bytes.len() + 1 - ALIGNMENT + self.start]
    }
}

/// Tiles of one format.
pub struct Bucket {
    /// Their format.
    pub format: PackedFormat,
    /// Index of each tile: row of tiles times tiles across, plus column of tiles; ascending.
    pub tiles: Vec<u32>,
    /// Scale of each tile; empty for plain tiles.
    pub scales: Vec<f32>,
    /// Tiles one after the other, each `[16, 16]`; zeros beyond the matrix.
    pub data: Aligned,
}

/// A matrix `[rows, cols]` in tiles of 16x16. The weight in row r and column c of a tile of codes is code * scale of
/// the tile * `row_scales[r]` * `col_scales[c]`; the decoded tensor has it rounded to its own type.
pub struct PackedTensor {
    /// Rows (output features).
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Type of the decoded tensor.
    pub dtype: Dtype,
    /// Scale of each row, or empty for ones.
    pub row_scales: Vec<f32>,
    /// Scale of each column, or empty for ones.
    pub col_scales: Vec<f32>,
    /// Tiles by format, one bucket for each format that occurs.
    pub buckets: Vec<Bucket>,
}

/// A tile to be put into a bucket: format, index, scale, range of its bytes.
type Piece = (PackedFormat, u32, f32, std::ops::Range<usize>);

/// Tiles of a part of the matrix.
#[derive(Default)]
struct Pieces {
    pieces: Vec<Piece>,
    bytes: Vec<u8>,
}

impl Pieces {
    /// Appends a tile of 256 values, row-major.
    fn add(&mut self, format: PackedFormat, place: u32, scale: f32, values: &[i32; WEIGHTS]) {
        let start = self.bytes.len();
        match format {
            PackedFormat::Int4 => {
                self.bytes.extend(values.chunks_exact(2).map(|v| (v[0] & 15 | (v[1] & 15) << 4) as u8))
            }
            PackedFormat::Plain(dtype) => {
                let bytes = dtype.bytes();
                values.iter().for_each(|v| self.bytes.extend_from_slice(&v.to_le_bytes()[..bytes]));
            }
            _ => self.bytes.extend(values.iter().map(|&v| v as u8)),
        }
        self.pieces.push((format, place, scale, start..self.bytes.len()));
    }
}

impl PackedTensor {
    /// Tiles in a row of tiles.
    pub fn tiles_across(&self) -> usize {
        self.cols.div_ceil(TILE)
    }

    /// Bytes in memory: codes, indices and scales.
    pub fn resident_bytes(&self) -> usize {
        let bucket = |b: &Bucket| b.data.len() + 4 * (b.tiles.len() + b.scales.len());
        self.buckets.iter().map(bucket).sum::<usize>() + 4 * (self.row_scales.len() + self.col_scales.len())
    }

    /// Values `[rows, cols]` before they are rounded to the tensor's own type: a reference for kernels.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let at = |scales: &[f32], i: usize| scales.get(i).copied().unwrap_or(1.0);
        for bucket in &self.buckets {
            for (n, &place) in bucket.tiles.iter().enumerate() {
                let (top, left) =
                    (place as usize / self.tiles_across() * TILE, place as usize % self.tiles_across() * TILE);
                for i in 0..TILE.min(self.rows - top) {
                    for j in 0..TILE.min(self.cols - left) {
                        let value = bucket.value(n, i * TILE + j);
                        let scale = match bucket.format {
                            PackedFormat::Plain(_) => 1.0,
                            _ => bucket.scales[n] * at(&self.row_scales, top + i) * at(&self.col_scales, left + j),
                        };
                        out[(top + i) * self.cols + left + j] = value * scale;
                    }
                }
            }
        }
        out
    }

    /// Tiles of a coded tensor; `None` where tiles have another size or are decoded to elements.
    pub(crate) fn of(
        coded: &CodedTensor,
        parts: &Parts,
        failed: impl Fn(CodecError) -> CheckpointError + Sync,
    ) -> Result<Option<Self>> {
        let plan = coded.plan();
        if plan.tile != TILE || plan.parameters.filter.is_some() || !plan.dtype.is_weight() {
            return Ok(None);
        }
        let slice = |n: usize| {
            parts.go_on()?;
            let pieces = pieces_of(coded, n).map_err(&failed)?;
            parts.done();
            Ok(pieces)
        };
        let pieces = (0..coded.slices()).into_par_iter().map(slice).collect::<Result<Option<Vec<_>>>>()?;
        let (row_scales, col_scales) = (plan.row_scales(), plan.col_scales());
        let (rows, cols, dtype) = (plan.rows, plan.cols, plan.dtype);
        let empty = Self { rows, cols, dtype, row_scales, col_scales, buckets: vec![] };
        Ok(pieces.map(|pieces| empty.assemble(pieces)))
    }

    /// Sorts tiles into buckets; parts are in order.
    fn assemble(mut self, parts: Vec<Pieces>) -> Self {
        let mut formats: Vec<PackedFormat> = Vec::new();
        for (format, ..) in parts.iter().flat_map(|p| &p.pieces) {
            if !formats.contains(format) {
                formats.push(*format);
            }
        }
        formats.sort_by_key(|f| (f.tile_bytes(), f.name()));
        for format in formats {
            let own = || {
                parts.iter().flat_map(|p| p.pieces.iter().map(move |piece| (p, piece))).filter(|(_, q)| q.0 == format)
            };
            let mut data = Aligned::zeros(own().count() * format.tile_bytes());
            for (to, (part, (.., range))) in data.as_mut().chunks_exact_mut(format.tile_bytes()).zip(own()) {
                to.copy_from_slice(&part.bytes[range.clone()]);
            }
            let scaled = !matches!(format, PackedFormat::Plain(_));
            self.buckets.push(Bucket {
                format,
                tiles: own().map(|(_, piece)| piece.1).collect(),
                scales: own().filter(|_| scaled).map(|(_, piece)| piece.2).collect(),
                data,
            });
        }
        self
    }
}

impl Bucket {
    /// Value of element `i` of tile `n` before scales.
    pub fn value(&self, n: usize, i: usize) -> f32 {
        let tile = &self.data[n * self.format.tile_bytes()..][..self.format.tile_bytes()];
        match self.format {
            PackedFormat::Int4 => {
                let nibble = tile[i / 2] >> (4 * (i % 2));
                f32::from((nibble << 4) as i8 >> 4)
            }
            PackedFormat::Int8 => f32::from(tile[i] as i8),
            PackedFormat::E4m3 => Minifloat::E4M3.decode(tile[i]),
            PackedFormat::E5m2 => Minifloat::E5M2.decode(tile[i]),
            PackedFormat::Plain(dtype) => {
                let bytes = &tile[i * dtype.bytes()..][..dtype.bytes()];
                dtype.value_of(bytes.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b)))
            }
        }
    }
}

impl Checkpoint {
    /// Decodes a matrix to tiles to multiply with, on all threads. Tiles of experimental sizes and formats, and
    /// tensors that are not coded or have several quality layers, are decoded to elements.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], tensors that are no matrices, cancelled work.
    pub fn decode_packed(&self, name: &str, control: Control) -> Result<PackedTensor> {
        let info = self.tensor(name)?;
        let &[rows, cols] = info.shape.as_slice() else {
            return Err(self.wrong(info, TensorError::NotAMatrix { shape: info.shape.clone() }));
        };
        if rows.div_ceil(TILE).saturating_mul(cols.div_ceil(TILE)) > u32::MAX as usize {
            return Err(self.wrong(info, TensorError::TooManyTiles));
        }
        let failed = self.codec_error(info);
        let empty = |dtype| PackedTensor { rows, cols, dtype, row_scales: vec![], col_scales: vec![], buckets: vec![] };
        // Planes of several layers do not add up to one.
        if info.storage == Storage::Coded && info.quality_layers() == 1 {
            let bytes = self.read_raw(name)?;
            let coded = CodedTensor::parse(&bytes).map_err(failed)?;
            let parts = Parts::new(control, coded.slices());
            if let Some(packed) = PackedTensor::of(&coded, &parts, failed)? {
                return Ok(packed);
            }
        }
        let values = self.read(name)?;
        let parts = Parts::new(control, rows.div_ceil(TILE));
        let row = |n: usize| {
            parts.go_on()?;
            let pieces = plain_pieces(&values.bytes, values.dtype, (rows, cols), n);
            parts.done();
            Ok(pieces)
        };
        let pieces = (0..rows.div_ceil(TILE)).into_par_iter().map(row).collect::<Result<Vec<_>>>()?;
        Ok(empty(values.dtype).assemble(pieces))
    }
}

/// Tiles of a slice; `None` where one has a format that is decoded to elements.
fn pieces_of(coded: &CodedTensor, n: usize) -> std::result::Result<Option<Pieces>, CodecError> {
    let (plan, rows) = (coded.plan(), coded.slice_rows(n));
    let decoded = coded.decode_planes(n)?;
    let across = plan.cols.div_ceil(TILE);
    let mut pieces = Pieces::default();
    for (i, tile) in decoded.tiles.iter().enumerate() {
        let Some(format) = PackedFormat::of(tile.format, plan.dtype) else { return Ok(None) };
        let (top, left) = (i / across * TILE, i % across * TILE);
        let mut values = [0; WEIGHTS];
        for (row, to) in (top..rows.len()).zip(values.chunks_exact_mut(TILE)) {
            let line = &decoded.plane[row * plan.cols + left..][..TILE.min(plan.cols - left)];
            to[..line.len()].copy_from_slice(line);
        }
        let place = (rows.start / TILE * across + i) as u32;
        pieces.add(format, place, scale_of(coded, tile), &values);
    }
    Ok(Some(pieces))
}

fn scale_of(coded: &CodedTensor, tile: &TilePlan) -> f32 {
    if tile.format == Format::Lossless { 1.0 } else { coded.plan().tile_scale(tile) }
}

/// A row of tiles of elements.
fn plain_pieces(bytes: &[u8], dtype: Dtype, (rows, cols): (usize, usize), n: usize) -> Pieces {
    let across = cols.div_ceil(TILE);
    let mut pieces = Pieces::default();
    for i in 0..across {
        let left = i * TILE;
        let mut values = [0; WEIGHTS];
        for (row, to) in (n * TILE..rows).zip(values.chunks_exact_mut(TILE)) {
            let line = &bytes[(row * cols + left) * dtype.bytes()..][..TILE.min(cols - left) * dtype.bytes()];
            let pattern = |b: &[u8]| b.iter().rev().fold(0u32, |v, &x| v << 8 | u32::from(x)) as i32;
            to.iter_mut().zip(line.chunks_exact(dtype.bytes())).for_each(|(v, b)| *v = pattern(b));
        }
        pieces.add(PackedFormat::Plain(dtype), (n * across + i) as u32, 1.0, &values);
    }
    pieces
}
