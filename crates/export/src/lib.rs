//! Files that other runtimes load, with types chosen by rate and distortion ([`choose`]). GGUF, for llama.cpp: every
//! matrix gets one of its types, quantized by candle's port of llama.cpp's quantizers with weights by column
//! ([`GgufType`]). compressed-tensors, for vLLM: integers with scales by row or group ([`Scheme`]).

mod directory;
mod error;
mod exact;
mod gguf;
mod metadata;
mod names;
mod packed;
mod scheme;
mod select;
mod stored;
mod tokenizer;
mod types;

pub use directory::{describe, read_values};
pub use error::{ExportError, Result};
pub use exact::exact;
pub use gguf::{Data, GgufFile, GgufTensor, Value, head_bytes, write_gguf};
pub use metadata::metadata;
pub use names::{Name, permute_rows, rope_factors};
pub use packed::Packed;
pub use scheme::Scheme;
pub use select::{Candidate, Chosen, choose};
pub use stored::Stored;
pub use types::{GgufType, Quantized};
