//! Number formats of packed tiles, and how their bits lie.

use waterfill_codec::{Dtype, Format, TILE, TileMode, TilePlan};

/// Weights of a tile.
pub(super) const WEIGHTS: usize = TILE * TILE;

/// Names of codes of a bit-shift trellis, by their bits and 7.
const TRELLIS_NAMES: [&str; 8] =
    ["trellis8", "trellis1", "trellis2", "trellis3", "trellis4", "trellis5", "trellis6", "trellis7"];

/// Number format of the tiles of a bucket. Integer levels are in two's complement and as wide as the tile's largest level
/// needs, whatever format they were coded in.
///
/// A level of `w` bits lies in planes: `w = 2, 4, 8` in one, of its bits; 3 in one of its lower two bits and one of its
/// sign; 5 and 6 in one of its lower four bits and one of the rest; 7 in those of the lower six and one of its sign. A plane
/// of `b` bits has those of element `i` from bit `i b mod 8` of byte `i b / 8` on, and the planes of a tile follow each
/// other: `32 w` bytes a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// Levels -2 to 1: 64 bytes a tile.
    Int2,
    /// Levels -4 to 3: 96 bytes.
    Int3,
    /// Levels -8 to 7, the first of two in the lower half of a byte: 128 bytes.
    Int4,
    /// Levels -16 to 15: 160 bytes.
    Int5,
    /// Levels -32 to 31: 192 bytes.
    Int6,
    /// Levels -64 to 63: 224 bytes.
    Int7,
    /// Levels -127 to 127: 256 bytes.
    Int8,
    /// Codes of this many bits, 1 to 8, of the tensor's bit-shift trellis, in planes as integers of as many bits: 32 bytes a
    /// tile for each bit.
    Trellis(u8),
    /// FP8 E4M3: 256 bytes.
    E4m3,
    /// FP8 E5M2: 256 bytes.
    E5m2,
    /// Elements of the tensor's own type, without scales: 512 or 1024 bytes.
    Plain(Dtype),
}

impl PackedFormat {
    /// Formats of integers, the narrowest first.
    pub const INTEGERS: [Self; 7] =
        [Self::Int2, Self::Int3, Self::Int4, Self::Int5, Self::Int6, Self::Int7, Self::Int8];

    /// Bits of a level; `None` where elements are no integers.
    pub const fn level_bits(self) -> Option<u32> {
        Some(match self {
            Self::Int2 => 2,
            Self::Int3 => 3,
            Self::Int4 => 4,
            Self::Int5 => 5,
            Self::Int6 => 6,
            Self::Int7 => 7,
            Self::Int8 => 8,
            Self::Trellis(_) | Self::E4m3 | Self::E5m2 | Self::Plain(_) => return None,
        })
    }

    /// Bits of a code of a bit-shift trellis; `None` where elements are no such codes.
    pub const fn code_bits(self) -> Option<u32> {
        if let Self::Trellis(bits) = self { Some(bits as u32) } else { None }
    }

    /// Bytes of a tile.
    pub const fn tile_bytes(self) -> usize {
        match self {
            Self::E4m3 | Self::E5m2 => WEIGHTS,
            Self::Plain(dtype) => WEIGHTS * dtype.bits() / 8,
            Self::Trellis(bits) => WEIGHTS / 8 * bits as usize,
            _ => match self.level_bits() {
                Some(bits) => WEIGHTS / 8 * bits as usize,
                None => 0,
            },
        }
    }

