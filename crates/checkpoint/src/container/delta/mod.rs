//! Deltas: a directory that restores, with a base checkpoint, the files of a fine-tune byte for byte (section 11.1 of
//! `docs/BITSTREAM.md`).
//!
//! `delta.json` names every file with its digest, and the files of the base that are needed with theirs. A file that
//! the base has too takes no room, a safetensors file becomes `coded/NAME.wfd`, any other is copied to `stored/NAME`. A
//! tensor in a `.wfd` is the base's, a difference from it, coded without it, or raw, whichever is shortest.

mod apply;
mod base;
mod coded;
mod factors;
mod files;
mod list;
mod make;
mod tensor;

pub use apply::{apply, is_delta, verify};
pub use factors::Factors;
pub use files::{DeltaSummary, bytes_of, digest_of_files};
pub use make::{delta, delta_with};
pub use tensor::{Coders, Counts, Lossy};

pub use crate::container::tree::LeftOut;
