//! A reference runtime: how an inference engine uses a tuned checkpoint.
//!
//! [`Runtime`] loads linear layers through `decode_packed` and multiplies straight from the tiles
//! ([`PackedLinear`]); [`check`] compares that with the dense weights. It shows the way and keeps it tested; an engine has
//! kernels of its own.

mod check;
mod error;
mod linear;
mod load;
mod sparse;

pub use check::{Checked, LayerCheck, check};
pub use error::{Result, RuntimeError};
pub use linear::PackedLinear;
pub use load::{Form, Runtime, Written};
pub use sparse::SparseLinear;
