//! An invented world in plain English: who lives where, what animals eat, how the year goes.
//!
//! From a seed come texts ([`World::text`]) and multiple-choice questions ([`World::question`]) for
//! training, calibration, validation and test. The splits share facts; sentences and question stems
//! belong to one split each, by their digest.

mod facts;
mod lexicon;
mod prose;
mod questions;
mod random;
mod split;

pub use facts::{Fact, World};
pub use prose::Style;
pub use questions::{Question, SUBJECTS};
pub use random::Source;
pub use split::Split;
