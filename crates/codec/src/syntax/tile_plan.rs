//! Decisions about one tile (section 6 of `docs/BITSTREAM.md`).

use crate::constants::TILE;
use crate::format::Format;

/// Decisions about one tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TilePlan {
    /// Number format of the samples. The fields below `sigma` apply to integer formats only.
    pub format: Format,
    /// Step index, quarter octaves over the tensor's step base. A lossless tile has the expected one.
    pub step: i16,
    /// Sigma index over that of rows and columns, quarter octaves.
    pub sigma: i16,
    /// Coding mode of the plane.
    pub mode: TileMode,
    /// Predictor of the plane.
    pub predictor: Predictor,
    /// Step of the quantiser over that of the plane, quarter octaves, 0..=31.
    pub coarse: u8,
    /// Transform of the residual; the identity in tiles that the tensor's edge cuts.
    pub transform: Transform,
}

/// Coding mode of the plane of an integer tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TileMode {
    /// Levels of the residual.
    #[default]
    Coded,
    /// The plane is the prediction.
    Skip,
    /// Every value is one of a palette.
    Palette(Palette),
    /// Levels of the residual, in bit planes with significance trees; experimental, 16x16 only.
    BitPlanes,
    /// Codes of this many bits, 1 to 8, of the tensor's bit-shift trellis. Samples are its states.
    BitShift(u8),
}

/// Two to eight values of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Palette {
    /// Number of values.
    pub len: u8,
    /// The values; zero from `len` on.
    pub values: [i16; 8],
}

impl Palette {
    /// Bits of an index.
    pub fn bits(self) -> u32 {
        u32::from(self.len.max(2) - 1).ilog2() + 1
    }
}

/// Predictor of a tile's plane, in units of its step. Neighbours' values are rescaled from their tile's step. Values
/// outside the slice and of tiles without a plane count as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Predictor {
    /// Zero.
    #[default]
    None,
    /// The value to the left of the tile in the same row.
    Left,
    /// The value above the tile in the same column.
    Top,
    /// The mean of the tile to the left over the same row.
    RowMean,
    /// The mean of the tile above over the same column.
    ColMean,
    /// (a left + b top + c) / 64 with the tensor's coefficients.
    Linear,
    /// The row this many rows above the tile's first.
    Row(u16),
    /// A row of the tensor's dictionary.
    Dictionary(u8),
    /// One value.
    Constant(i16),
    /// Outer product of a column and a row over 16; 16x16 only.
    RankOne([i8; TILE], [i8; TILE]),
}

impl Predictor {
    /// Code in a tile header.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Left => 1,
            Self::Top => 2,
            Self::RowMean => 3,
            Self::ColMean => 4,
            Self::Linear => 5,
            Self::Row(_) => 6,
            Self::Dictionary(_) => 7,
            Self::Constant(_) => 8,
            Self::RankOne(..) => 9,
        }
    }
}

/// Largest `coarse`: a quantiser's step is at most 2^7.75 of the plane's.
pub const MAX_COARSE: u8 = 31;
/// Largest magnitude of constants and palette values, which is that of planes.
pub const MAX_PLANE: i16 = 127;

/// Transform along one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Kernel {
    /// The identity.
    #[default]
    Identity = 0,
    /// DCT-II.
    Dct = 1,
    /// DST-VII.
    Dst = 2,
    /// Walsh-Hadamard in natural order.
    Hadamard = 3,
    /// The tensor's own 16-point orthogonal matrix; experimental.
    Learned = 4,
}

impl Kernel {
    /// Kernels that need no matrix of the tensor's own.
    pub const COMMON: [Self; 4] = [Self::Identity, Self::Dct, Self::Dst, Self::Hadamard];

    /// Kernel of a code 0..=4.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Identity),
            1 => Some(Self::Dct),
            2 => Some(Self::Dst),
            3 => Some(Self::Hadamard),
            4 => Some(Self::Learned),
            _ => None,
        }
    }
}

/// Separable transform of a tile, in square blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transform {
    /// Kernel over the row index: down each column.
    pub down: Kernel,
    /// Kernel over the column index: along each row.
    pub along: Kernel,
    /// Side of the blocks: 16, 8 or 4.
    pub side: u8,
}

impl Default for Transform {
    fn default() -> Self {
        Self { down: Kernel::Identity, along: Kernel::Identity, side: 16 }
    }
}

impl Transform {
    /// True for the identity.
    pub const fn is_identity(self) -> bool {
        matches!((self.down, self.along), (Kernel::Identity, Kernel::Identity))
    }
}

/// Band of the coefficient in `row` and `col` of a tile: a * 6 + b, where a and b are 0 in a dimension without
/// transform, else 1 + the number of bits of the position in its block.
#[inline]
pub fn band(transform: Transform, row: usize, col: usize) -> usize {
    let side = usize::from(transform.side);
    let part = |kernel: Kernel, n: usize| match kernel {
        Kernel::Identity => 0,
        _ => 1 + (usize::BITS - (n % side).leading_zeros()) as usize,
    };
    part(transform.down, row) * 6 + part(transform.along, col)
}

/// Number of [`band`]s.
pub const BANDS: usize = 36;
