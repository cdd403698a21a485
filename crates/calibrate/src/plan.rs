//! Which sequences are computed together, and what is written of a weight.

use waterfill_model::{Projection, Windows};

use crate::error::{CalibrateError, Result};
use crate::moments::Moments;
use crate::statistics::{MomentKind, Sums, Weighting};
use crate::store::Entry;
use crate::sweep::Settings;

/// Batches and the shard that each belongs to.
pub(crate) struct Plan<'a> {
    pub windows: &'a Windows,
    pub batches: Vec<Vec<&'a [u32]>>,
    /// Index of the first sequence of each batch.
    pub first: Vec<usize>,
    pub shard: Vec<usize>,
    /// Tokens of each shard.
    pub tokens: Vec<f64>,
}

impl<'a> Plan<'a> {
    pub fn new(windows: &'a Windows, settings: &Settings) -> Result<Self> {
        let (sequences, shards) = (windows.rows.len(), settings.shards.max(1));
        if shards > sequences {
            return Err(CalibrateError::Shards { shards, sequences });
        }
        let per_batch = (settings.batch_tokens / windows.context).max(1);
        let mut plan = Self { windows, batches: vec![], first: vec![], shard: vec![], tokens: vec![0.0; shards] };
        for shard in 0..shards {
            let range = shard * sequences / shards..(shard + 1) * sequences / shards;
            plan.tokens[shard] = (range.len() * windows.context) as f64;
            for first in range.clone().step_by(per_batch) {
                let rows = &windows.rows[first..(first + per_batch).min(range.end)];
                plan.batches.push(rows.iter().map(|r| &r[..windows.context]).collect());
                plan.first.push(first);
                plan.shard.push(shard);
            }
        }
        Ok(plan)
    }

    /// Tokens of the largest batch.
    pub fn batch_tokens(&self) -> usize {
        self.batches.iter().map(Vec::len).max().unwrap_or(0) * self.windows.context
    }

    pub fn entry<'b>(
        &'b self,
        name: &'b str,
        shards: &'b [Sums],
        moments: Option<&'b Moments>,
        settings: &Settings,
    ) -> Entry<'b> {
        let side = match settings.second_moment.kind {
            MomentKind::BlockDiagonal(side) => side,
            _ => shards[0].col_x2.len(),
        };
        Entry { name, shards, tokens: &self.tokens, moments, side, lookup: None, output: None }
    }
}

/// Layers that read the same input share its plain second moment, which is kept once.
pub(crate) fn holds_moment(linear: Projection, settings: &Settings) -> bool {
    settings.second_moment.weighting == Weighting::Gradient || linear.first_of_input() == linear
}
