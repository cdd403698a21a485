//! Syntax of a coded tensor, written once for encoder, decoder and rate counter.

pub(crate) mod bit_planes;
pub mod bit_shift;
pub mod difference;
pub mod float_prefix;
pub mod header;
pub mod lattice;
pub mod level_costs;
pub mod rests;
pub mod sample;
pub mod side_info;
pub mod slice;
pub(crate) mod streams;
pub(crate) mod tensor_plan;
pub mod text;
pub mod tile_header;
pub mod tile_plan;
pub mod tools;
pub mod trellis;
