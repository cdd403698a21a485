//! Coding tools: the syntax elements that a tensor has (section 2 of `docs/BITSTREAM.md`). A tool that no tile uses
//! costs no bits.

use crate::error::{CodecError, Result};

/// A set of tools, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tools(pub u32);

impl Tools {
    /// All tiles are alike; the one tile header is in the side information.
    pub const UNIFORM: Self = Self(1);
    /// Tiles have steps of their own.
    pub const STEPS: Self = Self(1 << 1);
    /// Tiles have sigma indices of their own.
    pub const SIGMAS: Self = Self(1 << 2);
    /// Some tiles are skipped, have a palette, or are in bit planes.
    pub const MODES: Self = Self(1 << 3);
    /// Some tiles are predicted.
    pub const PREDICTORS: Self = Self(1 << 4);
    /// Some tiles quantise more coarsely than their plane.
    pub const COARSE: Self = Self(1 << 5);
    /// Some tiles are transformed.
    pub const TRANSFORMS: Self = Self(1 << 6);
    /// Groups of tiles share headers.
    pub const MERGE: Self = Self(1 << 7);
    /// Levels to the left refine a level's class.
    pub const NEIGHBOURS: Self = Self(1 << 8);
    /// Reconstruction points are not the middles of their intervals.
    pub const CENTROIDS: Self = Self(1 << 9);
    /// The tensor has a dictionary of rows.
    pub const DICTIONARY: Self = Self(1 << 10);
    /// The tensor has a transform of its own; experimental.
    pub const LEARNED: Self = Self(1 << 11);
    /// Planes are filtered after decoding; experimental.
    pub const FILTER: Self = Self(1 << 12);
    /// Tiles are not of 16x16: two bits, [`Tools::tile`]; experimental.
    const TILE_SHIFT: u32 = 13;
    /// The tensor has frequency tables of its own.
    pub const FREQUENCY_TABLES: Self = Self(1 << 15);
    /// The linear predictor's coefficients are given.
    pub const LINEAR: Self = Self(1 << 16);
    /// Levels depend on trellis states.
    pub const TRELLIS: Self = Self(1 << 17);
    /// The tensor refines the values of another.
    pub const REFINEMENT: Self = Self(1 << 19);
    /// Integer tiles have codes of a bit-shift trellis.
    pub const BIT_SHIFT: Self = Self(1 << 22);
    /// Raw bits of lossless elements are cut where they are always zero.
    pub const RESTS: Self = Self(1 << 23);
    /// Elements are symbols of a codebook times a scale of their group.
    pub const LATTICE: Self = Self(1 << 24);
    /// Bits of the tools that this version decodes.
    const KNOWN: u32 = ((1 << 18) - 1) | Self::REFINEMENT.0 | Self::BIT_SHIFT.0 | Self::RESTS.0 | Self::LATTICE.0;
    /// Tools of levels, which a tensor with a bit-shift trellis has none of.
    const OF_LEVELS: u32 = Self::MODES.0
        | Self::PREDICTORS.0
        | Self::COARSE.0
        | Self::TRANSFORMS.0
        | Self::NEIGHBOURS.0
        | Self::CENTROIDS.0
        | Self::DICTIONARY.0
        | Self::LEARNED.0
        | Self::FILTER.0
        | 3 << Self::TILE_SHIFT
        | Self::LINEAR.0
        | Self::TRELLIS.0;
    /// Tools that other bits are reserved for.
    const RESERVED: [(u32, &'static str); 3] =
        [(18, "a rotation"), (20, "a low-rank residual"), (21, "prediction from a base tensor")];

    /// True if all of `other` are in the set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds `other` when `used`.
    pub fn add(&mut self, other: Self, used: bool) {
        self.0 |= if used { other.0 } else { 0 };
    }

    /// Side of a tile: 16, 8, 32 or 64.
    pub const fn tile(self) -> usize {
        [16, 8, 32, 64][(self.0 >> Self::TILE_SHIFT & 3) as usize]
    }

    /// Sets the side of a tile.
    pub fn set_tile(&mut self, side: usize) {
        let code = [16, 8, 32, 64].iter().position(|&s| s == side).unwrap_or(0) as u32;
        self.0 = self.0 & !(3 << Self::TILE_SHIFT) | code << Self::TILE_SHIFT;
    }

    /// The set, if this version decodes all of it.
    ///
    /// # Errors
    /// [`CodecError::UnsupportedTool`] where reserved bits are set: a later version wrote the tensor; tools that exclude each other.
    pub fn check(self) -> Result<Self> {
        let later = self.0 & !Self::KNOWN;
        if later == 0 {
            let wrong = |expected| Err(CodecError::Field { field: "tools", found: self.0.into(), expected });
            if self.has(Self::BIT_SHIFT) && self.0 & Self::OF_LEVELS != 0 {
                return wrong("no tools of levels beside a bit-shift trellis");
            }
            let of_lattice = Self::LATTICE.0 | Self::UNIFORM.0 | Self::FREQUENCY_TABLES.0;
            if self.has(Self::LATTICE) && self.0 != of_lattice {
                return wrong("UNIFORM and FREQUENCY_TABLES, and no other tool, beside a lattice");
            }
            return Ok(self);
        }
        let known = Self::RESERVED.iter().find(|(bit, _)| *bit == later.trailing_zeros());
        Err(CodecError::UnsupportedTool { tool: known.map_or("an unknown tool", |(_, tool)| tool), bits: self.0 })
    }
}
