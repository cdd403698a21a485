//! The YAML configuration of a pipeline. Paths are relative to the working directory.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use waterfill_codec::Trellis;
use waterfill_evaluate::tasks::{Retrieval, Scoring, Task};
use waterfill_quantize::rdo::{Preset, Tool};

pub use crate::granularity::Granularity;
pub use crate::layers::Layers;
use crate::stages::BATCH_TOKENS;

/// One pipeline.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the results' folder.
    pub name: String,
    /// `hf:OWNER/NAME` for a model on the hub (`hf:OWNER/NAME@REVISION` for a branch, tag or commit),
    /// `path:DIR` for a checkpoint directory, `fixture:SEED` for a small generated model.
    pub model: String,
    /// Words to find its runs by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Folder of all artifacts.
    #[serde(default = "default_store")]
    pub store: String,
    /// Allows formats and tools that exist to be measured, not to be shipped.
    #[serde(default)]
    pub experimental: bool,
    /// Sensitivities.
    pub calibrate: Calibrate,
    /// Bits for every tile.
    pub allocate: Allocate,
    /// How tiles are coded.
    #[serde(default)]
    pub encode: Encode,
    /// A usual quantiser instead of allocation and coding, to compare with.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// Quality of the decoded files.
    pub evaluate: Evaluate,
}

/// Codes of a fixed width for all matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// How codes are chosen.
    pub method: BaselineMethod,
    /// Widths of codes, 2 to 8; a checkpoint for each.
    pub bits: Vec<u32>,
    /// Columns that share a scale in a row; of `gptq`.
    #[serde(default = "default_block")]
    pub group: usize,
}

/// How codes of a fixed width are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BaselineMethod {
    /// Rounding to the nearest, a scale for each 16x16 tile.
    Absmax,
    /// FP8 E4M3, a scale for each 16x16 tile; of eight bits.
    Fp8,
    /// Error feedback in the columns' own order, a scale for each group of a row.
    Gptq,
}

/// How sensitivities are measured.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    /// A UTF-8 text file, or `fixture` for the generated one, or rows as in `evaluate.text`.
    pub text: String,
    /// What stands between two rows.
    #[serde(default = "default_join")]
    pub join: String,
    /// Rows taken, from the first; all if absent.
    #[serde(default)]
    pub documents: Option<usize>,
    /// From which to which share of its tokens.
    #[serde(default = "default_part")]
    pub part: [f64; 2],
    /// Tokens of a sequence.
    #[serde(default = "default_context")]
    pub context: usize,
    /// Sequences, spread evenly over the part.
    #[serde(default = "default_calibration_sequences")]
    pub sequences: usize,
    /// Tokens that are computed with at a time, at least a sequence: fewer take less memory, and round differently.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,
    /// Seed of sampled labels.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Labels of the loss.
    #[serde(default)]
    pub labels: Labels,
    /// Further sequences, spread among them, on which losses are measured.
    #[serde(default)]
    pub held_out: usize,
    /// Parts of the text whose sensitivities are kept apart.
    #[serde(default = "default_one")]
    pub shards: usize,
    /// How much of the inputs' second moments is kept.
    #[serde(default)]
    pub second_moment: SecondMoment,
    /// Side of the blocks when block-diagonal.
    #[serde(default = "default_block")]
    pub second_moment_block: usize,
    /// How much of the output gradients' second moments is kept.
    #[serde(default)]
    pub output_moment: SecondMoment,
    /// Weight of each token in the second moments.
    #[serde(default)]
    pub second_moment_weighting: Weighting,
}

/// Whose labels the gradients come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// Drawn from the model: true Fisher information.
    #[default]
    Sampled,
    /// The text's own next tokens: empirical Fisher information.
    Data,
}

/// How much of H = E[x x^T] is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecondMoment {
    /// All of it: in the 8B layout 8 GB for the whole model.
    #[default]
    Full,
    /// Blocks along the diagonal.
    BlockDiagonal,
    /// The diagonal.
    Diagonal,
}

