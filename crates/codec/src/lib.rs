//! The bitstream of waterfill: how a weight matrix is coded, and how a coded one decodes to the same values on every
//! machine. `docs/BITSTREAM.md` is its specification; this crate is the reference implementation.
//!
//! A matrix is cut into tiles of 16x16 weights. A [`TilePlan`] says how a tile is coded: its [`Format`] (the integer or
//! floating-point grid it is quantised to, or lossless), its step, and tools such as prediction and transforms. A
//! [`TensorPlan`] has the plans of all tiles with what they share. Whoever decides these plans is outside of this crate:
//! [`encode_tensor`] quantises weights to a plan by plain rounding, [`encode_samples`] and [`TensorEncoder`] take levels
//! that a search has chosen, [`encode_lossless`] needs no plan. [`CodedTensor`] decodes.
//!
//! ```
//! use waterfill_codec::{CodedTensor, Dtype, Format, TensorPlan, TilePlan, encode_tensor};
//!
//! // One tile of weights with a standard deviation of about 0.02.
//! let weights: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) * 7e-4).collect();
//!
//! // Four-bit levels, a step of 2^(-64/8) = 1/256, and weights that spread over 2^(9/4) = 4.8 steps.
//! let tile = TilePlan { format: Format::Int4, ..TilePlan::default() };
//! let plan =
//!     TensorPlan { step_base: -64, sigma_base: 9, ..TensorPlan::uniform(Dtype::F32, 16, 16, tile) };
//! let bytes = encode_tensor(&plan, &weights)?;
//! assert!(bytes.len() < 256, "{} bytes for 256 weights", bytes.len());
//!
//! // Every weight comes back as a multiple of the step, as far as the format reaches.
//! let (decoded, tiles) = CodedTensor::parse(&bytes)?.decode()?;
//! assert_eq!(tiles[0].format, Format::Int4);
//! for (element, weight) in decoded.chunks_exact(4).zip(&weights) {
//!     let value = f32::from_le_bytes(element.try_into().unwrap());
//!     let level = (weight * 256.0).round().clamp(-8.0, 7.0);
//!     assert_eq!(value, level / 256.0);
//! }
//! # Ok::<(), waterfill_codec::CodecError>(())
//! ```
//!
//! Layers, each of which uses only those before it:
//!
//! | module | content |
//! |---|---|
//! | [`mod@format`], [`minifloat`], [`scale`], [`units`], [`constants`] | number formats, the scale grid 2^(k/8), rate and loss as types |
//! | `simd` | kernels on plain slices, chosen at run time; the only unsafe code |
//! | [`entropy`] | adaptive rANS for headers, interleaved rANS with static tables for samples |
//! | [`syntax`] | what is written in which order, once for encoder, decoder and rate counter |
//! | [`recon`] | from samples to integer planes to weights, shared by encoder and decoder |
//! | [`decoder`], [`encoder`] | whole tensors, slice by slice |
//!
//! The crate does no I/O, starts no threads, and knows no ML framework.
#![deny(unsafe_code)]

pub mod constants;
pub mod decoder;
pub mod encoder;
pub mod entropy;
pub mod error;
pub mod format;
pub mod minifloat;
pub mod recon;
pub mod scale;
mod simd;
pub mod syntax;
pub mod units;

pub use constants::TILE;
pub use decoder::{CodedTensor, DecodedSlice, TensorDigest};
pub use encoder::{Elements, EncodedSlice, TensorEncoder, encode_lossless, encode_samples, encode_tensor};
pub use error::{CodecError, Result};
pub use format::{Dtype, Format};
pub use minifloat::Minifloat;
pub use scale::SigmaIndex;
pub use simd::dispatch;
pub use syntax::bit_shift::BitShiftTrellis;
pub use syntax::tensor_plan::{Parameters, Scales, TensorPlan};
pub use syntax::tile_plan::{Kernel, Palette, Predictor, TileMode, TilePlan, Transform};
pub use syntax::trellis::Trellis;
pub use units::{BitsPerWeight, Lambda, Loss, Rate};
