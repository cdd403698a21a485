//! Decisions about a whole tensor: everything but its samples (section 4 of `docs/BITSTREAM.md`).

use std::ops::{Range, RangeInclusive};

use crate::constants::TILE;
use crate::entropy::tables::class_of;
use crate::error::{CodecError, Result};
use crate::format::{Dtype, Format};
use crate::scale::{MAX_INDEX, SigmaIndex, UNIT, scale};
use crate::syntax::bit_shift::{BitShiftTrellis, MAX_CODE_BITS};
use crate::syntax::header::{check_slice, slice_count};
use crate::syntax::lattice::Lattice;
use crate::syntax::rests::Rests;
use crate::syntax::tile_plan::{BANDS, Predictor, TileMode, TilePlan, band};
use crate::syntax::tools::Tools;
use crate::syntax::trellis::Trellis;

/// Frequencies, out of 2^12, that a tensor carries for its float prefixes: one table, or four by quarter octave. For
/// bytes and nibbles one to eight, by column.
pub type FrequencyTables = Vec<[u16; 256]>;

/// Most frequency tables of a tensor.
pub const MAX_FREQUENCY_TABLES: usize = 8;

/// Everything decided about a tensor but its samples.
///
/// The step of the weight in row i and column j of tile t is 2^((step_base + 2 (t.step + row_scale\[i\] +
/// col_scale\[j\])) / 8). The entropy coder expects the weight's standard deviation to be 2^(step_base / 8) times
/// 2^((sigma_base + t.sigma + row_sigma\[i\] + col_sigma\[j\]) / 4). An empty vector stands for zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Element type of the original and of the decoded tensor.
    pub dtype: Dtype,
    /// Rows (output features).
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Side of a tile: 16; 8, 32 and 64 are experimental.
    pub tile: usize,
    /// Scale index of the base step, eighths of an octave.
    pub step_base: i32,
    /// Sigma index of the base, quarter octaves over the base step.
    pub sigma_base: SigmaIndex,
    /// Step index of each row, or empty.
    pub row_scale: Vec<i8>,
    /// Step index of each column, or empty.
    pub col_scale: Vec<i8>,
    /// Sigma index of each row (quarter octaves), or empty.
    pub row_sigma: Vec<i8>,
    /// Sigma index of each column (quarter octaves), or empty.
    pub col_sigma: Vec<i8>,
    /// Parameters of tools, shared by all tiles.
    pub parameters: Parameters,
    /// Tiles in raster order.
    pub tiles: Vec<TilePlan>,
}

/// Parameters of tools, shared by all tiles of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// True if groups of 2x2 and 4x4 tiles with equal headers share one. Given to an encoder: true if they may.
    pub merge: bool,
    /// Coefficients of the linear predictor: a and b in 64ths, c in 64ths of the step.
    pub linear: [i8; 3],
    /// Offsets of the reconstruction points of |level| 1, 2, and 3 or more from the level, in 16ths of the
    /// quantiser's step; for tiles with a coarse quantiser.
    pub centroids: [i8; 3],
    /// Sigma index of coefficients by [`band`], over the tile's, in quarter octaves.
    pub bands: [i8; BANDS],
    /// Change of a level's sigma index by the magnitudes of the two levels to the left, see
    /// [`neighbour_bin`](crate::syntax::slice::neighbour_bin).
    pub neighbours: Option<[i8; 8]>,
    /// Rows that tiles may be predicted from, in units of `dictionary_step`.
    pub dictionary: Vec<Vec<i8>>,
    /// Step index of the dictionary.
    pub dictionary_step: i16,
    /// The tensor's own 16-point orthogonal matrix, scaled by 2^12.
    pub learned: Option<Box<[i16; 256]>>,
    /// Weights of the horizontal and of the vertical neighbours inside a tile, in 256ths, of a filter after decoding.
    pub filter: Option<[i8; 2]>,
    /// Trellis of levels that are not transformed.
    pub trellis: Option<Trellis>,
    /// Bit-shift trellis of all integer tiles, which then have the mode [`TileMode::BitShift`].
    pub bit_shift: Option<BitShiftTrellis>,
    /// Tables for heads of patterns; the fixed ones when empty.
    pub frequency_tables: FrequencyTables,
    /// Raw bits of lossless elements that are not coded.
    pub rests: Option<Rests>,
    /// Lattice of all elements, whose samples are then symbols of its codebook.
    pub lattice: Option<Lattice>,
    /// For a refinement, the scales of the quality layer that it refines; its decoded values are added to that
    /// layer's.
    pub refinement: Option<Box<Scales>>,
}

