//! What a checkpoint is worth, always measured from the file as it decodes.
//!
//! [`final_states`] streams a model block by block; [`evaluate_text`] turns final states into
//! perplexity, KL and top-1 agreement; [`evaluate_choices`] answers multiple-choice questions as
//! MMLU does. Every figure carries its uncertainty.

mod choice;
mod error;
mod questions;
mod states;
mod statistics;
mod text;

pub use choice::{ChoiceResult, QuestionResult, evaluate_choices};
pub use error::{EvaluateError, Result};
pub use questions::{Question, QuestionSet, prompt};
pub use states::{final_states, read_states, write_states};
pub use statistics::{Estimate, wilson};
pub use text::{TextResult, evaluate_text};
