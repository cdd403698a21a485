//! How many bits every tile gets.
//!
//! [`measure_points`] turns sensitivities and weights into rate-distortion points for every tile:
//! format, step, predicted loss and coded bits. It runs once for any number of allocations.
//! [`select_weight`] then minimises J = loss + lambda * rate tile by tile, and [`meet_target`] finds the
//! lambda whose file has a wanted size.

mod candidates;
mod error;
mod even;
mod factor;
mod files;
mod points;
mod policy;
mod sample;
mod scales;
mod select;
mod structure;
mod table;
mod target;

pub use candidates::Candidates;
pub use error::{AllocateError, Result};
pub use even::even_corrections;
pub use factor::Factor;
pub use files::{Allocation, Blobs, PlannedWeight, read_plan};
pub use points::{Importance, Point, PointRules, WeightPoints, erasure_loss, measure_points, raises};
pub use policy::{Floor, Granularity, Policy, RateWeights, ShardRule};
pub use scales::water_fill;
pub use select::{Overhead, Selection, select_weight};
pub use structure::{FormatCosts, Sharing, Structure, format_costs};
pub use table::write_table;
pub use target::{TargetResult, estimated_bits, meet_target};