/// Row and column scales of a quality layer. Those of the layer that refines it, and its sigma indices, are coded as
/// differences from them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scales {
    /// Step index of each row, or empty.
    pub rows: Vec<i8>,
    /// Step index of each column, or empty.
    pub cols: Vec<i8>,
}

impl Scales {
    /// Scales of a plan.
    pub fn of(plan: &TensorPlan) -> Self {
        Self { rows: plan.row_scale.clone(), cols: plan.col_scale.clone() }
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            merge: true,
            linear: [0; 3],
            centroids: [0; 3],
            bands: [0; BANDS],
            neighbours: None,
            dictionary: Vec::new(),
            dictionary_step: 0,
            learned: None,
            filter: None,
            trellis: None,
            bit_shift: None,
            frequency_tables: Vec::new(),
            rests: None,
            lattice: None,
            refinement: None,
        }
    }
}

impl TensorPlan {
    /// A plan without scales in which all tiles are `tile`.
    pub fn uniform(dtype: Dtype, rows: usize, cols: usize, tile: TilePlan) -> Self {
        Self {
            dtype,
            rows,
            cols,
            tile: TILE,
            step_base: 0,
            sigma_base: 0,
            row_scale: Vec::new(),
            col_scale: Vec::new(),
            row_sigma: Vec::new(),
            col_sigma: Vec::new(),
            parameters: Parameters::default(),
            tiles: vec![tile; rows.div_ceil(TILE) * cols.div_ceil(TILE)],
        }
    }

    /// Element type of the samples of lossless tiles: symbols are bytes.
    pub fn sample_dtype(&self) -> Dtype {
        if self.parameters.lattice.is_some() { Dtype::Byte } else { self.dtype }
    }

    /// Tiles in a row of tiles.
    pub fn tiles_across(&self) -> usize {
        self.cols.div_ceil(self.tile)
    }

    /// Tiles in a column of tiles.
    pub fn tiles_down(&self) -> usize {
        self.rows.div_ceil(self.tile)
    }

    /// Index of the tile that holds the weight (row, col).
    #[inline]
    pub fn tile_index(&self, row: usize, col: usize) -> usize {
        row / self.tile * self.tiles_across() + col / self.tile
    }

    /// Tile that holds the weight (row, col).
    #[inline]
    pub fn tile_at(&self, row: usize, col: usize) -> &TilePlan {
        &self.tiles[self.tile_index(row, col)]
    }

    /// Rows and columns of tile `n`.
    pub fn tile_range(&self, n: usize) -> (Range<usize>, Range<usize>) {
        let (row, col) = (n / self.tiles_across() * self.tile, n % self.tiles_across() * self.tile);
        (row..self.rows.min(row + self.tile), col..self.cols.min(col + self.tile))
    }

    /// True if the tile at (row, col) is not cut by the tensor's edge, so that it can be transformed.
    #[inline]
    pub fn is_full(&self, row: usize, col: usize) -> bool {
        let end = |n: usize| n / self.tile * self.tile + self.tile;
        end(row) <= self.rows && end(col) <= self.cols
    }

    /// Rows of a slice: as many as hold 64 Ki weights (128 Ki in a tensor of 1 Mi, 256 Ki in one of 4 Mi), 64 to
    /// 1024, fewer where columns are very many. With a trellis at least 256: every column of a slice starts it anew.
    pub fn slice_rows(&self) -> usize {
        let weights: usize = match self.rows * self.cols {
            0..0x10_0000 => 1 << 16,
            0x10_0000..0x40_0000 => 1 << 17,
            _ => 1 << 18,
        };
        let walked = self.parameters.trellis.is_some() || self.parameters.bit_shift.is_some();
        let least = if walked { 256 } else { 64 };
        let rows = weights.div_ceil(self.cols.max(1)).next_multiple_of(64).clamp(least, 1024);
        let most = (crate::syntax::header::MAX_SLICE_WEIGHTS as usize / self.cols.max(1)) / TILE * TILE;
        rows.min(most.max(TILE)).min(self.rows.next_multiple_of(self.tile)).max(self.tile)
    }

