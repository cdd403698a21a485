//! Reconstruction: from samples to integer planes to weights, shared by encoder and decoder.

pub mod reconstruct;
pub mod transform;
pub(crate) mod transform_bases;