/// Weight of each token in H.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// All alike.
    Plain,
    /// By the energy of the output gradient.
    #[default]
    Gradient,
}

/// How bits are distributed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allocate {
    /// One tuned checkpoint for each lambda: nats of loss per token for one bit of the file. A list, or `{from, to,
    /// points}`, evenly spaced by logarithms.
    #[serde(default, deserialize_with = "crate::lambdas::read")]
    #[schemars(with = "crate::lambdas::Lambdas")]
    pub lambdas: Vec<f64>,
    /// One tuned checkpoint for each size.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// Formats that may be used; int2, int3 and fp4 with `experimental` only.
    #[serde(default = "default_formats")]
    pub formats: Vec<Format>,
    /// `safe` gives embedding, q, k, v and head at least the quality of FP8.
    #[serde(default)]
    pub policy: PolicyName,
    /// Further floors.
    #[serde(default)]
    pub floors: Vec<Floor>,
    /// Predicted losses are raised by this share before they are weighed against bits.
    #[serde(default)]
    pub margin: f64,
    /// No tensor counts as less sensitive than this share of the median tensor, by the predicted
    /// loss of erasing it: the quadratic model underrates saturated attention.
    #[serde(default = "default_sensitivity_floor")]
    pub sensitivity_floor: f64,
    /// Which tensors are tuned alone to compare their measured loss with the predicted.
    #[serde(default)]
    pub probes: Probes,
    /// Which groups of tensors of each tuned checkpoint are measured, on held-out text, for a second allocation of
    /// the same bytes; the better of both is kept, or a uniform one if that is better still.
    #[serde(default)]
    pub closed_loop: Probes,
    /// How several calibration shards combine.
    #[serde(default)]
    pub shard_rule: ShardRule,
    /// Which weights share scales and steps: `tile` (steps by tile alone), `row-column` (scales of rows and columns
    /// too), or as other runtimes have it in linear layers: `tensor`, `channel` (a row), `group:N` (N columns of a row).
    #[serde(default)]
    pub granularity: Granularity,
    /// What a bit is.
    #[serde(default)]
    pub rate: RateWeights,
}

/// Groups of tensors whose loss is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Probes {
    /// None: losses are taken as predicted.
    #[default]
    None,
    /// Tensors of one kind, such as all `q_proj`.
    Kinds,
    /// Every tensor.
    Layers,
}

/// How tiles are coded: a preset, and tools added to it or taken from it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Encode {
    /// `fast` codes tiles as allocated, `balanced` searches with the tools that pay, `best` with all that
    /// do not lose quality.
    pub preset: Preset,
    /// Tools to add; experimental ones with `experimental` only.
    pub with: Vec<Tool>,
    /// Tools to take away.
    pub without: Vec<Tool>,
    /// Whether errors of a column are fed back into those after it.
    pub feedback: bool,
    /// Share of the mean of a second moment's diagonal that is added to it before it is factored.
    pub damping: f64,
    /// States of the trellis, 4 to 256; 0 rounds every level alone.
    pub states: Option<usize>,
    /// Share of the price of bits that levels are chosen by.
    pub rounding: f32,
    /// Whether tensors are coded one after the other, and weights that are not coded yet make up on
    /// calibration text for what coded ones have lost; all weights are in memory then.
    pub sequential: Option<Sequential>,
    /// Several layers of quality in one checkpoint: a base, and refinements in shards of their own that may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
}

/// How weights that are not coded yet make up for coded ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sequential {
    /// Batches of 2048 tokens after every part of a block: q, k and v; o; gate and up; down.
    pub steps: usize,
    /// Largest step of a weight as a share of the error that coding it is likely to make.
    pub rate: f64,
}

impl Default for Sequential {
    fn default() -> Self {
        Self { steps: 10, rate: 0.015 }
    }
}

