//! Calibration: sensitivities of every matrix that may be coded, from one pass forward and one back over text.
//!
//! For small errors `E` of the weights, KL(original || changed) per token is about `1/2 Σ_ij F_ij E_ij²` with the
//! Fisher information `F_ij = E[g_i² x_j²]`, `g` the gradient of the loss with respect to a linear layer's output
//! and `x` its input. Labels are drawn from the model itself: true Fisher, not the empirical one of the text's own
//! labels (Kunstner et al. 2019). Sums over 16x16 tiles, rows and columns are exact and need no per-token weight
//! gradient: `Σ_t (Σ_i g_ti²)(Σ_j x_tj²)`.
//!
//! Errors of several columns or rows add up by the input Hessian `H = E[x xᵀ]` and the output-gradient covariance
//! `G = E[g gᵀ]` ([`waterfill_quadratic`]), the factors of K-FAC (Martens & Grosse 2015).
//!
//! [`calibrate()`] fills a directory, [`Sensitivities`] reads it:
//!
//! ```no_run
//! # fn main() -> Result<(), waterfill_calibrate::CalibrateError> {
//! use waterfill_calibrate::Sensitivities;
//!
//! let sensitivities = Sensitivities::open("results/calibration".as_ref())?;
//! let name = "model.layers.0.mlp.up_proj.weight";
//! let up = sensitivities.read(name, 11008, 4096)?;
//! println!("{} folds, E[x_0²] = {}", up.tile_fisher.len(), up.col_x2[0]);
//! if let Some(hessian) = sensitivities.hessian(name)? {
//!     println!("Hessian in {} blocks of {}", hessian.blocks(), hessian.side);
//! }
//! # Ok(())
//! # }
//! ```

mod error;
mod forward;
mod further;
mod head;
mod hessian;
mod lookup;
mod parts;
mod plan;
mod settings;
mod statistics;
mod store;
mod sweep;
mod token_weights;
mod totals;

pub use error::{CalibrateError, Result};
pub use head::head_bytes;
pub use parts::part_bytes;
pub use settings::{
    CalibrateSettings, CalibrateSummary, HessianKind, HessianSettings, HessianWeighting, Labels, Shrinkage,
};
pub use store::{Sensitivities, Sensitivity};
pub use sweep::{block_file, calibrate};
