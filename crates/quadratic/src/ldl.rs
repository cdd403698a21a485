//! The LDL factor of a Hessian, by which error feedback spreads the errors of a column over the columns after it.

use std::ops::Range;

use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, Par, dyn_stack::MemBuffer, dyn_stack::MemStack};

use crate::curvature::SymmetricBlocks;
use crate::damping::{Addition, Damping};

/// Largest share: of a column that is next to dead, all that is left is damping.
const MOST_SHARE: f64 = 1e6;

/// Times that damping is raised, at most, until the matrix is positive definite.
const ATTEMPTS: i32 = 6;

/// `H = (I+U) D (I+U)ᵀ`, with `U` strictly upper triangular and `D` diagonal.
///
/// The loss of an error row `e` is then `e H eᵀ = Σ_j D_j (e_j + Σ_{k<j} e_k U_kj)²`: columns are decided from the
/// first to the last, each towards its weight less `Σ_{k<j} e_k U_kj`, and `D_j` is what an error there still costs
/// (LDLQ, Chee et al. 2023; the same order of steps as GPTQ, Frantar et al. 2023). Computed as the Cholesky factor of
/// `H` reversed in rows and columns, in f64, one diagonal block at a time.
#[derive(Debug, Clone)]
pub struct LdlFactor {
    /// `D`, one entry a column.
    pub diagonal: Vec<f32>,
    /// H's own diagonal with the lookup share, before damping.
    before: Vec<f32>,
    /// Uniform damping that was used, at least the one asked for.
    pub damping: f64,
    /// Columns of each diagonal block, and its `U`, row-major.
    blocks: Vec<(Range<usize>, Vec<f32>)>,
}

impl LdlFactor {
    /// Factor of a damped Hessian. Where rounding has left a matrix that is not positive definite, uniform damping
    /// grows tenfold until it is; a block that six such steps do not help keeps its diagonal and gets no `U`.
    pub fn new(hessian: &SymmetricBlocks, damping: &Damping) -> Self {
        let cols = hessian.diagonal.len();
        let addition = Addition::new(&hessian.diagonal, damping);
        let before: Vec<f32> = (0..cols).map(|j| (f64::from(hessian.diagonal[j]) + addition.lookup()) as f32).collect();
        let mut this = Self { diagonal: before.clone(), before, damping: damping.uniform, blocks: Vec::new() };
        for n in 0..hessian.blocks() {
            let range = hessian.range(n);
            let block = hessian.block(n);
            let side = range.len();
            let mut share = this.damping;
            let reversed = (0..=ATTEMPTS).find_map(|_| {
                let mut a = Mat::from_fn(side, side, |i, j| {
                    let (i, j) = (side - 1 - i, side - 1 - j);
                    // The same as [i, j], which lies apart.
                    f64::from(block[[j, i]]) + if i == j { addition.at(range.start + i, share) } else { 0.0 }
                });
                let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f64>(side, Par::Seq, Default::default()));
                let stack = MemStack::new(&mut buffer);
                let none = LltRegularization::default();
                let done = cholesky_in_place(a.as_mut(), none, Par::Seq, stack, Default::default());
                this.damping = this.damping.max(share);
                share = Damping::grown(share);
                done.is_ok().then_some(a)
            });
            // A matrix that no damping helps is not positive semidefinite: its diagonal is left.
            let Some(lower) = reversed else { continue };
            let mut upper = vec![0.0f32; side * side];
            for j in 0..side {
                let pivot = lower[(side - 1 - j, side - 1 - j)];
                this.diagonal[range.start + j] = (pivot * pivot) as f32;
                (0..j).for_each(|k| upper[k * side + j] = (lower[(side - 1 - k, side - 1 - j)] / pivot) as f32);
            }
            this.blocks.push((range, upper));
        }
        this
    }

    /// Factor of a diagonal Hessian: errors of a column cost what they cost, whatever the others are.
    pub fn diagonal(diagonal: Vec<f32>) -> Self {
        Self { before: diagonal.clone(), diagonal, damping: 0.0, blocks: Vec::new() }
    }

    /// `D_j / H_jj`: what an error in column `col` costs after feedback over what it would cost alone; 1 of a dead column,
    /// where both cost nothing.
    pub fn share(&self, col: usize) -> f64 {
        let (after, before) = (f64::from(self.diagonal[col]), f64::from(self.before[col]));
        if before > 0.0 { (after / before).min(MOST_SHARE) } else { 1.0 }
    }

    /// Columns of the diagonal block that column `col` is in, and its `U`, row-major; `None` without correlations.
    pub fn block(&self, col: usize) -> Option<(Range<usize>, &[f32])> {
        let (range, upper) = self.blocks.iter().find(|(range, _)| range.contains(&col))?;
        Some((range.clone(), upper))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    const SIDE: usize = 200;

    /// Neighbours that follow each other, columns of very different size.
    fn correlated() -> SymmetricBlocks {
        let size = |j: usize| 1.0 + (j % 7) as f32;
        SymmetricBlocks::from_dense(&Array2::from_shape_fn((SIDE, SIDE), |(i, j)| {
            0.9f32.powi(i.abs_diff(j) as i32) * size(i) * size(j)
        }))
    }

    /// H = (I+U) D (I+U)^T, written out, with all that is added to its diagonal.
    #[test]
    fn the_factor_multiplies_to_the_matrix() {
        let hessian = correlated();
        let levels: Vec<f64> = (0..SIDE).map(|j| if j % 2 == 0 { 0.0 } else { 0.3 }).collect();
        for levels in [&[][..], &levels] {
            let factor = LdlFactor::new(&hessian, &Damping { uniform: 0.02, lookup: 0.1, levels });
            let (range, upper) = factor.block(5).unwrap();
            assert_eq!(range, 0..SIDE);
            let unit = |k: usize, j: usize| if k == j { 1.0 } else { f64::from(upper[k * SIDE + j]) };
            let h = hessian.block(0);
            let mean = f64::from(hessian.diagonal.sum()) / SIDE as f64 / 0.9;
            for (i, j) in (0..SIDE).step_by(13).flat_map(|i| (0..SIDE).step_by(7).map(move |j| (i, j))) {
                let product: f64 =
                    (i.max(j)..SIDE).map(|k| unit(i, k) * f64::from(factor.diagonal[k]) * unit(j, k)).sum();
                let level = levels.get(i).copied().unwrap_or(0.0);
                let expected = f64::from(h[[i, j]]) + if i == j { mean * (0.12 + level) } else { 0.0 };
                assert!((product - expected).abs() < 1e-3, "{i} {j}: {product}, expected {expected}");
            }
        }
    }

    #[test]
    fn damping_grows_until_the_matrix_is_positive_definite() {
        let entry = |(i, j): (usize, usize)| if i == j { 1.0 } else { 0.9 * (-1f32).powi((i * j) as i32) };
        let indefinite = SymmetricBlocks::from_dense(&Array2::from_shape_fn((SIDE, SIDE), entry));
        let factor = LdlFactor::new(&indefinite, &Damping::uniform(0.01));
        assert!(factor.damping > 0.01, "{}", factor.damping);
        assert!(factor.diagonal.iter().all(|d| d.is_finite() && *d > 0.0));
    }
}
