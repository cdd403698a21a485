//! Syntax of the prefix of a floating-point number: exponent and leading bits of the fraction (sections 7.4 to 7.6 of
//! `docs/BITSTREAM.md`), and the tables that a tensor's prefixes are coded under.

use crate::entropy::tables::{ESCAPE, FP4_TABLE, PREFIX_FIRST, PREFIX_OCTAVES, PREFIX_ZERO, Tables, prefix_table};
use crate::format::{Dtype, Format};
use crate::scale::SigmaIndex;
use crate::syntax::rests::Rests;
use crate::syntax::sample::SampleCoder;
use crate::syntax::tensor_plan::TensorPlan;

/// Static tables of a tensor: its own, or the fixed ones.
pub struct EntropyTables {
    tables: Tables,
    dtype: Dtype,
}

impl EntropyTables {
    /// Builds the tables of a plan.
    pub fn new(plan: &TensorPlan) -> Self {
        let mut tables = Tables::default();
        plan.parameters.frequency_tables.iter().for_each(|t| tables.push(t));
        Self { tables, dtype: plan.sample_dtype() }
    }

    /// Model of the elements of lossless tiles; `None` for bytes and nibbles without tables.
    pub fn lossless(&self) -> Option<FloatPrefixModel<'_>> {
        match (self.tables.len(), self.dtype) {
            (0, Dtype::Byte | Dtype::Nibble) => None,
            (0, _) => Some(FloatPrefixModel::fixed(self.dtype)),
            (count, _) => Some(FloatPrefixModel::new(&self.tables, 0, count, self.dtype)),
        }
    }

    /// Model of the magnitudes of a small floating-point format's codes.
    pub fn codes(format: Format) -> FloatPrefixModel<'static> {
        match format {
            Format::Fp8 => FloatPrefixModel::fixed(Dtype::E4M3),
            Format::Fp8E5M2 => FloatPrefixModel::fixed(Dtype::E5M2),
            _ => FloatPrefixModel::new(Tables::fixed(), FP4_TABLE, 1, Dtype::Nibble),
        }
    }
}

/// Model of float prefixes: tables, and the prefix that each symbol stands for.
#[derive(Clone, Copy)]
pub struct FloatPrefixModel<'a> {
    tables: &'a Tables,
    /// First table.
    base: usize,
    /// Number of tables: one, four by quarter octave, or for plain symbols one for each column modulo their number.
    count: usize,
    dtype: Dtype,
    bias: i32,
    leading: u32,
}

impl<'a> FloatPrefixModel<'a> {
    /// The fixed tables; types with an exponent.
    pub fn fixed(dtype: Dtype) -> Self {
        let leading = dtype.layout().map_or(3, |l| l.leading);
        Self::new(Tables::fixed(), prefix_table(leading, 0), 4, dtype)
    }

