//! Quality of a checkpoint, always measured on the file as it decodes.
//!
//! [`evaluate_text`] measures perplexity, KL and top-1 agreement; [`evaluate_choices`] answers
//! multiple-choice questions as MMLU does. Both stream the model block by block and keep finished
//! blocks of sequences and questions. Every figure carries its uncertainty.

mod answering;
mod choice;
mod error;
mod likelihood;
mod other;
mod probe;
mod states;
mod statistics;
pub mod tasks;
mod text;
mod writing;

pub use answering::Answering;
pub use choice::{ChoiceResult, EvalInputs, QuestionResult, Share, evaluate_choices};
pub use error::{EvaluateError, Result};
pub use other::evaluate_other;
pub use probe::{Errors, ProbeText, Probed, Variant, probe_text};
pub use states::block_tokens;
pub use statistics::{Estimate, rank_correlation, wilson};
pub use text::{
    Band, Original, SEQUENCES, Sequences, TextResult, comparison_bytes, evaluate_positions, evaluate_text, text_units,
};
