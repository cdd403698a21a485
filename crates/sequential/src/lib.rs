//! Sequential tuning: after every part of a block that is coded, the weights that are not coded yet take
//! steps down the gradient of KL(original || partly coded) on calibration text, so that they make up for
//! what the coded ones have lost (as AdaQuant, Hubara et al. 2021, and the fine-tuning between blocks of
//! QuIP#, Tseng et al. 2024, do).
//!
//! The whole model is in memory, its weights that are left four times: gradients come from its end.

mod adaptation;
mod descent;
mod error;
mod head;

pub use adaptation::{Adaptation, Descended, SequentialSettings};
pub use error::Result;

/// Version of the computation, part of the identity of its results: it goes up when they change.
pub const VERSION: u32 = 2;
