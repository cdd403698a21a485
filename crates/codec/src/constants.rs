//! Normative numbers that more than one layer needs.

/// Side of a tile, in weights.
pub const TILE: usize = 16;
/// Most weights of a tile: experimental tiles have sides of up to 64.
pub const MAX_TILE: usize = 64 * 64;
/// Most samples of a block, which is a band of rows by the columns of a tile.
pub const MAX_BLOCK: usize = 64 * 64;
/// Rows of a band: consecutive samples of a column that have rANS lanes of their own.
pub const BAND: usize = 32;
/// Most lanes of an interleaved rANS stream: two columns of a band.
pub const MAX_LANES: usize = 2 * BAND;
/// Smallest normalised state of a lane.
pub const LANE_LOWER: u32 = 1 << 16;
/// Bits of a probability in interleaved rANS.
pub const LANE_PROB_BITS: u32 = 12;
/// Sum of the frequencies of a static table.
pub const LANE_PROB_ONE: u32 = 1 << LANE_PROB_BITS;
