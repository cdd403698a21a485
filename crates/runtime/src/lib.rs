//! A reference runtime: how an inference engine uses a compressed checkpoint.
//!
//! [`Runtime`] loads matrices with `decode_packed` and multiplies straight from their tiles ([`PackedLinear`]), or keeps them
//! entropy-coded and decodes a slice at a time when it multiplies ([`CodedLinear`]);
//! [`check`] compares the products with those of dense weights. It is an example that tests keep working; an engine
//! has kernels of its own.

mod check;
mod coded;
mod error;
mod linear;
mod load;
mod sparse;

pub use check::{Checked, LayerCheck, check};
pub use coded::CodedLinear;
pub use error::{Result, RuntimeError};
pub use linear::PackedLinear;
pub use load::{Form, Runtime, Written};
pub use sparse::SparseLinear;
