//! Options of quantization with error feedback.

use waterfill_codec::{BitShiftTrellis, Trellis};

/// Options of quantization with error feedback, for one matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LdlqOptions {
    /// The trellis that levels are a path through, if any.
    pub trellis: Option<Trellis>,
    /// The bit-shift trellis that codes of planned widths are a path through; levels are uniform without one.
    pub bit_shift: Option<BitShiftTrellis>,
    /// Lambda that levels are chosen by, as a share of the allocation's.
    pub rounding: f32,
    /// Whether tiles may be INT8 where allocation chose a narrower format.
    pub allow_int8: bool,
    /// Whether tiles may be lossless.
    pub allow_lossless: bool,
    /// Share of the mean of a Hessian's diagonal that is added to it.
    pub damping: f64,
    /// Share of the loss weight of each row and column that is added to the diagonal, see
    /// [`waterfill_quadratic::add_error_penalty`]: feedback makes single errors larger, which refinements pay for.
    pub error_penalty: f64,
    /// Whether at most two of four levels in a row of a refinement are not zero; without a trellis.
    pub sparse: bool,
    /// Whether levels are a draft that shows how large errors are: they are not quantized again once their spread is known.
    pub draft: bool,
}
