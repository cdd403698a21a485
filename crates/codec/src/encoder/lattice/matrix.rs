//! The elements of a tensor, and those of its groups.

use crate::encoder::statistics::pattern;
use crate::format::Dtype;

/// Row-major elements of a tensor of weights.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub dtype: Dtype,
    pub rows: usize,
    pub cols: usize,
    pub bytes: &'a [u8],
}

impl Matrix<'_> {
    #[inline]
    pub fn pattern(&self, i: usize) -> u32 {
        pattern(self.dtype, self.bytes, i)
    }

    #[inline]
    pub fn value(&self, row: usize, col: usize) -> f32 {
        self.dtype.value_of(self.pattern(row * self.cols + col))
    }

    /// Elements of a group, at most about `most`, spread evenly over its rows.
    pub fn group(&self, [row, col]: [usize; 2], [height, width]: [usize; 2], most: usize, out: &mut Vec<f32>) {
        out.clear();
        let (bottom, right) = ((row + height).min(self.rows), (col + width).min(self.cols));
        let stride = ((bottom - row) * (right - col)).div_ceil(most);
        let rows = stride.min(bottom - row);
        let cols = stride.div_ceil(rows);
        // Columns move on from row to row, so that none is left out.
        for (n, row) in (row..bottom).step_by(rows).enumerate() {
            out.extend((col + n % cols..right).step_by(cols).map(|col| self.value(row, col)));
        }
        if stride > 1 {
            // The largest decides which code it is.
            let all = (row..bottom).flat_map(|row| (col..right).map(move |col| self.value(row, col)));
            out.extend(all.max_by(|a, b| a.abs().total_cmp(&b.abs())));
        }
    }
}
