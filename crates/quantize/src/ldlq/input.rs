//! Input of quantization with error feedback.

use waterfill_codec::TensorPlan;
use waterfill_quadratic::{LdlFactor, LossWeights};

/// Columns whose feedback is one matrix product.
pub(super) const BLOCK: usize = 64;

/// Input of quantization with error feedback, for one matrix `[rows, cols]`.
pub struct LdlqInput<'a> {
    /// Formats, steps, scales, spreads; a trellis or none.
    pub plan: &'a TensorPlan,
    /// Row-major weights, exact values of the plan's type.
    pub weights: &'a [f32],
    /// Costs of errors.
    pub loss_weights: &'a LossWeights,
    /// LDL factor of the input Hessian: how errors spread over columns.
    pub factor: &'a LdlFactor,
    /// LDL factor of the gradient covariance, in one block: how errors spread over rows.
    pub rows: Option<&'a LdlFactor>,
    /// Nats for a bit where levels are chosen; zero rounds to the nearest.
    pub lambda: f32,
    /// In a refinement, values of the layer before, which `weights` are added to; row-major.
    pub before: Option<&'a [f32]>,
    /// Bits of a level of each tile, within which its levels stay. Without a trellis.
    pub widths: Option<&'a [u8]>,
    /// Whether steps of tiles are fitted to what feedback makes of their weights, where levels have `widths`.
    pub fitted: bool,
    /// Per weight, true forces its level to zero; only without a trellis.
    pub dropped: Option<&'a [bool]>,
}
