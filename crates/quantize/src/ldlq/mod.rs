//! LDLQ: quantization with error feedback (Chee et al. 2023).
//!
//! Columns are decided one after the other. Column `j` is quantized towards `w_j - Σ_{k<j} e_k U_kj`: its weights, less the
//! errors `e_k` of the columns before by the factor `U` of the input Hessian ([`waterfill_quadratic::LdlFactor`]). With a
//! gradient covariance, rows make up for each other likewise. Within a column either every level is chosen alone, or the
//! column is a path through a trellis (trellis-coded quantization, Marcellin & Fischer 1990). Steps are those at which
//! every weight loses the water level, `lambda / (2 ln 2)` nats.

mod bit_shift;
mod column;
mod input;
mod options;
mod planes;
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
pub use refinement::{LayerBefore, refine_ldlq};
pub use tensor::encode_ldlq;
pub use viterbi::{PathSearch, Sample};
