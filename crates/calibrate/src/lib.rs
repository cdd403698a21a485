//! Sensitivities of every weight that calibration covers.
//!
//! For small changes dW of the weights, KL(original || changed) per token is about
//! 1/2 sum_ij F_ij dW_ij^2 with the Fisher information F_ij = E[g_i^2 x_j^2], g the gradient of
//! the loss with respect to a linear layer's output and x its input; labels are sampled from the
//! model itself (true Fisher, Kunstner et al. 2019). Sums over 16x16 tiles, rows and columns are
//! exact and need no per-token weight gradient: sum_t (sum_i g_ti^2)(sum_j x_tj^2).

mod error;
mod head;
mod lookup;
mod moments;
mod plan;
mod statistics;
mod store;
mod sweep;
mod totals;

pub use error::{CalibrateError, Result};
pub use head::head_bytes;
pub use moments::SecondMomentMatrix;
pub use statistics::{MomentKind, SecondMoment, Weighting};
pub use store::{Sensitivities, Sensitivity};
pub use sweep::{Labels, Settings, Summary, block_file, calibrate};
