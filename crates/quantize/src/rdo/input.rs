//! Input of the choice of tools.

use std::collections::BTreeSet;

use waterfill_codec::Lambda;
use waterfill_quadratic::LossWeights;

use super::tools::Tool;

/// Input of the choice of tools for one matrix.
pub struct RdoInput<'a> {
    /// Row-major weights, exact values of the plan's type.
    pub weights: &'a [f32],
    /// Costs of errors.
    pub loss_weights: &'a LossWeights,
    /// Nats for a bit.
    pub lambda: Lambda,
    /// Tools that may be used.
    pub tools: &'a BTreeSet<Tool>,
    /// Whether planes may be wider than the format that allocation chose.
    pub allow_int8: bool,
}
