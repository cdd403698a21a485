//! What a fine-tune changed: a directory that gives, with its base, the fine-tune's files back byte for byte
//! (section 11.1 of `docs/BITSTREAM.md`).
//!
//! `delta.json` names every file with its digest, and the base's files that are needed with theirs. A file that the base
//! has too takes no room; a safetensors file is `NAME.wfd`; any other is stored as it is. In a `.wfd` a tensor is the
//! base's, a difference from it, coded without it, or as it is, whichever is shortest.

mod base;
mod directory;
mod factors;
mod tensor;

pub use directory::{DeltaSummary, apply, delta, delta_with, is_delta};
pub use factors::Factors;
pub use tensor::{Coders, Counts, Lossy};
