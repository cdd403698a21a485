//! Llama-family models on candle, one block in memory at a time.
//!
//! [`Model`] streams a checkpoint: [`Model::embed`], [`Model::block`] for each block, then
//! [`Model::head`]. On the CPU blocks run on kernels of our own, elsewhere on candle's operations:
//! the fused ones forward, the composed ones where gradients are needed, which silently stop at the
//! fused ones.

mod block;
mod config;
mod device;
mod error;
mod family;
mod generate;
mod head;
mod kernels;
mod memory;
pub mod other;
mod pack;
mod product;
pub mod roles;
mod rope;
mod rope_scaling;
mod stream;
pub mod tokens;
mod vjp;

pub use block::{Block, Linear, Others, differentiable_norm};
pub use config::{ModelConfig, lm_head_name};
pub use device::{device, free_device_memory};
pub use error::{ModelError, Result};
pub use family::{ARCHITECTURES, Family, architectures};
pub use generate::{Generator, Reader, Sequence, greedy};
pub use head::Head;
pub use memory::side_by_side;
pub use pack::{pack, unpack};
pub use rope::Rotary;
pub use rope_scaling::RopeScaling;
pub use roles::{EMBEDDING, FINAL_NORM, Projection, TensorRole};
pub use stream::Model;
pub use tokens::{Text, Windows};
pub use vjp::{LinearTrace, Vjp};
