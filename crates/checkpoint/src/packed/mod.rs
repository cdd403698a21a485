//! Matrices in the form that runtimes multiply with: tiles of one format together, scales separate.

use std::ops::{Deref, Range};

use rayon::prelude::*;
use waterfill_codec::scale::{UNIT, scale};
use waterfill_codec::syntax::bit_shift::level;
use waterfill_codec::{BitShiftTrellis, CodecError, CodedTensor, Dtype, Format, Minifloat, TILE};

use crate::control::{Control, Parts};
use crate::error::{CheckpointError, Result, TensorError};
use crate::open::Checkpoint;
use crate::types::Storage;

mod format;

pub use format::PackedFormat;
use format::WEIGHTS;

/// Alignment of a bucket's data, bytes: a tile of four-bit levels.
pub const ALIGNMENT: usize = 128;

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

/// Tiles of one format, row of tiles by row of tiles.
pub struct Bucket {
    /// Their format.
    pub format: PackedFormat,
    /// Number of the bucket's tiles before each row of tiles of the matrix, and of all: one entry more than rows of tiles.
    pub row_starts: Vec<u32>,
    /// Whether each tile of the matrix is in this bucket, a bit each from the lowest on: column of tiles `c` of a row of
    /// tiles in bit `c mod 8` of its byte `c / 8`, `ceil(tiles across / 8)` bytes a row.
    pub occupied: Vec<u8>,
    /// Scale of each tile in quarter octaves over the bucket's, empty for plain tiles.
    pub scales: Vec<i8>,
    /// Scale of the bucket, 2^(k/8) ([`waterfill_codec::scale::scale`]).
    pub scale: i32,
    /// Tiles one after the other, each `[16, 16]`; zeros beyond the matrix.
    pub data: Aligned,
}

/// How codes of a bit-shift trellis follow each other down a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedTrellis {
    /// The trellis.
    pub states: BitShiftTrellis,
    /// Rows of tiles after which columns start again from state zero; they do after tiles that have no codes, too.
    pub restart: usize,
}

/// A matrix `[rows, cols]` in tiles of 16x16. The weight in row r and column c of a tile of codes is its code times
/// 2^((b + 2 k + 2 `row_scales[r]` + 2 `col_scales[c]`)/8) with scales k of the tile and b of the bucket; of codes of a bit-shift
/// trellis, the level of its state there ([`waterfill_codec::syntax::bit_shift`]). The decoded tensor has it rounded to its own
/// type.
pub struct PackedTensor {
    /// Rows (output features).
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Type of the decoded tensor.
    pub dtype: Dtype,
    /// Scale of each row in quarter octaves, or empty for zeros.
    pub row_scales: Vec<i8>,
    /// Scale of each column in quarter octaves, or empty for zeros.
    pub col_scales: Vec<i8>,
    /// The bit-shift trellis of its codes, if it has any.
    pub trellis: Option<PackedTrellis>,
    /// Tiles by format, one bucket for each format that occurs.
    pub buckets: Vec<Bucket>,
}

/// A tile to be put into a bucket: format, index, scale, range of its bytes.
type Piece = (PackedFormat, u32, i32, Range<usize>);

/// Tiles of a part of the matrix.
#[derive(Default)]
struct Pieces {
    pieces: Vec<Piece>,
    bytes: Vec<u8>,
}

impl Pieces {
    /// Appends a tile of 256 values, row-major.
    fn add(&mut self, format: PackedFormat, place: u32, scale: i32, values: &[i32; WEIGHTS]) {
        let start = self.bytes.len();
        format.pack(values, &mut self.bytes);
        self.pieces.push((format, place, scale, start..self.bytes.len()));
    }
}

impl PackedTensor {
    /// Tiles in a row of tiles.
    pub fn tiles_across(&self) -> usize {
        self.cols.div_ceil(TILE)
    }

    /// Factor of each row, or empty for ones.
    pub fn row_factors(&self) -> Vec<f32> {
        self.row_scales.iter().map(|&k| scale(UNIT * i32::from(k))).collect()
    }

    /// Factor of each column, or empty for ones.
    pub fn col_factors(&self) -> Vec<f32> {
        self.col_scales.iter().map(|&k| scale(UNIT * i32::from(k))).collect()
    }

    /// Bytes in memory: codes, places and scales.
    pub fn resident_bytes(&self) -> usize {
        let bucket = |b: &Bucket| b.data.len() + 4 * b.row_starts.len() + b.occupied.len() + b.scales.len() + 4;
        self.buckets.iter().map(bucket).sum::<usize>() + self.row_scales.len() + self.col_scales.len()
    }