    /// `count` tables of a tensor, from the table `base` on.
    pub fn new(tables: &'a Tables, base: usize, count: usize, dtype: Dtype) -> Self {
        let (bias, leading) = dtype.layout().map_or((0, 0), |l| (l.bias, l.leading));
        Self { tables, base, count, dtype, bias, leading }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(crate) fn tables(&self) -> &'a Tables {
        self.tables
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// For each table and symbol: bit 24 set where it occurs, frequency - 1 (12 bits), start (12).
    pub(crate) fn packed_intervals(&self) -> Vec<u32> {
        let pack = |i: usize| match self.tables.interval(self.base + (i >> 8), i as u8) {
            (_, 0) => 0,
            (start, freq) => 1 << 24 | (freq - 1) << 12 | start,
        };
        (0..self.count << 8).map(pack).collect()
    }

    /// Table, and prefix of the symbol [`PREFIX_FIRST`] (0 for plain symbols), of an element in column `col` with
    /// sigma index `sigma`.
    #[inline]
    pub(crate) fn context(&self, sigma: SigmaIndex, col: usize) -> (usize, i32) {
        if self.leading == 0 {
            return (self.base + col % self.count, 0);
        }
        let table = self.base + (sigma & (self.count as i32 - 1)) as usize;
        (table, ((sigma >> 2) + self.bias - PREFIX_OCTAVES) << self.leading)
    }

    /// Symbol of a prefix, [`ESCAPE`] where it has none.
    #[inline]
    pub fn symbol(&self, table: usize, origin: i32, prefix: u32) -> u8 {
        let symbol = self.symbol_of_any(origin, prefix);
        if self.tables.interval(table, symbol).1 > 0 { symbol } else { ESCAPE }
    }

    /// Symbol of a prefix if all symbols occurred.
    #[inline]
    pub(crate) fn symbol_of_any(&self, origin: i32, prefix: u32) -> u8 {
        if self.leading == 0 {
            return prefix as u8;
        }
        let symbol = prefix as i32 - origin + PREFIX_FIRST;
        let symbol = if (PREFIX_FIRST..256).contains(&symbol) { symbol } else { i32::from(ESCAPE) };
        (if prefix == 0 { i32::from(PREFIX_ZERO) } else { symbol }) as u8
    }

    /// Codes the prefix of a sample in column `col` with sigma index `sigma`.
    #[inline]
    pub fn code_prefix<S: SampleCoder>(
        &self,
        coder: &mut S,
        lane: usize,
        col: usize,
        sigma: SigmaIndex,
        prefix: u32,
    ) -> u32 {
        let (table, origin) = self.context(sigma, col);
        let symbol = coder.symbol(self.tables, table, lane, self.symbol(table, origin, prefix));
        self.prefix_of(coder, origin, symbol, prefix)
    }

    /// Head of a symbol; `prefix` is what an encoder escapes.
    #[inline]
    pub(crate) fn prefix_of<S: SampleCoder>(&self, coder: &mut S, origin: i32, symbol: u8, prefix: u32) -> u32 {
        match symbol {
            _ if self.leading == 0 => u32::from(symbol),
            ESCAPE => self.code_escape(coder, origin, prefix),
            PREFIX_ZERO => 0,
            _ => (i32::from(symbol) - PREFIX_FIRST + origin) as u32 & ((1 << self.dtype.prefix_bits()) - 1),
        }
    }

    /// Codes an escaped prefix: octaves below the tables' range in unary (each is half as likely as the one above)
    /// and the leading bits; after [`MOST_OCTAVES`] ones the prefix itself.
    #[cold]
    pub(crate) fn code_escape<S: SampleCoder>(&self, coder: &mut S, origin: i32, prefix: u32) -> u32 {
        let (k, mask) = (self.leading, (1 << self.dtype.prefix_bits()) - 1);
        let below = (origin >> k) - 1 - (prefix >> k) as i32;
        let below = if (0..MOST_OCTAVES).contains(&below) { below } else { MOST_OCTAVES };
        let mut octaves = 0;
        while octaves < MOST_OCTAVES && coder.escape(1, u32::from(octaves < below)) == 1 {
            octaves += 1;
        }
        if octaves == MOST_OCTAVES {
            return coder.escape(self.dtype.prefix_bits(), prefix);
        }
        let octave = ((origin >> k) - 1 - octaves) as u32;
        (octave << k | coder.escape(k, prefix & ((1 << k) - 1))) & mask
    }

    /// Codes the bit pattern of an element: prefix, then raw bits, fewer where [`Rests`] say so for its row.
    #[inline]
    pub fn code_pattern<S: SampleCoder>(
        &self,
        coder: &mut S,
        lane: usize,
        (col, sigma): (usize, SigmaIndex),
        rests: Option<(&Rests, usize)>,
        pattern: u32,
    ) -> u32 {
        let (prefix, rest) = self.dtype.split(pattern);
        let Some((rests, row)) = rests else {
            let prefix = self.code_prefix(coder, lane, col, sigma, prefix);
            return self.dtype.join(prefix, coder.raw(self.dtype.raw_bits(), rest));
        };
        let (table, origin) = self.context(sigma, col);
        // The symbol of a prefix of zeros stands for an element of zeros.
        let other = prefix == 0 && !rests.is_zero(self.dtype, pattern);
        let symbol = if other { ESCAPE } else { self.symbol(table, origin, prefix) };
        let symbol = coder.symbol(self.tables, table, lane, symbol);
        let width = if symbol == PREFIX_ZERO { rests.signed_zeros.into() } else { rests.width(self.dtype, row) };
        let cut = self.dtype.raw_bits() - width;
        let rest = coder.raw(width, rest >> cut) << cut;
        self.dtype.join(self.prefix_of(coder, origin, symbol, prefix), rest)
    }
}

/// Code lengths of prefixes, for estimates.
pub struct FloatPrefixCosts<'a> {
    model: FloatPrefixModel<'a>,
    /// By table and symbol.
    bits: Vec<f32>,
}

impl<'a> FloatPrefixCosts<'a> {
    /// Code lengths under a model.
    pub fn new(model: FloatPrefixModel<'a>) -> Self {
        let symbols = 0..model.count << 8;
        let bits = symbols.map(|i| model.tables.cost(model.base + (i >> 8), i as u8)).collect();
        Self { model, bits }
    }

    /// Bits of a prefix with sigma index `sigma`, and of the raw bits of its element.
    #[inline]
    pub fn bits(&self, sigma: SigmaIndex, prefix: u32) -> f32 {
        let (table, origin) = self.model.context(sigma, 0);
        let symbol = self.model.symbol(table, origin, prefix);
        let escape = if symbol == ESCAPE { ESCAPE_BITS } else { 0.0 };
        self.bits[(table - self.model.base) << 8 | usize::from(symbol)] + escape + self.model.dtype.raw_bits() as f32
    }
}

/// Approximate bits after an escape.
const ESCAPE_BITS: f32 = 5.0;

/// Octaves that an escaped prefix may lie below the tables' range in unary code.
const MOST_OCTAVES: i32 = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syntax::sample::{SampleDecoder, SampleEncoder};

    #[test]
    fn every_head_survives_under_every_class() {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::E4M3, Dtype::E5M2] {
            let model = FloatPrefixModel::fixed(dtype);
            for class in (-200..200).step_by(7) {
                let prefixes = || 0..1u32 << dtype.prefix_bits();
                let mut encoder = SampleEncoder::default();
                prefixes().for_each(|h| assert_eq!(model.code_prefix(&mut encoder, 0, 0, class, h), h));
                let (lanes, bits, escapes) = (encoder.lanes.finish(1), encoder.bits.finish(), encoder.escapes.finish());
                let mut decoder = SampleDecoder::new(&lanes, 1, &bits, &escapes);
                prefixes()
                    .for_each(|h| assert_eq!(model.code_prefix(&mut decoder, 0, 0, class, 0), h, "{dtype:?} {class}"));
                assert!(decoder.finish());
            }
        }
    }
}