    /// Slices of the tensor.
    pub fn slices(&self) -> usize {
        if self.cols == 0 { 0 } else { slice_count(self.rows, self.slice_rows()) }
    }

    /// Rows of slice `n`.
    pub fn slice_range(&self, n: usize) -> Range<usize> {
        n * self.slice_rows()..((n + 1) * self.slice_rows()).min(self.rows)
    }

    /// Indices of the weights of some rows.
    pub(crate) fn weights_of(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.cols..rows.end * self.cols
    }

    /// Lanes of its slices: 64 lanes pay for their bytes on large slices only.
    pub(crate) fn lanes(&self) -> usize {
        match self.slice_rows().min(self.rows) * self.cols {
            0..16384 => 1,
            16384..49152 => 4,
            49152..98304 => 8,
            _ => 64,
        }
    }

    /// Tools that the plan uses.
    pub(crate) fn tools(&self) -> Tools {
        let mut tools = Tools::default();
        let first = self.tiles.first().copied().unwrap_or_default();
        let any = |used: &dyn Fn(&TilePlan) -> bool| self.tiles.iter().any(used);
        let p = &self.parameters;
        let uniform = self.tiles.iter().all(|t| *t == first);
        tools.add(Tools::UNIFORM, uniform);
        tools.add(Tools::STEPS, any(&|t| t.step != 0 && t.format != Format::Lossless));
        // Residuals of a refinement are as wide as the steps before it.
        tools.add(Tools::SIGMAS, any(&|t| t.sigma != if p.refinement.is_some() { t.step } else { 0 }));
        tools.add(Tools::MODES, any(&|t| !matches!(t.mode, TileMode::Coded | TileMode::BitShift(_))));
        tools.add(Tools::PREDICTORS, any(&|t| t.predictor != Predictor::None));
        tools.add(Tools::COARSE, any(&|t| t.coarse != 0));
        tools.add(Tools::TRANSFORMS, any(&|t| !t.transform.is_identity()));
        tools.add(Tools::MERGE, p.merge && !uniform);
        tools.add(Tools::NEIGHBOURS, p.neighbours.is_some());
        tools.add(Tools::CENTROIDS, p.centroids != [0; 3]);
        tools.add(Tools::DICTIONARY, !p.dictionary.is_empty());
        tools.add(Tools::LEARNED, p.learned.is_some());
        tools.add(Tools::FILTER, p.filter.is_some());
        tools.add(Tools::TRELLIS, p.trellis.is_some());
        tools.add(Tools::BIT_SHIFT, p.bit_shift.is_some());
        tools.add(Tools::FREQUENCY_TABLES, !p.frequency_tables.is_empty());
        tools.add(Tools::RESTS, p.rests.is_some());
        tools.add(Tools::LATTICE, p.lattice.is_some());
        tools.add(Tools::LINEAR, p.linear != [0; 3]);
        tools.add(Tools::REFINEMENT, p.refinement.is_some());
        tools.set_tile(self.tile);
        tools
    }