    /// Values of a row before they are rounded to the tensor's own type; `None` if there is no such row.
    pub fn row(&self, row: usize) -> Option<Vec<f32>> {
        if row >= self.rows {
            return None;
        }
        let mut out = vec![0.0; self.cols];
        let own = UNIT * i32::from(self.row_scales.get(row).copied().unwrap_or(0));
        let states = self.states_before(row / TILE);
        for bucket in &self.buckets {
            let tiles = bucket.tiles_of_row(row / TILE).zip(bucket.columns_of_row(row / TILE));
            for (n, column) in tiles {
                // Codes follow each other down the tile; other elements stand alone.
                let codes = bucket.format.code_bits().map(|_| self.tile_values(bucket, n, column, &states));
                for (j, out) in out[column * TILE..].iter_mut().take(TILE).enumerate() {
                    let at = row % TILE * TILE + j;
                    let col = UNIT * i32::from(self.col_scales.get(column * TILE + j).copied().unwrap_or(0));
                    let factor = bucket.scale_index(n).map_or(1.0, |k| scale(k + own + col));
                    *out = codes.map_or_else(|| bucket.value(n, at), |values| values[at]) * factor;
                }
            }
        }
        Some(out)
    }

    /// Values `[rows, cols]` before they are rounded to the tensor's own type: a reference for kernels.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let at = |scales: &[i8], i: usize| UNIT * i32::from(scales.get(i).copied().unwrap_or(0));
        let states: Vec<_> = (0..self.rows.div_ceil(TILE)).map(|row| self.states_before(row)).collect();
        for bucket in &self.buckets {
            for (n, [row, column]) in bucket.places().enumerate() {
                let (top, left) = (row * TILE, column * TILE);
                let values = self.tile_values(bucket, n, column, &states[row]);
                for i in 0..TILE.min(self.rows - top) {
                    for j in 0..TILE.min(self.cols - left) {
                        let value = values[i * TILE + j];
                        let factor = bucket
                            .scale_index(n)
                            .map_or(1.0, |k| scale(k + at(&self.row_scales, top + i) + at(&self.col_scales, left + j)));
                        out[(top + i) * self.cols + left + j] = value * factor;
                    }
                }
            }
        }
        out
    }

    /// Trellis states of all columns, in whole tiles, before a row of tiles; empty where there are no codes. The state after a
    /// tile follows from its own codes, which have at least as many bits as a state.
    pub fn states_before(&self, row: usize) -> Vec<u32> {
        let Some(PackedTrellis { states: trellis, restart }) = self.trellis else { return vec![] };
        let mut states = vec![0; self.tiles_across() * TILE];
        if row.is_multiple_of(restart) {
            return states;
        }
        for bucket in &self.buckets {
            let Some(bits) = bucket.format.code_bits() else { continue };
            let first = TILE - trellis.state_bits().div_ceil(bits) as usize;
            for (n, column) in bucket.tiles_of_row(row - 1).zip(bucket.columns_of_row(row - 1)) {
                let codes = bucket.format.unpack_codes(bucket.tile(n), first);
                let states = &mut states[column * TILE..][..TILE];
                for line in codes.chunks_exact(TILE).skip(first) {
                    states.iter_mut().zip(line).for_each(|(s, &code)| *s = trellis.next(*s, bits, code.into()));
                }
            }
        }
        states
    }

    /// Values of tile `n` of a bucket, row-major, before scales. The tile lies in a `column` of tiles; `states` are those before
    /// its row ([`Self::states_before`]).
    pub fn tile_values(&self, bucket: &Bucket, n: usize, column: usize, states: &[u32]) -> [f32; WEIGHTS] {
        match self.trellis.zip(bucket.format.code_bits()) {
            Some((trellis, _)) => {
                let mut own = [0; TILE];
                own.copy_from_slice(&states[column * TILE..][..TILE]);
                bucket.trellis_levels(n, trellis.states, own).map(f32::from)
            }
            None => std::array::from_fn(|i| bucket.value(n, i)),
        }
    }

    /// Tiles of a coded tensor without quality layers; `None` where tiles have another size or are decoded to elements.
    ///
    /// # Errors
    /// Damaged slices.
    pub fn of_coded(coded: &CodedTensor) -> std::result::Result<Option<Self>, CodecError> {
        if !Self::can_hold(coded) {
            return Ok(None);
        }
        let pieces = (0..coded.slices()).into_par_iter().map(|n| pieces_of(coded, n));
        let pieces = pieces.collect::<std::result::Result<Option<Vec<_>>, CodecError>>()?;
        Ok(pieces.and_then(|pieces| Self::empty(coded).assemble(pieces)))
    }

    fn can_hold(coded: &CodedTensor) -> bool {
        let plan = coded.plan();
        plan.tile == TILE && plan.parameters.filter.is_none() && plan.dtype.is_weight()
    }

    fn empty(coded: &CodedTensor) -> Self {
        let plan = coded.plan();
        let (row_scales, col_scales) = (plan.row_scale.clone(), plan.col_scale.clone());
        let restart = coded.header().slice_rows / TILE;
        let trellis = plan.parameters.bit_shift.map(|states| PackedTrellis { states, restart });
        Self { rows: plan.rows, cols: plan.cols, dtype: plan.dtype, row_scales, col_scales, trellis, buckets: vec![] }
    }

    /// Tiles of a coded tensor; `None` where tiles have another size or are decoded to elements.
    pub(crate) fn of(
        coded: &CodedTensor,
        parts: &Parts,
        failed: impl Fn(CodecError) -> CheckpointError + Sync,
    ) -> Result<Option<Self>> {
        if !Self::can_hold(coded) {
            return Ok(None);
        }
        let slice = |n: usize| {
            parts.go_on()?;
            let pieces = pieces_of(coded, n).map_err(&failed)?;
            parts.done();
            Ok(pieces)
        };
        let pieces = (0..coded.slices()).into_par_iter().map(slice).collect::<Result<Option<Vec<_>>>>()?;
        Ok(pieces.and_then(|pieces| Self::empty(coded).assemble(pieces)))
    }

    /// Sorts tiles into buckets; parts are in order. `None` where scales of one format differ by more than 63 octaves.
    fn assemble(mut self, parts: Vec<Pieces>) -> Option<Self> {
        let mut formats: Vec<PackedFormat> = Vec::new();
        for (format, ..) in parts.iter().flat_map(|p| &p.pieces) {
            if !formats.contains(format) {
                formats.push(*format);
            }
        }
        formats.sort_by_key(|f| (f.tile_bytes(), f.name()));
        let (down, across) = (self.rows.div_ceil(TILE), self.tiles_across() as u32);
        for format in formats {
            let own = || {
                parts.iter().flat_map(|p| p.pieces.iter().map(move |piece| (p, piece))).filter(|(_, q)| q.0 == format)
            };
            let mut data = Aligned::zeros(own().count() * format.tile_bytes());
            for (to, (part, (.., range))) in data.as_mut().chunks_exact_mut(format.tile_bytes()).zip(own()) {
                to.copy_from_slice(&part.bytes[range.clone()]);
            }
            // Tiles lie whole quarter octaves apart.
            let scales = || own().map(|(_, piece)| piece.2);
            let (least, most) = (scales().min()?, scales().max()?);
            let middle = least + (most - least) / UNIT / 2 * UNIT;
            let scales = scales().map(|k| i8::try_from((k - middle) / UNIT).ok()).collect::<Option<Vec<_>>>()?;
            let scaled = !matches!(format, PackedFormat::Plain(_));
            let places: Vec<u32> = own().map(|(_, piece)| piece.1).collect();
            let before = |row: usize| places.partition_point(|&place| place < row as u32 * across) as u32;
            self.buckets.push(Bucket {
                format,
                row_starts: (0..=down).map(before).collect(),
                occupied: occupied(&places, down, across as usize),
                scales: if scaled { scales } else { vec![] },
                scale: middle,
                data,
            });
        }
        Some(self)
    }
}

