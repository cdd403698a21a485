//! Llama-family models on candle, one block in memory at a time.
//!
//! [`Model`] streams a checkpoint: [`Model::embed`], [`Model::block`] for each block, then
//! [`Model::head`]. [`Block::forward`] uses candle's fused operations; [`Block::vjp`] uses the
//! composed forms, because gradients silently stop at the fused ones, and checks that every
//! weight got one.

mod block;
mod config;
mod error;
mod head;
mod kernels;
mod pack;
mod stream;
pub mod tokens;

pub use block::{Block, LINEARS, LinearTrace, Rotary, Vjp, differentiable_norm};
pub use config::ModelConfig;
pub use error::{ModelError, Result};
pub use head::Head;
pub use pack::{pack, unpack};
pub use stream::{EMBEDDING, FINAL_NORM, Model, device, linear_name, lm_head_name, norm_names};
pub use tokens::{Text, Windows};
