//! Header and slice table of a coded tensor: fixed fields, little endian (section 2 of
//! `docs/BITSTREAM.md`).
//!
//! ```text
//!  0  "WFT1"             4  magic and version
//!  4  dtype              1  0 bf16, 1 f16, 2 f32, 3 e4m3, 4 e5m2, 5 byte, 6 nibble
//!  5  lanes              1  log2 of the number of interleaved rANS states, 0..=6
//!  6  slice_rows / 8     2  1..=128
//!  8  rows               4
//! 12  cols               4
//! 16  step_base          2  eighths of an octave, signed
//! 18  sigma_base        2  quarter octaves over the step base, signed
//! 20  tools              4  bits of `Tools`
//! 24  side_bytes         4  length of the side information
//! 28  tensor digest     16  BLAKE3 of the decoded bytes, truncated
//! 44  slice table           for each slice: length 4, check 8
//!     header check       8  BLAKE3 of everything before it and of the side information, truncated
//!     side information      one rANS stream
//!     slices
//! ```

use crate::error::{CodecError, Part, Result};
use crate::format::Dtype;
use crate::scale::SigmaIndex;
use crate::syntax::tools::Tools;

/// First four bytes: name and bitstream version (1, a draft until the specification is final).
pub const MAGIC: [u8; 4] = *b"WFT1";
/// Largest number of rows or columns of a tensor.
pub const MAX_SIDE: u32 = 1 << 24;
/// Largest number of weights of a slice, which a decoder holds at once.
pub const MAX_SLICE_WEIGHTS: u64 = 1 << 22;
/// Largest number of bytes of side information.
pub const MAX_SIDE_BYTES: usize = 1 << 26;
/// Largest number of weights of a tensor.
pub const MAX_WEIGHTS: u64 = 1 << 33;

/// Fixed fields and slice table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type of the decoded tensor.
    pub dtype: Dtype,
    /// Interleaved rANS states of a slice.
    pub lanes: usize,
    /// Rows of every slice but the last.
    pub slice_rows: usize,
    /// Rows of the tensor.
    pub rows: usize,
    /// Columns of the tensor.
    pub cols: usize,
    /// Scale index that tile, row and column indices add to, in eighths of an octave.
    pub step_base: i32,
    /// Sigma index that tile, row and column indices add to: quarter octaves over the base step.
    pub sigma_base: SigmaIndex,
    /// Tools of the tensor.
    pub tools: Tools,
    /// Bytes of side information.
    pub side_bytes: usize,
    /// Digest of the decoded bytes.
    pub digest: [u8; 16],
    /// Length and check of every slice.
    pub slices: Vec<(u32, u64)>,
}

/// First eight bytes of BLAKE3 as an integer.
pub fn check_of(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|p| {
        hasher.update(p);
    });
    let hash = hasher.finalize();
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("32 bytes"))
}

