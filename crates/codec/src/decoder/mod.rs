//! Decoding a coded tensor slice by slice.

mod bit_shift_block;
mod block;
mod block_output;
mod digest;
mod slice;
mod structure;
mod tensor;
mod trellis_block;

pub use digest::TensorDigest;
pub use tensor::{CodedTensor, DecodedSlice};
