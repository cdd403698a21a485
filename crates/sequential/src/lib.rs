//! Sequential coding: each time a part of a block is coded, the weights that are not coded yet take steps down the
//! gradient of KL(original || partly coded) on calibration text, so that they make up for the errors of the coded ones
//! (as AdaQuant, Hubara et al. 2021, and the fine-tuning between blocks of QuIP#, Tseng et al. 2024).
//!
//! [`Adaptation::weights`] gives the weights to code next, [`Adaptation::coded`] takes them as they decode and moves the
//! others. Gradients come from the end of the model, so that all of it is in memory, and its weights that are not coded
//! yet four times (values, gradients and two moments).

mod adaptation;
mod descent;
mod error;
mod head;

pub use adaptation::{Adaptation, Descended, SequentialSettings};
pub use error::Result;

/// Version of the computation, part of the identity of its results: it goes up when they change.
pub const VERSION: u32 = 2;
