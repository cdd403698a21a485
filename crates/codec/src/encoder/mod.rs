//! Encoding a planned tensor: by plain rounding, from given samples, or without loss.

mod frequency_tables;
mod lattice;
mod lossless;
pub mod quantize;
mod rate;
mod rests;
pub mod sigma_fit;
mod slice;
mod statistics;
mod tensor;
mod writer;

pub use lossless::{Elements, encode_lossless};
pub use tensor::{EncodedSlice, TensorEncoder, encode_samples, encode_tensor};
