//! The quadratic model of what quantization errors cost.
//!
//! For a small error `E = Ŵ - W` of a weight matrix `[rows, cols]` the divergence from the original model is,
//! per token and to second order, `KL ≈ 1/2 vec(E)ᵀ F vec(E)` with the Fisher information `F`. This crate holds
//! the approximations of `F` that the pipeline works with, and depends on no machine-learning library:
//!
//! - [`LossWeights`]: diagonal. An error `e` at `(i, j)` of tile `t` costs `tiles[t] rows[i] cols[j] e²` nats per
//!   token. Allocation predicts losses by it.
//! - [`Hessian`] `H = E[x xᵀ]` of a layer's input and [`GradientCovariance`] `G = E[g gᵀ]` of its output gradient:
//!   Kronecker-factored, `F ≈ G ⊗ H` (K-FAC, Martens & Grosse 2015). [`QuadraticLoss`] is its value,
//!   `1/2 Σ_ik G_ik e_i H e_kᵀ` with `e_i` row `i` of `E`.
//! - [`LdlFactor`]: `H = (I+U) D (I+U)ᵀ`, by which error feedback (LDLQ, Chee et al. 2023; GPTQ, Frantar et al.
//!   2023) lets each column make up for the errors of those before. [`Damping`] is what is added to `H` first.
//!
//! ```
//! use ndarray::array;
//! use waterfill_quadratic::{Curvature, Damping, Hessian, LdlFactor, LossWeights, QuadraticLoss};
//!
//! // Two inputs that mostly move together.
//! let hessian = Hessian::from_dense(&array![[1.0, 0.9], [0.9, 1.0]]);
//! // One row, one tile; a squared error costs half a nat.
//! let weights = LossWeights { tiles: vec![0.5], rows: vec![1.0], cols: vec![1.0; 2], lookup: vec![] };
//! let loss = QuadraticLoss::new(&weights, 16, Curvature { hessian: Some(&hessian), gradient_covariance: None });
//!
//! // Errors of opposite sign cancel: 1/2 (1 - 2 * 0.9 + 1) e² against 1/2 (1 + 2 * 0.9 + 1) e².
//! assert!((loss.of(vec![0.1, -0.1]) - 0.001).abs() < 1e-5);
//! assert!((loss.of(vec![0.1, 0.1]) - 0.019).abs() < 1e-5);
//!
//! // With feedback the second column makes up for 0.9 of the first one's error, whose cost falls to 1 - 0.9².
//! let factor = LdlFactor::new(&hessian, &Damping::uniform(0.0));
//! assert!((factor.share(0) - 0.19).abs() < 1e-3 && (factor.share(1) - 1.0).abs() < 1e-3);
//! ```

mod curvature;
mod damping;
mod ldl;
mod loss;
mod shrinkage;
mod weights;

pub use curvature::{CORRELATION_ONE, Curvature, GradientCovariance, Hessian, SymmetricBlocks};
pub use damping::{Damping, add_error_penalty, water_damping};
pub use ldl::LdlFactor;
pub use loss::QuadraticLoss;
pub use shrinkage::{Part, choose_damping};
pub use weights::{FisherSums, LossWeights};