impl Default for Encode {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            with: vec![],
            without: vec![],
            feedback: true,
            damping: 0.03,
            states: None,
            rounding: 0.3,
            sequential: None,
            layers: None,
        }
    }
}

impl Encode {
    /// The trellis: as told, or the preset's.
    pub(crate) fn trellis(&self) -> Option<Trellis> {
        let preset = match self.preset {
            Preset::Fast => 0,
            Preset::Balanced => 8,
            Preset::Best => 256,
        };
        let states = self.states.unwrap_or(preset);
        if states.is_power_of_two() { Trellis::new(states.trailing_zeros()) } else { None }
    }

    /// Tools that the search may use.
    pub(crate) fn tools(&self) -> BTreeSet<Tool> {
        let mut tools = self.preset.tools();
        tools.extend(&self.with);
        tools.retain(|t| !self.without.contains(t));
        tools
    }
}

/// A wanted size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Bits of the file over all weights.
    BitsPerWeight(f64),
    /// Bytes of the file.
    Bytes(u64),
}

/// Number format of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Levels -8 to 7.
    Int4,
    /// Levels -127 to 127.
    Int8,
    /// FP8 E4M3.
    Fp8,
    /// Bit-exact.
    Lossless,
    /// FP8 E5M2.
    Fp8E5m2,
    /// Levels -2 to 1; experimental.
    Int2,
    /// Levels -4 to 3; experimental.
    Int3,
    /// FP4 E2M1; experimental.
    Fp4,
}

impl Format {
    /// The codec's format.
    pub(crate) fn in_codec(self) -> waterfill_codec::Format {
        use waterfill_codec::Format as Codec;
        match self {
            Self::Int4 => Codec::Int4,
            Self::Int8 => Codec::Int8,
            Self::Fp8 => Codec::Fp8,
            Self::Lossless => Codec::Lossless,
            Self::Fp8E5m2 => Codec::Fp8E5M2,
            Self::Int2 => Codec::Int2,
            Self::Int3 => Codec::Int3,
            Self::Fp4 => Codec::Fp4,
        }
    }
}

/// A ready set of floors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// No floors.
    #[default]
    Free,
    /// FP8 or better for embedding, q, k, v and head.
    Safe,
}

/// Least quality by name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// Glob over tensor names, such as `*.layers.0.*`.
    pub pattern: String,
    /// Formats below this one are not used and no tile loses more than it would.
    pub at_least: Format,
}

/// How several calibration shards combine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ShardRule {
    /// Their mean.
    #[default]
    Mean,
    /// The largest.
    Worst,
}

/// Prices of a bit in the file and of a bit in memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateWeights {
    /// Bits of the file.
    #[serde(default = "default_storage")]
    pub storage: f64,
    /// Bits in a runtime's memory.
    #[serde(default)]
    pub resident: f64,
}

impl Default for RateWeights {
    fn default() -> Self {
        Self { storage: 1.0, resident: 0.0 }
    }
}

/// What is measured of the decoded files.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// A UTF-8 text file, a file of rows with a `text` (`.parquet`, or lines of JSON in `.jsonl`, `.json` and with `.gz`),
    /// such files of a dataset on the hub (`hf:OWNER/NAME:PATTERN`), or `fixture`; give this or `tokens`.
    #[serde(default)]
    pub text: Option<String>,
    /// What stands between two rows.
    #[serde(default = "default_join")]
    pub join: String,
    /// Rows taken, from the first; all if absent.
    #[serde(default)]
    pub documents: Option<usize>,
    /// Before what the tokenizer's beginning of text stands.
    #[serde(default)]
    pub bos: Bos,
    /// A file of little-endian u16 token ids.
    #[serde(default)]
    pub tokens: Option<String>,
    /// From which to which share of its tokens.
    #[serde(default = "default_part")]
    pub part: [f64; 2],
    /// Inputs of a sequence; sequences do not overlap (stride = context + 1).
    #[serde(default = "default_context")]
    pub context: usize,
    /// Sequences, from the start of the part.
    #[serde(default = "default_evaluation_sequences")]
    pub sequences: usize,
    /// Tokens that are computed with at a time, at least a sequence; twice as many of questions.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,
    /// Figures by position in long sequences of the same text.
    #[serde(default)]
    pub long_context: Option<LongContext>,
    /// The questions whose accuracy stands in the tables.
    #[serde(default)]
    pub multiple_choice: Option<MultipleChoice>,
    /// Further ones.
    #[serde(default)]
    pub benchmarks: Vec<MultipleChoice>,
}

