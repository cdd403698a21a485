//! What lossless coding found out about a tensor, in words.

use crate::decoder::CodedTensor;
use crate::format::Dtype;
use crate::syntax::lattice::Book;

impl CodedTensor<'_> {
    /// What the elements were before they got this type, as far as coding makes use of it; `None` of plain ones.
    pub fn structure(&self) -> Option<String> {
        let (header, parameters) = (self.header(), &self.plan().parameters);
        if let Some(lattice) = &parameters.lattice {
            let used = |table: &[u16; 256]| table.iter().filter(|&&f| f > 0).count();
            let levels = parameters.frequency_tables.iter().map(used).max().unwrap_or(0);
            let bits = usize::BITS - levels.saturating_sub(1).leading_zeros();
            let offset = if lattice.offset_bits.is_some() { " over an offset" } else { "" };
            let (book, was) = match &lattice.book {
                Book::Integers => (format!("{levels} levels{offset}"), format!("{bits}-bit")),
                Book::E4M3 => ("codes".into(), "FP8 E4M3".into()),
                Book::E5M2 => ("codes".into(), "FP8 E5M2".into()),
            };
            let [rows, cols] = lattice.group;
            let group = match (rows >= header.rows, cols >= header.cols, rows) {
                (true, true, _) => "with one scale".into(),
                (true, false, _) if cols == 1 => "by column".into(),
                (false, true, 1) => "by row".into(),
                (_, _, 1) => format!("in groups of {cols}"),
                _ => format!("in blocks of {rows} x {cols}"),
            };
            return Some(format!("lattice of {book} {group}: was {was}"));
        }
        let rests = parameters.rests.as_ref()?;
        let rows = rests.rows.iter().filter(|&&r| r > 0).count();
        let narrow = match (header.dtype, rests.cut) {
            (Dtype::F32, 16..) => Some("bf16 values in f32".into()),
            (Dtype::F32, 13..) => Some("f16 values in f32".into()),
            (_, 1..) => Some(format!("{} low bits are zero", rests.cut)),
            _ if rows > 0 => Some(format!("low bits are zero in {rows} of {} rows", header.rows)),
            _ => None,
        };
        Some(narrow.unwrap_or_else(|| "many zeros".into()))
    }
}
