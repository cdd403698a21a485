//! Input Hessians and output-gradient covariances, as square blocks along the diagonal.

use ndarray::{Array1, Array2};

/// Input Hessian `H = E[x xᵀ]` of a linear layer, `[in, in]`: `H_jk = Σ_t w_t x_tj x_tk / Σ_t w_t` over tokens `t`,
/// with all `w_t` alike (GPTQ, Frantar et al. 2023) or `w_t` the energy of the output gradient (GuidedQuant, Kim et
/// al. 2025).
pub type Hessian = SymmetricBlocks;

/// Covariance `G = E[g gᵀ]` of a linear layer's output gradient, `[out, out]`, tokens weighted by the energy of the
/// input: the other factor of K-FAC (Martens & Grosse 2015).
pub type GradientCovariance = SymmetricBlocks;

/// Factors of a matrix' Fisher information, as far as they are known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Curvature<'a> {
    /// Input Hessian: errors of columns add up by it.
    pub hessian: Option<&'a Hessian>,
    /// Output-gradient covariance, in one block: errors of rows add up by it.
    pub gradient_covariance: Option<&'a GradientCovariance>,
}

/// A stored correlation of one.
pub const CORRELATION_ONE: f32 = 32767.0;

/// A symmetric positive semidefinite matrix, kept as square blocks along its diagonal (one when whole): the diagonal
/// in f32 and the correlations `h_ij / sqrt(h_ii h_jj)` in 16 bits.
///
/// A correlation `r` is stored as `round(32767 r)`: its error is at most 1.5e-5 whatever the scale of the inputs,
/// where f16 would overflow on the matrix itself and be off by 2^-12 near one.
#[derive(Debug, Clone)]
pub struct SymmetricBlocks {
    /// The diagonal, `[n]`.
    pub diagonal: Array1<f32>,
    /// Side of the blocks; the last may be smaller.
    pub side: usize,
    /// Correlations above the diagonals, row by row, block by block, over [`CORRELATION_ONE`].
    correlations: Vec<i16>,
}

impl SymmetricBlocks {
    /// From the diagonal `[n]` and the correlations above it, block by block and row by row, times
    /// [`CORRELATION_ONE`]; `None` when they are not as many as blocks of `side` have.
    pub fn new(diagonal: Vec<f32>, side: usize, correlations: Vec<i16>) -> Option<Self> {
        let this = Self { diagonal: Array1::from(diagonal), side, correlations };
        let expected = (0..this.blocks()).try_fold(0usize, |sum, n| {
            let side = this.range(n).len();
            sum.checked_add(side.checked_mul(side.checked_sub(1)?)? / 2)
        });
        (side > 0 && expected == Some(this.correlations.len())).then_some(this)
    }

    /// A whole symmetric matrix, its correlations rounded as those that are stored.
    ///
    /// # Panics
    /// When it is not square.
    pub fn from_dense(h: &Array2<f32>) -> Self {
        assert_eq!(h.nrows(), h.ncols(), "a symmetric matrix");
        let diagonal = h.diag().to_owned();
        let inverse = diagonal.mapv(|d| if d > 0.0 { 1.0 / d.sqrt() } else { 0.0 });
        let correlation = |i: usize, j: usize| {
            (h[[i, j]] * inverse[i] * inverse[j] * CORRELATION_ONE).round().clamp(-CORRELATION_ONE, CORRELATION_ONE)
        };
        let side = h.nrows();
        let above = (0..side).flat_map(|i| (i + 1..side).map(move |j| (i, j)));
        let correlations = above.map(|(i, j)| correlation(i, j) as i16).collect();
        Self { diagonal, side: side.max(1), correlations }
    }

    /// The matrix with its correlations drawn towards zero, as `(H + d diag(H)) / (1 + d)` is for the damping `d`, each
    /// column damped by its own diagonal: linear shrinkage of the correlations by `1 / (1 + d)` (Ledoit & Wolf 2004).
    /// The diagonal stays, and what a column is scaled by changes nothing.
    pub fn shrunk(mut self, damping: f64) -> Self {
        let kept = 1.0 / (1.0 + damping);
        self.correlations.iter_mut().for_each(|r| *r = (f64::from(*r) * kept).round_ties_even() as i16);
        self
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.diagonal.len().div_ceil(self.side.max(1))
    }

    /// Columns of block `n`.
    pub fn range(&self, n: usize) -> std::ops::Range<usize> {
        n * self.side..self.diagonal.len().min((n + 1) * self.side)
    }

    /// Block `n` as a symmetric matrix.
    pub fn block(&self, n: usize) -> Array2<f32> {
        let own = self.diagonal.iter().skip(self.range(n).start);
        let deviation: Vec<f32> = own.clone().take(self.range(n).len()).map(|d| d.sqrt()).collect();
        let mut matrix = self.correlation_block(n);
        matrix.indexed_iter_mut().for_each(|((i, j), r)| *r = *r * deviation[i.min(j)] * deviation[i.max(j)]);
        matrix.diag_mut().iter_mut().zip(own).for_each(|(entry, &d)| *entry = d);
        matrix
    }

    /// Correlations of block `n`: ones on the diagonal, also where the matrix has a zero there.
    pub fn correlation_block(&self, n: usize) -> Array2<f32> {
        let range = self.range(n);
        let before: usize = (0..n).map(|b| self.range(b).len()).map(|s| s * (s - 1) / 2).sum();
        let mut correlations = self.correlations[before..].iter();
        let mut matrix = Array2::zeros((range.len(), range.len()));
        for i in 0..range.len() {
            matrix[[i, i]] = 1.0;
            for j in i + 1..range.len() {
                let value = f32::from(*correlations.next().expect("as many as blocks have")) / CORRELATION_ONE;
                matrix[[i, j]] = value;
                matrix[[j, i]] = value;
            }
        }
        matrix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gradients of a matrix behind tiny weights are so small that the products of two lie below single precision.
    #[test]
    fn correlations_do_not_depend_on_the_scale() {
        for scale in [1.0f32, 1e-20, 1e-40] {
            let matrix = SymmetricBlocks::new(vec![scale, 4.0 * scale], 2, vec![16384]).unwrap();
            let correlations = matrix.correlation_block(0);
            assert_eq!((correlations[[0, 0]], correlations[[1, 1]]), (1.0, 1.0));
            assert!((correlations[[0, 1]] - 0.5).abs() < 1e-4 && correlations[[0, 1]] == correlations[[1, 0]]);
            assert!((matrix.block(0)[[0, 1]] / scale - 1.0).abs() < 1e-3, "{scale}");
        }
    }
}