impl Evaluate {
    /// All questions.
    pub(crate) fn choices(&self) -> impl Iterator<Item = &MultipleChoice> {
        self.multiple_choice.iter().chain(&self.benchmarks)
    }
}

/// Sequences as long as the model takes, told apart by position.
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

/// Before what the tokenizer's beginning of text stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Bos {
    /// Every sequence, as models are trained.
    #[default]
    Each,
    /// The whole text, as GPTQ and its successors measure.
    First,
    /// Nothing.
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
    /// Solved examples before each question of MMLU and GSM8K; 5 if absent. What does not fit the context loses
    /// its beginning.
    #[serde(default)]
    pub shots: Option<usize>,
    /// File that GSM8K's solved examples come from, or `hf:OWNER/NAME:PATTERN`; without it, the split `train` of a
    /// dataset in `path`.
    #[serde(default)]
    pub examples: Option<String>,
    /// Whether the tokenizer's beginning of text stands before; the harness leaves it out.
    #[serde(default)]
    pub bos: bool,
    /// Whether questions with a choice that is longer than the model's context are left out; else they are an error.
    #[serde(default)]
    pub skip_long: bool,
    /// Questions drawn.
    #[serde(default = "default_questions")]
    pub questions: usize,
    /// Seed of the draw.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// What is compared to find the model's answer to MMLU's questions.
    #[serde(default)]
    pub scoring: Scoring,
    /// Subjects of MMLU; all when empty.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// How keys are hidden, of `retrieval`; `path` is the text around them then, `questions` those of each length
    /// and depth.
    #[serde(default)]
    pub retrieval: Option<Retrieval>,
}

impl MultipleChoice {
    /// Whether answers are written, for which the whole model is in memory.
    pub(crate) fn is_written(&self) -> bool {
        self.task == Task::Gsm8k || self.scoring == Scoring::Written
    }

    /// Solved examples before each question.
    pub(crate) fn shots(&self) -> usize {
        self.shots.unwrap_or(if self.has_examples() { self.task.usual_shots() } else { 0 })
    }

    /// Whether solved examples are to be had.
    pub(crate) fn has_examples(&self) -> bool {
        let whole = self.path.strip_prefix("hf:").is_some_and(|rest| !rest.contains(':'));
        let dataset = whole || std::path::Path::new(&self.path).is_dir();
        self.task != Task::Gsm8k || self.examples.is_some() || dataset
    }
}

fn default_store() -> String {
    "results".into()
}
fn default_join() -> String {
    "\n\n".into()
}
fn default_part() -> [f64; 2] {
    [0.0, 1.0]
}
fn default_context() -> usize {
    256
}
fn default_calibration_sequences() -> usize {
    64
}
fn default_evaluation_sequences() -> usize {
    64
}
fn default_batch_tokens() -> usize {
    BATCH_TOKENS
}
fn default_seed() -> u64 {
    1
}
fn default_one() -> usize {
    1
}
fn default_block() -> usize {
    128
}
fn default_formats() -> Vec<Format> {
    vec![Format::Int4, Format::Int8, Format::Fp8, Format::Lossless]
}
fn default_sensitivity_floor() -> f64 {
    0.3
}
fn default_storage() -> f64 {
    1.0
}
fn default_questions() -> usize {
    200
}
