//! Files and directories around coded tensors: packed safetensors files, and deltas from a base checkpoint.

pub mod delta;
mod frame;
pub(crate) mod names;
pub mod pack;
mod source;
mod tree;
