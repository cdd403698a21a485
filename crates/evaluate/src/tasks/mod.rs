//! Benchmarks, asked as lm-evaluation-harness 0.4 asks them: by the likelihood of continuations, or by generation.

mod exercise;
mod items;
mod likelihood;
mod mmlu;
mod open;
mod records;
mod retrieval;
mod subjects;
mod task;

pub(crate) use exercise::{last_number, number_after_mark};
pub use items::{Exercise, Items, Question, Scoring, Selection};
pub use open::open;
pub use records::records;
pub use retrieval::{Haystack, Retrieval, retrieval};
pub use subjects::Group;
pub use task::Task;
