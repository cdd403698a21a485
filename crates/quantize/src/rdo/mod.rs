//! Rate-distortion optimised choice of tools: mode, predictor and transform of every tile, by `J = D + lambda * R` with
//! the codec's own code lengths.

mod input;
mod parameters;
mod predictors;
mod rounding;
mod tensor;
mod tile;
pub(crate) mod tools;
mod transforms;
pub(crate) mod usage;

pub use input::RdoInput;
pub use rounding::Rounding;
pub use tensor::encode_rdo;
pub use tile::TileSearch;
pub use tools::{Preset, Tool};
pub use usage::{Usage, tools_of};
