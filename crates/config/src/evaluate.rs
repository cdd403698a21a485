//! The `evaluate` section: text, long contexts and benchmarks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_evaluate::tasks::{Retrieval, Scoring, Task};

use crate::calibrate::{
    default_batch_tokens, default_context, default_join, default_part, default_seed, default_sequences,
};

/// How the decoded files are evaluated.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// A UTF-8 text file, a file of rows with a `text` (`.parquet`, or lines of JSON in `.jsonl`, `.json` and with `.gz`),
    /// such files of a dataset on the hub (`hf:OWNER/NAME:PATTERN`), or `fixture`; give this or `tokens`.
    #[serde(default)]
    pub text: Option<String>,
    /// Text between two rows.
    #[serde(default = "default_join")]
    pub join: String,
    /// Number of rows to take, from the first; all if absent.
    #[serde(default)]
    pub documents: Option<usize>,
    /// Where the tokenizer's beginning-of-text token is inserted.
    #[serde(default)]
    pub bos: Bos,
    /// A file of little-endian u16 token ids.
    #[serde(default)]
    pub tokens: Option<String>,
    /// First and last share of the tokens to use, 0 to 1.
    #[serde(default = "default_part")]
    pub part: [f64; 2],
    /// Inputs of a sequence. Sequences do not overlap (stride = context + 1).
    #[serde(default = "default_context")]
    pub context: usize,
    /// Number of sequences, from the start of the part.
    #[serde(default = "default_sequences")]
    pub sequences: usize,
    /// Tokens in a batch, at least one sequence; twice as many for questions.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,
    /// Long sequences of the same text, reported by position.
    #[serde(default)]
    pub long_context: Option<LongContext>,
    /// The benchmark whose accuracy stands in the tables.
    #[serde(default)]
    pub multiple_choice: Option<MultipleChoice>,
    /// Further benchmarks.
    #[serde(default)]
    pub benchmarks: Vec<MultipleChoice>,
}

impl Evaluate {
    /// All benchmarks, the one of the tables first.
    pub fn choices(&self) -> impl Iterator<Item = &MultipleChoice> {
        self.multiple_choice.iter().chain(&self.benchmarks)
    }
}

/// Sequences as long as the model takes, reported by position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LongContext {
    /// Inputs of a sequence; all that the model takes if absent.
    pub context: Option<usize>,
    /// Sequences, from the start of the part.
    pub sequences: usize,
    /// Bands of positions: the second half, the quarter before it, and so on.
    pub bands: usize,
}

impl Default for LongContext {
    fn default() -> Self {
        Self { context: None, sequences: 16, bands: 5 }
    }
}

/// Where the tokenizer's beginning-of-text token is inserted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Bos {
    /// Before every sequence, as models are trained.
    #[default]
    Each,
    /// Before the whole text, as GPTQ and its successors measure.
    First,
    /// Nowhere.
    None,
}

/// A benchmark's questions, asked as lm-evaluation-harness does.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultipleChoice {
    /// Which benchmark.
    #[serde(default)]
    pub task: Task,
    /// A file of rows (`.parquet`, or lines of JSON), a directory with the files of the dataset on the hub or with MMLU's
    /// `dev/` and `test/`, `hf:OWNER/NAME` for the hub itself, or `fixture`.
    pub path: String,
    /// Solved examples before each question of MMLU and GSM8K; 5 if absent. Prompts longer than the context lose
    /// their beginning.
    #[serde(default)]
    pub shots: Option<usize>,
    /// File that GSM8K's solved examples come from, or `hf:OWNER/NAME:PATTERN`; without it, the split `train` of a
    /// dataset in `path`.
    #[serde(default)]
    pub examples: Option<String>,
    /// Whether prompts begin with the beginning-of-text token; lm-evaluation-harness leaves it out.
    #[serde(default)]
    pub bos: bool,
    /// Whether questions with a choice longer than the model's context are skipped; otherwise they are an error.
    #[serde(default)]
    pub skip_long: bool,
    /// Number of questions to draw.
    #[serde(default = "default_questions")]
    pub questions: usize,
    /// Seed of the draw.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// How the model's answer to an MMLU question is found.
    #[serde(default)]
    pub scoring: Scoring,
    /// Subjects of MMLU; all when empty.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// How keys are hidden, for task `retrieval`: `path` is then the text around them, and `questions` counts those of
    /// each length and depth.
    #[serde(default)]
    pub retrieval: Option<Retrieval>,
}

impl MultipleChoice {
    /// Whether answers are generated, which holds the whole model in memory.
    pub fn is_written(&self) -> bool {
        self.task == Task::Gsm8k || self.scoring == Scoring::Written
    }

    /// Solved examples before each question.
    pub fn shots(&self) -> usize {
        self.shots.unwrap_or(if self.has_examples() { self.task.usual_shots() } else { 0 })
    }

    /// Whether there is a source of solved examples.
    pub fn has_examples(&self) -> bool {
        let whole = self.path.strip_prefix("hf:").is_some_and(|rest| !rest.contains(':'));
        let dataset = whole || std::path::Path::new(&self.path).is_dir();
        self.task != Task::Gsm8k || self.examples.is_some() || dataset
    }
}

fn default_questions() -> usize {
    200
}
