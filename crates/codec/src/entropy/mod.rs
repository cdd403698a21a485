//! Entropy coding: an adaptive coder for headers and side information, an interleaved one with static tables for samples.

pub mod adaptive_rans;
pub(crate) mod bits;
pub(crate) mod interleaved_rans;
pub mod models;
pub(crate) mod table_data;
pub mod tables;
