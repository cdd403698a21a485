//! LDLQ: quantization with error feedback (Chee et al. 2023).
//!
//! Columns are decided one after the other, each towards its weights less what the errors of the columns before make of
//! them by the [`waterfill_quadratic::LdlFactor`] of the input Hessian; with a gradient covariance, rows likewise. Inside
//! a column either every level is chosen alone or the column is a path through a trellis.

mod column;
mod input;
mod options;
mod quantize;
mod refinement;
mod slice;
mod steps;
mod survivors;
mod tensor;
mod viterbi;

pub use input::LdlqInput;
pub use options::LdlqOptions;
pub use quantize::quantize_ldlq;
pub use refinement::refine_ldlq;
pub use tensor::encode_ldlq;
pub use viterbi::{PathSearch, Sample};
