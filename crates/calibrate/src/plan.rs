//! Batches of sequences, and the sums of a weight as they are written.

use waterfill_model::{Projection, Windows};

use crate::error::{CalibrateError, Result};
use crate::hessian::HessianSums;
use crate::parts::PARTS;
use crate::settings::{CalibrateSettings, HessianWeighting};
use crate::statistics::Sums;
use crate::store::Entry;

/// Batches and the fold that each belongs to.
pub(crate) struct Plan<'a> {
    pub windows: &'a Windows,
    pub batches: Vec<Vec<&'a [u32]>>,
    /// Index of the first sequence of each batch.
    pub first: Vec<usize>,
    pub fold: Vec<usize>,
    /// Part of the text that each batch is in, for what is fitted to some parts and judged by others.
    pub part: Vec<usize>,
    /// Batches that are read forward only, and the part of the text that each is in.
    pub further: Vec<Vec<&'a [u32]>>,
    pub further_part: Vec<usize>,
    /// Tokens of each fold.
    pub tokens: Vec<f64>,
}

impl<'a> Plan<'a> {
    pub fn new(windows: &'a Windows, further: &'a Windows, settings: &CalibrateSettings) -> Result<Self> {
        let (sequences, folds) = (windows.rows.len(), settings.folds.max(1));
        if folds > sequences {
            return Err(CalibrateError::Folds { folds, sequences });
        }
        // A batch is in one part of the text.
        let per_batch = |sequences: usize| (settings.batch_tokens / windows.context).min(sequences / PARTS).max(1);
        let parts = |batches: usize| (0..batches).map(|b| b * PARTS / batches).collect();
        let further = further.batches(per_batch(further.rows.len()) * windows.context);
        let mut plan = Self {
            windows,
            batches: vec![],
            first: vec![],
            fold: vec![],
            part: vec![],
            further_part: parts(further.len()),
            further,
            tokens: vec![0.0; folds],
        };
        let per_batch = per_batch(sequences);
        for fold in 0..folds {
            let range = fold * sequences / folds..(fold + 1) * sequences / folds;
            plan.tokens[fold] = (range.len() * windows.context) as f64;
            for first in range.clone().step_by(per_batch) {
                let rows = &windows.rows[first..(first + per_batch).min(range.end)];
                plan.batches.push(rows.iter().map(|r| &r[..windows.context]).collect());
                plan.first.push(first);
                plan.fold.push(fold);
            }
        }
        plan.part = parts(plan.batches.len());
        Ok(plan)
    }

    /// Tokens of the largest batch.
    pub fn batch_tokens(&self) -> usize {
        self.batches.iter().map(Vec::len).max().unwrap_or(0) * self.windows.context
    }

    /// Tokens of the largest batch that is read forward only.
    pub fn further_tokens(&self) -> usize {
        self.further.iter().map(Vec::len).max().unwrap_or(0) * self.windows.context
    }

    pub fn entry<'b>(
        &'b self,
        name: &'b str,
        folds: &'b [Sums],
        hessian: Option<&'b HessianSums>,
        settings: &CalibrateSettings,
    ) -> Entry<'b> {
        let width = folds[0].col_x2.len();
        let side = settings.hessian.side(width).unwrap_or(width);
        Entry { name, folds, tokens: &self.tokens, hessian, side, lookup: None, gradient_covariance: None }
    }
}

/// True where a layer's Hessian is kept: those that read the same input share its plain Hessian, which is kept once.
pub(crate) fn holds_hessian(linear: Projection, settings: &CalibrateSettings) -> bool {
    settings.hessian.weighting == HessianWeighting::Gradient || linear.first_of_input() == linear
}
