//! Speed and size of the codec: every figure from seeded weights, zstd on the same bytes in the same
//! run, medians of repeated measurements on one core unless it says otherwise.

mod calibration;
mod codec;
mod difference;
mod entropy;
mod error;
mod levels;
mod load;
mod moments;
mod packing;
mod quantizer;
mod rotation;
mod source;
mod structures;
mod timing;

pub use calibration::{CalibrationBench, bench_calibration};
pub use codec::{CodecBench, bench_codec};
pub use difference::{DifferenceRow, bench_difference, xor_bytes};
pub use entropy::{EntropyBench, bench_entropy};
pub use error::BenchError;
pub use load::{LoadRow, Source, Start, bench_load, start_once};
pub use moments::{MomentsBench, bench_moments};
pub use packing::{PackBench, bench_pack};
pub use quantizer::{GaussianPoint, QuantizerBench, QuantizerSpeed, bench_quantizer};
pub use rotation::{RotationBench, RotationCost, bench_rotation};
pub use structures::StructureBench;
