//! Deltas: a directory that restores, with a base checkpoint, the files of a fine-tune byte for byte (section 11.1 of
//! `docs/BITSTREAM.md`).
//!
//! `delta.json` names every file with its digest, and the files of the base that are needed with theirs. A file that
//! the base has too takes no room, a safetensors file becomes `NAME.wfd`, any other is copied. A tensor in a `.wfd`
//! is the base's, a difference from it, coded without it, or raw, whichever is shortest.

mod base;
mod directory;
mod factors;
mod tensor;

pub use directory::{DeltaSummary, apply, delta, delta_with, is_delta};
pub use factors::Factors;
pub use tensor::{Coders, Counts, Lossy};
