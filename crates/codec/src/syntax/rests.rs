//! Raw bits of lossless elements that are always zero (section 7.5 of `docs/BITSTREAM.md`): those of narrower types in
//! wider ones, and those of zeros.

use crate::format::Dtype;

/// Low bits of elements that are zero and are not coded. An element that is zero has none of its raw bits, or its sign alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rests {
    /// Low bits that are zero in every element, 0 to 31.
    pub cut: u8,
    /// True if zeros have signs; else minus zero is an escape.
    pub signed_zeros: bool,
    /// Further ones of the elements of each row, 0 to 127, or empty for none.
    pub rows: Vec<i8>,
}

impl Rests {
    /// Raw bits of the elements of a row; the sign is always one of them.
    #[inline]
    pub fn width(&self, dtype: Dtype, row: usize) -> u32 {
        let own = self.rows.get(row).map_or(0, |&cut| cut.max(0) as u32);
        let cut = u32::from(self.cut) + own;
        dtype.raw_bits() - cut.min(dtype.raw_bits().saturating_sub(1))
    }

    /// True for the patterns that the symbol of a prefix of zeros stands for.
    #[inline]
    pub(crate) fn is_zero(&self, dtype: Dtype, pattern: u32) -> bool {
        pattern == 0 || self.signed_zeros && pattern == 1 << (dtype.bits() - 1)
    }
}
