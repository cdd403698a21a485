//! Models that answer questions.

use waterfill_model::Model;
use waterfill_model::other::OtherModel;

/// A model that answers questions.
#[derive(Clone, Copy)]
pub enum Answering<'a> {
    /// A model whose blocks are in memory one at a time; all of it where answers are written.
    Streamed(&'a Model),
    /// An architecture that is evaluated only, all of it in memory.
    Whole(&'a OtherModel),
}

impl Answering<'_> {
    /// Largest number of tokens of a text.
    pub fn positions(self) -> usize {
        match self {
            Self::Streamed(model) => model.config.positions,
            Self::Whole(model) => model.positions,
        }
    }
}
