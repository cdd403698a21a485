//! The normative part of waterfill: what the bits of a coded weight tensor mean.
//!
//! A coded tensor is a header, optional row and column side information, a slice table and
//! slices ([`tensor`]). Every 16x16 tile of a slice has a [`Format`] and a step; its samples are
//! integers ([`plane`]) coded by interleaved rANS ([`rans`]) under static Gaussian tables
//! ([`gaussian`]) whose class follows from the scales alone. One function, [`slice::code_slice`],
//! describes the syntax for the encoder, the decoder and the rate counter.
//!
//! This crate does no I/O, has no threads and knows no ML framework.

pub mod error;
pub mod format;
pub mod fp8;
pub mod gaussian;
pub mod header;
pub mod plane;
pub mod rans;
pub mod scale;
pub mod side;
pub mod slice;
pub mod symbol;
mod tables;
pub mod tensor;
pub mod units;

pub use error::{CodecError, Result};
pub use format::{Dtype, Format};
pub use tensor::{CodedTensor, TensorPlan, TilePlan, encode_tensor};
pub use units::{BitsPerWeight, Lambda, Loss, Rate};

/// Side of a tile in weights.
pub const TILE: usize = 16;