    /// Name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int2 => "int2",
            Self::Int3 => "int3",
            Self::Int4 => "int4",
            Self::Int5 => "int5",
            Self::Int6 => "int6",
            Self::Int7 => "int7",
            Self::Int8 => "int8",
            Self::Trellis(bits) => TRELLIS_NAMES[bits as usize & 7],
            Self::E4m3 => "fp8-e4m3",
            Self::E5m2 => "fp8-e5m2",
            Self::Plain(_) => "plain",
        }
    }

    /// Smallest and largest level; `None` where elements are no integers.
    pub const fn level_range(self) -> Option<(i32, i32)> {
        match self.level_bits() {
            Some(8) => Some((-127, 127)),
            Some(bits) => Some((-(1 << (bits - 1)), (1 << (bits - 1)) - 1)),
            None => None,
        }
    }

    /// The narrowest format that holds integers of this range.
    pub fn of_range(least: i32, most: i32) -> Self {
        let holds = |f: &&Self| f.level_range().is_some_and(|(from, to)| from <= least && most <= to);
        Self::INTEGERS.iter().find(holds).copied().unwrap_or(Self::Int8)
    }

    /// Packed form of a tile of a coded format; `None` for formats that are decoded to elements.
    pub(super) fn of(tile: &TilePlan, dtype: Dtype, values: &[i32; WEIGHTS]) -> Option<Self> {
        if let (TileMode::BitShift(bits), Some(_)) = (tile.mode, tile.format.level_range()) {
            return Some(Self::Trellis(bits));
        }
        match tile.format {
            Format::Int2 | Format::Int3 | Format::Int4 | Format::Int8 => {
                Some(Self::of_range(*values.iter().min()?, *values.iter().max()?))
            }
            Format::Fp8 => Some(Self::E4m3),
            Format::Fp8E5M2 => Some(Self::E5m2),
            Format::Lossless => Some(Self::Plain(dtype)),
            Format::Fp4 => None,
        }
    }

    /// Lowest bit and number of bits of each plane of a level.
    const fn planes(self) -> &'static [(u32, u32)] {
        match self {
            Self::Trellis(1) => &[(0, 1)],
            Self::Int2 | Self::Trellis(2) => &[(0, 2)],
            Self::Int3 | Self::Trellis(3) => &[(0, 2), (2, 1)],
            Self::Int4 | Self::Trellis(4) => &[(0, 4)],
            Self::Int5 | Self::Trellis(5) => &[(0, 4), (4, 1)],
            Self::Int6 | Self::Trellis(6) => &[(0, 4), (4, 2)],
            Self::Int7 | Self::Trellis(7) => &[(0, 4), (4, 2), (6, 1)],
            _ => &[(0, 8)],
        }
    }

    /// Appends a tile of 256 values, row-major: levels, codes or bit patterns.
    pub(super) fn pack(self, values: &[i32; WEIGHTS], out: &mut Vec<u8>) {
        if let Self::Plain(dtype) = self {
            values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()[..dtype.bytes()]));
            return;
        }
        for &(low, bits) in self.planes() {
            let part = |v: &i32| (v >> low & ((1 << bits) - 1)) as u8;
            let byte = |of: &[i32]| of.iter().rev().fold(0u8, |b, v| (u32::from(b) << bits) as u8 | part(v));
            out.extend(values.chunks_exact(8 / bits as usize).map(byte));
        }
    }

    /// Levels of a packed tile of integers, row-major.
    #[inline(always)]
    pub fn unpack(self, tile: &[u8]) -> [i8; WEIGHTS] {
        match self {
            Self::Int2 => unpack::<2, 0, 0>(tile),
            Self::Int3 => unpack::<2, 1, 0>(tile),
            Self::Int4 => unpack::<4, 0, 0>(tile),
            Self::Int5 => unpack::<4, 1, 0>(tile),
            Self::Int6 => unpack::<4, 2, 0>(tile),
            Self::Int7 => unpack::<4, 2, 1>(tile),
            _ => unpack::<8, 0, 0>(tile),
        }
    }

    /// Codes of a packed tile of a bit-shift trellis, row-major, from the row `first` on; zeros above it.
    #[inline(always)]
    pub fn unpack_codes(self, tile: &[u8], first: usize) -> [u8; WEIGHTS] {
        let first = first * TILE;
        match self {
            Self::Trellis(1) => unpack_bits::<1, 0, 0>(tile, first),
            Self::Trellis(2) => unpack_bits::<2, 0, 0>(tile, first),
            Self::Trellis(3) => unpack_bits::<2, 1, 0>(tile, first),
            Self::Trellis(4) => unpack_bits::<4, 0, 0>(tile, first),
            Self::Trellis(5) => unpack_bits::<4, 1, 0>(tile, first),
            Self::Trellis(6) => unpack_bits::<4, 2, 0>(tile, first),
            Self::Trellis(7) => unpack_bits::<4, 2, 1>(tile, first),
            _ => unpack_bits::<8, 0, 0>(tile, first),
        }
    }
}

/// Levels of `A + B + C` bits from planes of `A`, of `B` and of `C` bits.
#[inline(always)]
fn unpack<const A: usize, const B: usize, const C: usize>(tile: &[u8]) -> [i8; WEIGHTS] {
    let unused = 8 - A - B - C;
    unpack_bits::<A, B, C>(tile, 0).map(|bits| (bits << unused) as i8 >> unused)
}

/// Numbers of `A + B + C` bits from planes of `A`, of `B` and of `C` bits, from element `start` on; zeros before it.
#[inline(always)]
fn unpack_bits<const A: usize, const B: usize, const C: usize>(tile: &[u8], start: usize) -> [u8; WEIGHTS] {
    let (first, rest) = tile.split_at(WEIGHTS / 8 * A);
    let (second, third) = rest.split_at(WEIGHTS / 8 * B);
    let mut numbers = [0; WEIGHTS];
    for (i, number) in numbers.iter_mut().enumerate().skip(start) {
        *number = (part::<A>(first, i) | part::<B>(second, i) << A | part::<C>(third, i) << (A + B)) as u8;
    }
    numbers
}

/// Bits of element `i` in a plane of `N` bits.
#[inline(always)]
fn part<const N: usize>(plane: &[u8], i: usize) -> u32 {
    if N == 0 { 0 } else { u32::from(plane[i * N / 8]) >> (i * N % 8) & ((1 << N) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_packed_in_as_many_bits_as_they_need() {
        for format in PackedFormat::INTEGERS {
            let bits = format.level_bits().unwrap();
            let (least, most) = (-(1i32 << (bits - 1)), (1i32 << (bits - 1)) - 1);
            assert_eq!(PackedFormat::of_range(least.max(-127), most), format);
            let values: [i32; WEIGHTS] = std::array::from_fn(|i| least + (i as i32 * 7) % (most - least + 1));
            let mut bytes = Vec::new();
            format.pack(&values, &mut bytes);
            assert_eq!(bytes.len(), format.tile_bytes());
            assert_eq!(bytes.len() * 8, 256 * bits as usize);
            assert_eq!(format.unpack(&bytes).map(i32::from), values, "{format:?}");
        }
        assert_eq!(PackedFormat::of_range(0, 0), PackedFormat::Int2);
        assert_eq!(PackedFormat::of_range(-3, 4), PackedFormat::Int4);
        // As documented: the fifth bit of element 9 is bit 1 of byte 1 of the second plane.
        let mut bytes = Vec::new();
        PackedFormat::Int5.pack(&std::array::from_fn(|i| if i == 9 { -16 } else { 0 }), &mut bytes);
        assert_eq!(bytes.iter().position(|b| *b != 0), Some(128 + 1));
        assert_eq!(bytes[129], 2);
    }
}
