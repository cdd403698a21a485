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
mod generate;
mod head;
mod kernels;
mod memory;
pub mod other;
mod pack;
mod product;
mod rope;
mod stream;
pub mod tokens;
mod vjp;

pub use block::{Block, LINEARS, Linear, Others, differentiable_norm, fused};
pub use config::{ARCHITECTURES, ModelConfig, architectures};
pub use device::{device, free_device_memory};
pub use error::{ModelError, Result};
pub use generate::{Generator, Reader, Sequence, greedy};
pub use head::Head;
pub use memory::side_by_side;
pub use pack::{pack, unpack};
pub use rope::{RopeScaling, Rotary};
pub use stream::{EMBEDDING, FINAL_NORM, Model, bias_name, linear_name, lm_head_name, norm_names, qk_norm_names};
pub use tokens::{Text, Windows};
pub use vjp::{LinearTrace, Vjp};
