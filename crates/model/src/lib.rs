//! Llama-family models on candle, one block in memory at a time.
//!
//! [`Model`] streams a checkpoint: [`Model::embed`], [`Model::block`] for each block, then
//! [`Model::head`]. On the CPU blocks run on kernels of our own, elsewhere on candle's operations:
//! the fused ones forward, the composed ones where gradients are needed, which silently stop at the
//! fused ones.
//!
//! [`TensorRole`] says which part of the network a tensor is; no other code reads the names of tensors.
//!
//! ```
//! use waterfill_model::{Projection, TensorRole};
//!
//! let role = TensorRole::parse("model.layers.3.self_attn.v_proj.weight").unwrap();
//! assert_eq!(role, Projection::Value.weight(3));
//! // q, k and v read the same input, which the first of them stands for.
//! assert_eq!(role.first_of_input(), Some(Projection::Query.weight(3)));
//! assert!(role.may_be_coded() && !Projection::Value.bias(3).may_be_coded());
//! ```

mod block;
pub mod chat;
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
pub use chat::{ChatTemplate, ChatTemplates, Message};
pub use config::{ModelConfig, SlidingWindow, lm_head_name};
pub use device::{device, free_device_memory};
pub use error::{ModelError, Result};
pub use family::{ARCHITECTURES, Family, architectures};
pub use generate::{Generator, Reader, Sequence, greedy};
pub use head::Head;
pub use memory::side_by_side;
pub use pack::{pack, unpack};
pub use roles::{EMBEDDING, FINAL_NORM, Projection, TensorRole};
pub use rope::Rotary;
pub use rope_scaling::RopeScaling;
pub use stream::Model;
pub use tokens::{Text, Windows};
pub use vjp::{LinearTrace, Vjp};