    pub(crate) fn check(&self) -> Result<()> {
        let shape = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(CodecError::Shape { what, found, expected }),
        };
        if ![8, 16, 32, 64].contains(&self.tile) {
            return Err(CodecError::Field { field: "tile", found: self.tile as i64, expected: "8, 16, 32 or 64" });
        }
        check_slice(self.rows, self.cols, self.slice_rows())?;
        shape("tiles", self.tiles.len(), self.tiles_down() * self.tiles_across())?;
        for (what, vector, length) in [
            ("row_scale", &self.row_scale, self.rows),
            ("col_scale", &self.col_scale, self.cols),
            ("row_sigma", &self.row_sigma, self.rows),
            ("col_sigma", &self.col_sigma, self.cols),
        ] {
            if !vector.is_empty() {
                shape(what, vector.len(), length)?;
            }
        }
        for row in &self.parameters.dictionary {
            shape("dictionary row", row.len(), self.cols)?;
        }
        if let Some(rests) = &self.parameters.rests
            && !rests.rows.is_empty()
        {
            shape("rests", rests.rows.len(), self.rows)?;
        }
        self.tools().check()?;
        for tile in self.tiles.iter().filter(|t| t.format.level_range().is_some()) {
            let bits = if let TileMode::BitShift(bits) = tile.mode { bits } else { 0 };
            let fits = match self.parameters.bit_shift {
                Some(_) => (1..=MAX_CODE_BITS).contains(&bits),
                None => bits == 0,
            };
            if !fits {
                let expected =
                    "codes of 1 to 8 bits in integer tiles of a tensor with a bit-shift trellis, and only there";
                return Err(CodecError::Field { field: "bits of a code", found: bits.into(), expected });
            }
        }
        let lossless_only = self.tiles.iter().all(|t| t.format == Format::Lossless);
        match self.dtype.is_weight() || lossless_only {
            true => Ok(()),
            false => {
                let expected = "0, 1 or 2 in a tensor with lossy tiles";
                Err(CodecError::Field { field: "dtype", found: self.dtype as i64, expected })
            }
        }
    }

    /// The plan as side information has it: vectors of a refinement are differences from the scales of the layer
    /// before.
    pub(crate) fn side(&self) -> Self {
        let mut plan = self.clone();
        if let Some(before) = &self.parameters.refinement {
            plan.combine(before, |own, before| own - before);
        }
        plan
    }

    /// Completes a refinement's plan, as side information has it, with the scales of the layer before.
    pub(crate) fn follow(&mut self, before: &Self) {
        let scales = Scales::of(before);
        self.combine(&scales, |own, before| own + before);
        self.parameters.refinement = Some(Box::new(scales));
    }

    fn combine(&mut self, before: &Scales, f: impl Fn(i32, i32) -> i32 + Copy) {
        for (vector, scales) in [
            (&mut self.row_scale, &before.rows),
            (&mut self.col_scale, &before.cols),
            (&mut self.row_sigma, &before.rows),
            (&mut self.col_sigma, &before.cols),
        ] {
            *vector = combine(vector, scales, f);
        }
    }

    /// Step index of row and column, quarter octaves: what a weight's step has besides its tile's.
    #[inline]
    pub fn row_col_scale(&self, row: usize, col: usize) -> i32 {
        entry(&self.row_scale, row) + entry(&self.col_scale, col)
    }

    /// Scale index (eighths of an octave) of one weight: tile, row and column indices add.
    #[inline]
    pub fn scale_index(&self, tile: &TilePlan, row: usize, col: usize) -> i32 {
        self.tile_scale_index(tile) + UNIT * self.row_col_scale(row, col)
    }

    /// The tile's part of a scale index.
    #[inline]
    pub fn tile_scale_index(&self, tile: &TilePlan) -> i32 {
        let shift = tile.format.minifloat().map_or(0, |m| m.scale_shift());
        self.step_base + UNIT * i32::from(tile.step) - shift
    }

    /// Step indices that a tile can have in a format: with them the scale of each of its weights is on the grid.
    /// Empty where no index does.
    pub fn steps(&self, n: usize, format: Format) -> RangeInclusive<i32> {
        let (rows, cols) = self.tile_range(n);
        let ends = |scales: &[i8], range: Range<usize>| {
            let entries = || range.clone().map(|i| entry(scales, i));
            (entries().min().unwrap_or(0), entries().max().unwrap_or(0))
        };
        let ((least_row, most_row), (least_col, most_col)) = (ends(&self.row_scale, rows), ends(&self.col_scale, cols));
        let base = self.tile_scale_index(&TilePlan { format, step: 0, ..TilePlan::default() });
        let least = -((MAX_INDEX + base).div_euclid(UNIT)) - (least_row + least_col);
        let most = (MAX_INDEX - base).div_euclid(UNIT) - (most_row + most_col);
        least..=most
    }

    /// Scale of a tile without row and column scales.
    pub fn tile_scale(&self, tile: &TilePlan) -> f32 {
        scale(self.tile_scale_index(tile))
    }

    /// Scale of each row, or empty.
    pub fn row_scales(&self) -> Vec<f32> {
        self.row_scale.iter().map(|&v| scale(UNIT * i32::from(v))).collect()
    }

    /// Scale of each column, or empty.
    pub fn col_scales(&self) -> Vec<f32> {
        self.col_scale.iter().map(|&v| scale(UNIT * i32::from(v))).collect()
    }

    /// Sigma index that the entropy coder expects of a weight, quarter octaves over the base step.
    #[inline]
    pub fn sigma(&self, tile: &TilePlan, row: usize, col: usize) -> SigmaIndex {
        self.sigma_base + i32::from(tile.sigma) + entry(&self.row_sigma, row) + entry(&self.col_sigma, col)
    }

    /// Class of a level's sigma; (row, col) lies in `tile`.
    #[inline]
    pub fn level_class(&self, tile: &TilePlan, row: usize, col: usize) -> usize {
        class_of(self.level_sigma(tile, row, col))
    }

    /// Trellis of the levels of `tile`, which (row, col) lies in; none where the tile is transformed or has no
    /// levels.
    #[inline]
    pub fn trellis_of(&self, tile: &TilePlan, row: usize, col: usize) -> Option<Trellis> {
        let passes = tile.transform.is_identity() || !self.is_full(row, col);
        self.parameters
            .trellis
            .filter(|_| passes && tile.mode == TileMode::Coded && tile.format.level_range().is_some())
    }

    /// Sigma index of a level, quarter octaves. A transform mixes rows and columns, so only tile and position count
    /// in a transformed tile.
    #[inline]
    pub(crate) fn level_sigma(&self, tile: &TilePlan, row: usize, col: usize) -> SigmaIndex {
        let unit = i32::from(tile.step) + i32::from(tile.coarse);
        if tile.transform.is_identity() || !self.is_full(row, col) {
            return self.sigma(tile, row, col) - self.row_col_scale(row, col) - unit;
        }
        self.transform_sigma(tile, band(tile.transform, row % self.tile, col % self.tile))
    }

    /// Sigma index of a coefficient of a band, quarter octaves.
    #[inline]
    pub fn transform_sigma(&self, tile: &TilePlan, band: usize) -> SigmaIndex {
        let unit = i32::from(tile.step) + i32::from(tile.coarse);
        self.sigma_base + i32::from(tile.sigma) + i32::from(self.parameters.bands[band]) - unit
    }

    /// Sigma index of the value of a small floating-point code, quarter octaves.
    #[inline]
    pub(crate) fn code_sigma(&self, tile: &TilePlan, row: usize, col: usize) -> SigmaIndex {
        let shift = tile.format.minifloat().map_or(0, |m| m.scale_shift() / UNIT);
        self.sigma(tile, row, col) - i32::from(tile.step) - self.row_col_scale(row, col) + shift
    }

    /// Sigma index of the value of a lossless element, quarter octaves over one.
    #[inline]
    pub(crate) fn lossless_sigma(&self, tile: &TilePlan, row: usize, col: usize) -> SigmaIndex {
        self.sigma(tile, row, col) + (self.step_base >> 1)
    }
}

/// Combines two vectors, of which empty ones stand for zeros; empty where the result is all zeros.
fn combine(a: &[i8], b: &[i8], f: impl Fn(i32, i32) -> i32) -> Vec<i8> {
    let of = |i: usize| f(entry(a, i), entry(b, i)).clamp(-127, 127) as i8;
    let combined: Vec<i8> = (0..a.len().max(b.len())).map(of).collect();
    if combined.iter().all(|&v| v == 0) { Vec::new() } else { combined }
}

/// Entry of a vector, zero where the vector is empty.
#[inline]
pub(crate) fn entry(vector: &[i8], i: usize) -> i32 {
    vector.get(i).map_or(0, |&v| i32::from(v))
}