/// A bit for each tile of the matrix, set for those in `places`.
fn occupied(places: &[u32], down: usize, across: usize) -> Vec<u8> {
    let bytes = across.div_ceil(8);
    let mut bits = vec![0; down * bytes];
    for place in places {
        let (row, column) = (*place as usize / across, *place as usize % across);
        bits[row * bytes + column / 8] |= 1 << (column % 8);
    }
    bits
}

impl Bucket {
    /// Tiles in a row of tiles, by number.
    pub fn tiles_of_row(&self, row: usize) -> Range<usize> {
        self.row_starts[row] as usize..self.row_starts[row + 1] as usize
    }

    /// Columns of tiles of the tiles in a row of tiles, ascending.
    pub fn columns_of_row(&self, row: usize) -> impl Iterator<Item = usize> {
        let bytes = self.occupied.len() / (self.row_starts.len() - 1).max(1);
        let own = self.occupied[row * bytes..][..bytes].iter().enumerate();
        own.flat_map(|(n, &byte)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| 8 * n + bit))
    }

    /// Row of tiles and column of tiles of each tile.
    pub fn places(&self) -> impl Iterator<Item = [usize; 2]> {
        let rows = 0..self.row_starts.len() - 1;
        rows.flat_map(|row| self.columns_of_row(row).map(move |column| [row, column]))
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.row_starts.last().map_or(0, |&all| all as usize)
    }

    /// Scale of tile `n` in eighths of an octave, the bucket's included; `None` for plain tiles.
    pub fn scale_index(&self, n: usize) -> Option<i32> {
        self.scales.get(n).map(|&k| self.scale + UNIT * i32::from(k))
    }

    /// Bytes of tile `n`.
    pub fn tile(&self, n: usize) -> &[u8] {
        &self.data[n * self.format.tile_bytes()..][..self.format.tile_bytes()]
    }

    /// Levels of tile `n` of codes of a bit-shift trellis, row-major, after the `states` of its columns.
    #[inline(always)]
    pub fn trellis_levels(&self, n: usize, trellis: BitShiftTrellis, states: [u32; TILE]) -> [i16; WEIGHTS] {
        let tile = self.tile(n);
        match self.format {
            PackedFormat::Trellis(1) => trellis_levels::<1>(tile, trellis, states),
            PackedFormat::Trellis(2) => trellis_levels::<2>(tile, trellis, states),
            PackedFormat::Trellis(3) => trellis_levels::<3>(tile, trellis, states),
            PackedFormat::Trellis(4) => trellis_levels::<4>(tile, trellis, states),
            PackedFormat::Trellis(5) => trellis_levels::<5>(tile, trellis, states),
            PackedFormat::Trellis(6) => trellis_levels::<6>(tile, trellis, states),
            PackedFormat::Trellis(7) => trellis_levels::<7>(tile, trellis, states),
            _ => trellis_levels::<8>(tile, trellis, states),
        }
    }

    /// Value of element `i` of tile `n` before scales, not of a bit-shift trellis.
    fn value(&self, n: usize, i: usize) -> f32 {
        let tile = self.tile(n);
        match self.format {
            PackedFormat::E4m3 => Minifloat::E4M3.decode(tile[i]),
            PackedFormat::E5m2 => Minifloat::E5M2.decode(tile[i]),
            PackedFormat::Plain(dtype) => {
                let bytes = &tile[i * dtype.bytes()..][..dtype.bytes()];
                dtype.value_of(bytes.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b)))
            }
            integers => f32::from(integers.unpack(tile)[i]),
        }
    }
}

