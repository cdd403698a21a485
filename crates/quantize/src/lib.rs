//! Quantization and coding: from an allocation to a compressed checkpoint, and back to a dense one.
//!
//! [`encode`] drives a whole checkpoint. A matrix is coded by one of two ways: [`ldlq`] quantizes column after column
//! with error feedback, through a trellis or level by level; [`rdo`] chooses mode, predictor and transform of every
//! tile. [`encode_baseline`] writes the usual quantizers to compare with, [`write_dense`] decodes.
//!
//! ```
//! use ndarray::Array2;
//! use waterfill_allocate::PlannedWeight;
//! use waterfill_codec::{CodedTensor, Dtype, Format, Lambda, TensorPlan, TilePlan};
//! use waterfill_quadratic::{Curvature, Hessian, LossWeights, QuadraticLoss};
//! use waterfill_quantize::ldlq::{LdlqOptions, encode_ldlq};
//!
//! let (rows, cols) = (64, 64);
//! let weights: Vec<f32> = (0..rows * cols).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
//! // Neighbouring inputs are alike, so that a column can make up for the error of the one before.
//! let hessian = Hessian::from_dense(&Array2::from_shape_fn((cols, cols), |(i, j)| 0.9f32.powi(i.abs_diff(j) as i32)));
//! let tile = TilePlan { format: Format::Int8, ..TilePlan::default() };
//! let plan = TensorPlan::uniform(Dtype::F32, rows, cols, tile);
//! let tiles = vec![1.0; plan.tiles.len()];
//! let loss_weights = LossWeights { tiles, rows: vec![1.0; rows], cols: vec![1.0; cols], lookup: vec![] };
//! let planned = PlannedWeight {
//!     plan,
//!     loss_weights,
//!     lambda: Lambda(0.02),
//!     allow_int4: false,
//!     sharing: Default::default(),
//!     widths: vec![],
//! };
//! let options = LdlqOptions {
//!     bit_shift: None,
//!     trellis: None,
//!     rounding: 0.3,
//!     allow_int8: true,
//!     allow_lossless: false,
//!     damping: 0.01,
//!     error_penalty: 0.0,
//!     sparse: false,
//!     draft: false,
//! };
//! let loss = |curvature: Curvature| {
//!     let coded = encode_ldlq(&planned, &weights, curvature, &options).unwrap();
//!     let (decoded, _) = CodedTensor::parse(&coded).unwrap().decode().unwrap();
//!     let values = decoded.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
//!     let errors = values.zip(&weights).map(|(is, was)| is - was).collect();
//!     let truth = Curvature { hessian: Some(&hessian), gradient_covariance: None };
//!     (QuadraticLoss::new(&planned.loss_weights, 16, truth).of(errors), coded.len())
//! };
//! let (alone, bytes_alone) = loss(Curvature::default());
//! let (fed_back, bytes) = loss(Curvature { hessian: Some(&hessian), gradient_covariance: None });
//! // Half of log2 of what loss falls by, and bits saved, are both bits per weight.
//! let saved = (bytes_alone as f64 - bytes as f64) * 8.0 / (rows * cols) as f64;
//! assert!(saved + (alone / fed_back).log2() / 2.0 > 0.5);
//! ```

mod baseline;
mod chain;
mod delta;
mod dense;
mod driver;
mod error;
mod layers;
pub mod ldlq;
mod low_rank;
mod options;
pub mod rdo;
mod slices;
mod summary;
mod tensor;

pub use baseline::{Baseline, encode_baseline};
pub use delta::{DeltaCandidate, code_delta};
pub use dense::write_dense;
pub use driver::{encode, encode_bytes, tensor_bytes, unit};
pub use error::{EncodeError, Result};
pub use low_rank::find_factors;
pub use options::{EncodeOptions, ErrorFeedback};
pub use summary::{EncodeSummary, LayerSummary};
pub use tensor::coding_errors;
