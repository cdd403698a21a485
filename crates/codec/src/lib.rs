//! The normative part of waterfill: what the bits of a coded weight tensor mean.
//!
//! A coded tensor is a header, side information and slices ([`tensor`]). Every 16x16 tile of a
//! slice has a [`Format`], a step and tools ([`tile`]); its samples ([`sample`]) are coded by
//! interleaved rANS ([`lanes`]) under static tables ([`table`]) whose class follows from scales
//! the decoder has. Prediction and transforms work on integer planes ([`plane`]). Syntax is written
//! once, generic over encoder, decoder and rate counter ([`slice`]).
//!
//! This crate does no I/O, has no threads and knows no ML framework. Unsafe code is in the module `simd` only.

#![deny(unsafe_code)]

pub mod bits;
pub mod difference;
pub mod encoder;
pub mod error;
pub mod fast;
pub mod format;
pub mod header;
pub mod lanes;
pub mod lossless;
pub mod minifloat;
pub mod plan;
pub mod plane;
mod planes;
pub mod quantize;
pub mod rans;
pub mod sample;
pub mod scale;
pub mod side;
mod simd;
pub mod slice;
pub mod spread;
pub mod symbol;
pub mod table;
mod tables;
pub mod tensor;
pub mod text;
pub mod tile;
pub mod tools;
pub mod transform;
mod transforms;
pub mod trellis;
pub mod units;
mod walk;

pub use encoder::{EncodedSlice, TensorEncoder, encode_samples, encode_tensor};
pub use error::{CodecError, Result};
pub use format::{Dtype, Format};
pub use lossless::{Elements, encode_lossless};
pub use minifloat::Minifloat;
pub use plan::{Parameters, Scales, TensorPlan};
pub use simd::on_this_machine;
pub use tensor::{CodedTensor, DecodedSlice, TensorDigest};
pub use tile::{Kind, Palette, Predictor, TilePlan};
pub use transform::{Kernel, Transform};
pub use trellis::Trellis;
pub use units::{BitsPerWeight, Lambda, Loss, Rate};

/// Side of a tile in weights.
pub const TILE: usize = 16;
