//! The triangular factor of a second moment, by which error feedback spreads the errors of a column
//! over the columns after it.
//!
//! With H = (I+U) D (I+U)^T, U strictly upper and D diagonal, the loss of errors e is e H e^T =
//! sum_j D_j (e_j + sum_{k<j} e_k U_kj)^2: columns are decided from the first on, each towards its
//! weight less what the errors before it make of it, and D_j is what an error there still costs
//! (LDLQ, Chee et al. 2023; the same order of steps as GPTQ, Frantar et al. 2023). It is the Cholesky
//! factor of H reversed in rows and columns.

use std::ops::Range;

use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, Par, dyn_stack::MemBuffer, dyn_stack::MemStack};
use waterfill_calibrate::SecondMomentMatrix;

/// Factors of ten by which damping is raised, at most, until the matrix is positive definite.
const ATTEMPTS: i32 = 6;

/// Strictly upper part and diagonal of the factor.
#[derive(Debug, Clone)]
pub struct Factor {
    /// D, one for each column.
    pub diagonal: Vec<f32>,
    /// H's own diagonal, with what was added but damping.
    before: Vec<f32>,
    /// Share of the mean of H's diagonal that was added to it.
    pub damping: f64,
    /// Columns of each diagonal block, and its U, row-major.
    blocks: Vec<(Range<usize>, Vec<f32>)>,
}

impl Factor {
    /// Factor of a second moment and a multiple of the identity that is `lookup` of both, what a lookup
    /// costs, with `damping` of the mean of their diagonal more. Where rounding has left a matrix that
    /// is not positive definite, damping grows tenfold until it is.
    pub fn new(moment: &SecondMomentMatrix, lookup: f64, damping: f64) -> Self {
        Self::with_levels(moment, lookup, damping, &[])
    }

    /// As [`Factor::new`] with a share for every column more.
    pub fn with_levels(moment: &SecondMomentMatrix, lookup: f64, damping: f64, levels: &[f64]) -> Self {
        let cols = moment.diagonal.len();
        let sum = moment.diagonal.iter().map(|&d| f64::from(d)).sum::<f64>();
        let mean = sum / cols.max(1) as f64 / (1.0 - lookup).max(1e-3);
        let added = mean * lookup;
        let level = |j: usize| mean * levels.get(j).copied().unwrap_or(0.0);
        let at = |j: usize| f64::from(moment.diagonal[j]) + added;
        let before: Vec<f32> = (0..cols).map(|j| at(j) as f32).collect();
        let mut this = Self { diagonal: before.clone(), before, damping, blocks: Vec::new() };
        for n in 0..moment.blocks() {
            let range = moment.range(n);
            let block = moment.block(n);
            let side = range.len();
            let mut share = this.damping;
            let reversed = (0..=ATTEMPTS).find_map(|_| {
                let add = added + (share * mean).max(f64::MIN_POSITIVE);
                let mut a = Mat::from_fn(side, side, |i, j| {
                    let (i, j) = (side - 1 - i, side - 1 - j);
                    // The same as [i, j], which lies apart.
                    f64::from(block[[j, i]]) + if i == j { add + level(range.start + i) } else { 0.0 }
                });
                let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f64>(side, Par::Seq, Default::default()));
                let stack = MemStack::new(&mut buffer);
                let none = LltRegularization::default();
                let done = cholesky_in_place(a.as_mut(), none, Par::Seq, stack, Default::default());
                this.damping = this.damping.max(share);
                share = (share * 10.0).max(1e-6);
                done.is_ok().then_some(a)
            });
            // A matrix that no damping helps is not one of second moments: its diagonal is left.
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

    /// Without correlations: errors stay where they are.
    pub fn diagonal(diagonal: Vec<f32>) -> Self {
        Self { before: diagonal.clone(), diagonal, damping: 0.0, blocks: Vec::new() }
    }

    /// What an error in a column costs after feedback over what it would cost alone.
    pub fn share(&self, col: usize) -> f64 {
        f64::from(self.diagonal[col]) / f64::from(self.before[col]).max(f64::MIN_POSITIVE)
    }

    /// Columns of the diagonal block that column `col` is in, and its U, row-major.
    pub fn block(&self, col: usize) -> Option<(Range<usize>, &[f32])> {
        let (range, upper) = self.blocks.iter().find(|(range, _)| range.contains(&col))?;
        Some((range.clone(), upper))
    }
}