/// Check of a slice: XXH3. A cryptographic digest would take a seventh of the time of decoding the slice.
pub fn slice_check(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// First sixteen bytes of BLAKE3, as tensor digests have them.
pub(crate) fn truncate(digest: &blake3::Hasher) -> [u8; 16] {
    digest.finalize().as_bytes()[..16].try_into().expect("32 bytes")
}

/// Number of slices of `rows` rows.
pub fn slice_count(rows: usize, slice_rows: usize) -> usize {
    rows.div_ceil(slice_rows)
}

/// Checks that a slice is not larger than the limit.
///
/// # Errors
/// When it is.
pub fn check_slice(rows: usize, cols: usize, slice_rows: usize) -> Result<()> {
    match rows.min(slice_rows) as u64 * cols as u64 {
        0..=MAX_SLICE_WEIGHTS => Ok(()),
        found => Err(CodecError::Field { field: "weights of a slice", found: found as i64, expected: "at most 2^22" }),
    }
}

impl Header {
    /// Bytes of the header with its check.
    pub fn bytes(slices: usize) -> usize {
        FIXED + slices * 12 + 8
    }

    /// Writes the header and its check, which covers `side` too.
    pub fn write(&self, side: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::bytes(self.slices.len()));
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[self.dtype as u8, self.lanes.ilog2() as u8]);
        out.extend_from_slice(&((self.slice_rows / UNIT_ROWS) as u16).to_le_bytes());
        out.extend_from_slice(&(self.rows as u32).to_le_bytes());
        out.extend_from_slice(&(self.cols as u32).to_le_bytes());
        out.extend_from_slice(&(self.step_base as i16).to_le_bytes());
        out.extend_from_slice(&(self.sigma_base as i16).to_le_bytes());
        out.extend_from_slice(&self.tools.0.to_le_bytes());
        out.extend_from_slice(&(self.side_bytes as u32).to_le_bytes());
        out.extend_from_slice(&self.digest);
        for (length, check) in &self.slices {
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&check.to_le_bytes());
        }
        let check = check_of(&[&out, side]);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads and checks the header at the start of a whole coded tensor; every limit and every
    /// length is checked before anything of that size is allocated.
    ///
    /// # Errors
    /// Anything that the layout above does not allow.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let available = bytes.len() as u64;
        let truncated = |what, needed| CodecError::Truncated { what, needed, available };
        let fixed = bytes.get(..FIXED).ok_or(truncated("header", FIXED as u64))?;
        let field = |at: usize, n: usize| {
            fixed[at..at + n].iter().rev().fold(0u32, |value, &byte| value << 8 | u32::from(byte))
        };
        if fixed[..4] != MAGIC {
            return Err(CodecError::Magic { found: fixed[..4].try_into().expect("four bytes") });
        }
        let within = |name, value: u32, low: u32, high: u32, expected| {
            if (low..=high).contains(&value) {
                Ok(value as usize)
            } else {
                Err(CodecError::Field { field: name, found: value.into(), expected })
            }
        };
        let tools = Tools(field(20, 4)).check()?;
        let unknown = CodecError::Field { field: "dtype", found: fixed[4].into(), expected: "0..=6" };
        let dtype = Dtype::from_code(fixed[4]).ok_or(unknown)?;
        if dtype == Dtype::Nibble && field(12, 4) % 2 == 1 {
            let expected = "an even number of nibbles";
            return Err(CodecError::Field { field: "cols", found: field(12, 4).into(), expected });
        }
        let lanes = 1 << within("log2 of lanes", field(5, 1), 0, 6, "0..=6")?;
        let slice_rows = within("slice rows / 8", field(6, 2), 1, 128, "1..=128")? * UNIT_ROWS;
        if !slice_rows.is_multiple_of(tools.tile()) {
            let expected = "a multiple of the tile's side";
            return Err(CodecError::Field { field: "slice rows", found: slice_rows as i64, expected });
        }
        let rows = within("rows", field(8, 4), 0, MAX_SIDE, "0..=2^24")?;
        let cols = within("cols", field(12, 4), 0, MAX_SIDE, "0..=2^24")?;
        if rows as u64 * cols as u64 > MAX_WEIGHTS {
            let found = (rows as u64 * cols as u64) as i64;
            return Err(CodecError::Field { field: "weights", found, expected: "at most 2^33" });
        }
        check_slice(rows, cols, slice_rows)?;
        let count = if cols == 0 { 0 } else { slice_count(rows, slice_rows) };
        let end = Self::bytes(count);
        let side_bytes = field(24, 4) as usize;
        if side_bytes > MAX_SIDE_BYTES {
            let found = side_bytes as i64;
            return Err(CodecError::Field { field: "side bytes", found, expected: "at most 2^26" });
        }
        let needed = end as u64 + side_bytes as u64;
        if available < needed {
            return Err(truncated("slice table and side information", needed));
        }
        let found = u64::from_le_bytes(bytes[end - 8..end].try_into().expect("eight bytes"));
        let computed = check_of(&[&bytes[..end - 8], &bytes[end..end + side_bytes]]);
        if found != computed && !cfg!(fuzzing) {
            return Err(CodecError::Check { part: Part::Header, found, computed });
        }
        let slices: Vec<(u32, u64)> = bytes[FIXED..end - 8]
            .chunks_exact(12)
            .map(|entry| {
                let (length, check) = entry.split_at(4);
                let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
                (length, u64::from_le_bytes(check.try_into().expect("eight bytes")))
            })
            .collect();
        let needed = needed + slices.iter().map(|s| u64::from(s.0)).sum::<u64>();
        if available != needed {
            return Err(truncated("whole coded tensor", needed));
        }
        Ok(Self {
            dtype,
            lanes,
            slice_rows,
            rows,
            cols,
            step_base: i32::from(field(16, 2) as u16 as i16),
            sigma_base: i32::from(field(18, 2) as u16 as i16),
            tools,
            side_bytes,
            digest: fixed[28..44].try_into().expect("sixteen bytes"),
            slices,
        })
    }
}

const FIXED: usize = 44;

/// Slices have a multiple of this many rows.
const UNIT_ROWS: usize = 8;
