//! Allocation of bits: how many each tile of each matrix gets.
//!
//! [`measure_candidates`] turns sensitivities and weights into rate-distortion candidates for every tile: format,
//! step, predicted loss, estimated bits. It runs once for any number of allocations. [`select_weight`] then
//! minimises `J = loss + lambda * rate` tile by tile, and [`meet_target`] finds the lambda whose file has a wanted
//! size. Since the slope of loss over rate is the same everywhere, steps are those of reverse water-filling (Cover &
//! Thomas, 10.3.3).
//!
//! Units: losses in nats per token, rates in bits, lambda in nats per token for a bit.
//!
//! ```
//! use ndarray::{Array1, Array2};
//! use waterfill_allocate::{FoldRule, MeasureOptions, Policy, RateWeights, ScaleVectors};
//! use waterfill_allocate::{measure_candidates, select_weight};
//! use waterfill_calibrate::Sensitivity;
//! use waterfill_codec::{Dtype, Format, Lambda};
//!
//! // A matrix of 16 x 32, two tiles; errors in the second one cost a hundred times more.
//! let weights: Vec<f32> = (0..16 * 32).map(|i| (i as f32 * 0.7).sin() * 0.05).collect();
//! let sensitivity = Sensitivity {
//!     tile_fisher: vec![Array2::from_shape_vec((1, 2), vec![1.0, 100.0]).unwrap()],
//!     row_fisher: Array1::from_elem(16, 101.0 / 16.0),
//!     col_fisher: Array1::from_shape_fn(32, |j| if j < 16 { 1.0 / 16.0 } else { 100.0 / 16.0 }),
//!     row_g2: Array1::ones(16),
//!     col_x2: Array1::ones(32),
//!     lookup_row_fisher: None,
//! };
//! let formats = [Format::Int4, Format::Int8];
//! let options = MeasureOptions {
//!     fold_rule: FoldRule::Mean,
//!     scale_vectors: ScaleVectors::None,
//!     unseen: 0.0,
//!     loss_factor: 1.0,
//!     formats: &formats,
//!     planes: None,
//!     spread_scales: false,
//!     shared_steps: false,
//!     ldl: None,
//! };
//! let candidates = measure_candidates(&weights, Dtype::F32, &sensitivity, &options);
//!
//! let policy = Policy {
//!     formats: formats.to_vec(),
//!     floors: vec![],
//!     margin: 0.0,
//!     rate: RateWeights::default(),
//!     corrections: Default::default(),
//!     structure: None,
//! };
//! let selection = select_weight("example", &candidates, &policy, Lambda(1e-6))?;
//! // Steps count in quarter octaves: a hundred times the information is about a tenth of the step.
//! let steps: Vec<i16> = selection.chosen.iter().map(|candidate| candidate.step).collect();
//! assert!((10..=16).contains(&(steps[0] - steps[1])), "{steps:?}");
//! // A larger lambda buys fewer bits.
//! let coarser = select_weight("example", &candidates, &policy, Lambda(1e-4))?;
//! assert!(coarser.rate.0 < selection.rate.0 && coarser.loss.0 > selection.loss.0);
//! # Ok::<(), waterfill_allocate::AllocateError>(())
//! ```
//!
//! `examples/choose_under_lambda.rs` prints a whole rate-distortion curve.

mod erasure;
mod error;
mod files;
mod format_name;
mod granularity;
mod information;
mod overhead;
mod planes;
mod policy;
mod rd_candidate;
mod rd_measure;
mod sample;
mod scales;
mod select;
mod shared_steps;
mod structure;
mod table;
mod target;
mod uniform_correction;

pub use erasure::{erasure_loss, sensitivity_floor};
pub use error::{AllocateError, Result};
pub use files::{Allocation, Blobs, PlannedWeight, read_plan};
pub use format_name::FormatName;
pub use granularity::Granularity;
pub use information::FoldRule;
pub use overhead::{Overhead, estimated_bits};
pub use planes::{Planes, TrellisStep, trellis_error};
pub use policy::{Floor, Policy, RateWeights};
pub use rd_candidate::{Candidates, RdCandidate, TensorCandidates};
pub use rd_measure::{MeasureOptions, measure_candidates};
pub use scales::{ScaleVectors, water_fill};
pub use select::{Selection, WithoutFloor, select_weight};
pub use shared_steps::format_costs;
pub use structure::{FormatCosts, Sharing, Structure};
pub use table::write_table;
pub use target::{COARSEST, FINEST, TargetResult, TargetSize, meet_target};
pub use uniform_correction::uniform_corrections;