/// Levels of a tile of codes of `BITS` bits.
#[inline(always)]
fn trellis_levels<const BITS: u8>(tile: &[u8], trellis: BitShiftTrellis, mut states: [u32; TILE]) -> [i16; WEIGHTS] {
    let codes = PackedFormat::Trellis(BITS).unpack_codes(tile, 0);
    let mut levels = [0; WEIGHTS];
    for (line, codes) in levels.chunks_exact_mut(TILE).zip(codes.chunks_exact(TILE)) {
        for j in 0..TILE {
            states[j] = trellis.next(states[j], BITS.into(), codes[j].into());
            line[j] = level(states[j]) as i16;
        }
    }
    levels
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
        let (down, across) = (rows.div_ceil(TILE), cols.div_ceil(TILE));
        if down.saturating_mul(across) > u32::MAX as usize {
            return Err(self.wrong(info, TensorError::TooManyTiles));
        }
        let failed = self.codec_error(info);
        let empty = |dtype| PackedTensor {
            rows,
            cols,
            dtype,
            row_scales: vec![],
            col_scales: vec![],
            trellis: None,
            buckets: vec![],
        };
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
        // Elements have no scales.
        Ok(empty(values.dtype).assemble(pieces).expect("one format without scales"))
    }
}

/// Tiles of a slice; `None` where one has a format that is decoded to elements.
fn pieces_of(coded: &CodedTensor, n: usize) -> std::result::Result<Option<Pieces>, CodecError> {
    let (plan, rows) = (coded.plan(), coded.slice_rows(n));
    let decoded = coded.decode_planes(n)?;
    let across = plan.cols.div_ceil(TILE);
    let mut pieces = Pieces::default();
    for (i, tile) in decoded.tiles.iter().enumerate() {
        let (top, left) = (i / across * TILE, i % across * TILE);
        let mut values = [0; WEIGHTS];
        for (row, to) in (top..rows.len()).zip(values.chunks_exact_mut(TILE)) {
            let line = &decoded.plane[row * plan.cols + left..][..TILE.min(plan.cols - left)];
            to[..line.len()].copy_from_slice(line);
        }
        let Some(format) = PackedFormat::of(tile, plan.dtype, &values) else { return Ok(None) };
        let place = (rows.start / TILE * across + i) as u32;
        let scale = if tile.format == Format::Lossless { 0 } else { plan.tile_scale_index(tile) };
        pieces.add(format, place, scale, &values);
    }
    Ok(Some(pieces))
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
        pieces.add(PackedFormat::Plain(dtype), (n * across + i) as u32, 0, &values);
    }
    pieces
}
