//! The columns of a slice, a block of them after the other.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use waterfill_codec::{Result, dispatch};

use super::column::ColumnCoder;
use super::input::{BLOCK, LdlqInput};

/// A slice with its first columns quantized.
pub(super) struct Slice<'a> {
    input: &'a LdlqInput<'a>,
    rows: Range<usize>,
    coder: ColumnCoder<'a>,
    /// The factor that spreads errors over rows, row-major, of the whole matrix.
    upper: Option<&'a [f32]>,
    /// Errors, decoded value less weight; column by column.
    errors: Vec<f32>,
    /// Row-major.
    samples: Vec<i16>,
    /// Column by column, of a block.
    targets: Vec<f32>,
}

impl<'a> Slice<'a> {
    /// # Errors
    /// Scales out of range.
    pub fn new(input: &'a LdlqInput<'a>, rows: Range<usize>, upper: Option<&'a [f32]>) -> Result<Self> {
        let (count, cols) = (rows.len(), input.plan.cols);
        Ok(Self {
            coder: ColumnCoder::new(input, rows.clone(), upper)?,
            errors: vec![0.0; count * cols],
            samples: vec![0; count * cols],
            targets: vec![0.0; count * BLOCK],
            input,
            rows,
            upper,
        })
    }

    /// Row-major samples, and steps of tiles in raster order.
    pub fn finish(self) -> (Vec<i16>, Vec<i16>) {
        (self.samples, self.coder.tile_steps().to_vec())
    }

    /// Quantizes the `n`-th block of columns, after those before. With feedback over rows, `above` holds the errors of each
    /// slice above in these columns, column by column; returns those of this slice.
    pub fn block(&mut self, n: usize, above: &[Vec<f32>]) -> Vec<f32> {
        let (cols, count) = (self.input.plan.cols, self.rows.len());
        let first = n * BLOCK;
        let width = BLOCK.min(cols - first);
        let weights = &self.input.weights[self.rows.start * cols..self.rows.end * cols];
        let mut seen = self.added(above, width);
        for (j, target) in self.targets.chunks_exact_mut(count).take(width).enumerate() {
            target.iter_mut().zip(weights.chunks_exact(cols)).for_each(|(t, row)| *t = row[first + j]);
        }
        let mut at = first;
        // A block of columns may lie in several diagonal blocks of the factor.
        while at < first + width {
            let block = self.input.factor.block(at);
            let end = block.as_ref().map_or(usize::MAX, |(range, _)| range.end).min(first + width);
            if let Some((range, upper)) = &block
                && at > range.start
            {
                let (side, before) = (range.len(), at - range.start);
                let into = &mut self.targets[(at - first) * count..(end - first) * count];
                matmul(
                    MatMut::from_column_major_slice_mut(into, count, end - at),
                    Accum::Add,
                    MatRef::from_column_major_slice(&self.errors[range.start * count..at * count], count, before),
                    MatRef::from_row_major_slice(&upper[..before * side], before, side)
                        .get(.., before..before + end - at),
                    -1.0f32,
                    Par::Seq,
                );
            }
            for col in at..end {
                self.coder.fit_steps(col, &self.targets[(col - first) * count..width * count]);
                let (target, rest) = self.targets[(col - first) * count..].split_at_mut(count);
                let error = &mut self.errors[col * count..][..count];
                let at = seen.get_mut((col - first) * count..(col + 1 - first) * count).unwrap_or_default();
                self.coder.column(col, target, weights, (&mut *error, at), &mut self.samples);
                let Some((range, upper)) = &block else { continue };
                let factors = &upper[(col - range.start) * range.len()..][col + 1 - range.start..end - range.start];
                dispatch(
                    #[inline(always)]
                    || {
                        for (later, &factor) in rest.chunks_exact_mut(count).zip(factors) {
                            later.iter_mut().zip(&*error).for_each(|(t, e)| *t -= e * factor);
                        }
                    },
                );
            }
            at = end;
        }
        seen
    }

    /// Additions of the slices above to a block of columns, column by column.
    fn added(&self, above: &[Vec<f32>], width: usize) -> Vec<f32> {
        let Some(upper) = self.upper else { return Vec::new() };
        let (count, all) = (self.rows.len(), self.input.plan.rows);
        let factors = MatRef::from_row_major_slice(upper, all, all);
        let mut added = vec![0.0f32; count * width];
        let mut from = 0;
        for errors in above {
            let before = errors.len() / width;
            matmul(
                MatMut::from_column_major_slice_mut(&mut added, count, width),
                Accum::Add,
                factors.get(from..from + before, self.rows.clone()).transpose(),
                MatRef::from_column_major_slice(errors, before, width),
                1.0f32,
                Par::Seq,
            );
            from += before;
        }
        added
    }
}
