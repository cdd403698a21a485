//! Command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use waterfill_pipeline::{Config, Mode};

/// Decides how many bits every weight of an LLM deserves, and writes a checkpoint with those bits.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Threads; results do not depend on it [default: one for each core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// No progress
    #[arg(long, global = true, conflicts_with = "json")]
    pub quiet: bool,
    /// One JSON object on standard output, events as JSON lines on standard error
    #[arg(long, global = true)]
    pub json: bool,
}

impl Arguments {
    pub fn mode(&self) -> Mode {
        match (self.json, self.quiet) {
            (true, _) => Mode::Json,
            (_, true) => Mode::Quiet,
            _ => Mode::Human,
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// All stages: calibrate, allocate, encode, evaluate, report
    Run(RunArguments),
    /// Measure the sensitivity of every tile
    Calibrate(RunArguments),
    /// Decide format and step of every tile
    Allocate(RunArguments),
    /// Write the tuned checkpoints
    Encode(RunArguments),
    /// Measure perplexity, KL and accuracy of the decoded files
    Evaluate {
        /// The original alone: nothing is calibrated, and more architectures will do
        #[arg(long)]
        original: bool,
        #[command(flatten)]
        run: RunArguments,
    },
    /// Write tables, figures and the HTML page
    Report(RunArguments),
    /// Run every combination of a file's sweep section
    Sweep {
        /// YAML file
        file: PathBuf,
        /// Show what would be computed, what is there already, and the estimated time
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        options: RunOptions,
    },
    /// List what has been run
    Runs(RunsArguments),
    /// Two runs side by side: settings, points with paired differences, tensors
    Compare {
        /// A run as `runs` names it, the beginning or the end of its name, or its label
        first: String,
        /// Another
        second: String,
        /// Folder of the artifacts
        #[arg(long, default_value = "results")]
        store: PathBuf,
    },
    /// Remove artifacts that no run needs; asks first
    Gc {
        /// Folder of the artifacts
        #[arg(long, default_value = "results")]
        store: PathBuf,
        /// Runs to forget, with what only they need
        #[arg(long, value_name = "RUN")]
        forget: Vec<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Only show what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Runs as tables: `runs`, `points`, `tensors` (CSV and Parquet) and `tiles` (Parquet)
    Tables {
        #[command(flatten)]
        runs: RunsArguments,
        /// Directory
        #[arg(long)]
        out: PathBuf,
    },
    /// Pictures of one matrix of a run: sensitivity, bits and mode by tile, and levels against their table
    Map {
        /// A run as `runs` names it, the beginning or the end of its name, or its label
        run: String,
        /// Name of the matrix, or the end of one, such as layers.3.mlp.up_proj
        tensor: String,
        /// Which of the run's points, counted from 0; the middle one if absent
        #[arg(long)]
        point: Option<usize>,
        /// Directory
        #[arg(long, default_value = "maps")]
        out: PathBuf,
        /// Folder of the artifacts
        #[arg(long, default_value = "results")]
        store: PathBuf,
    },
    /// A sweep's tables, and a Jupyter notebook that reads them and draws the main figures
    ExportNotebook {
        /// Name of the sweep's file, without its ending
        sweep: String,
        /// Directory
        #[arg(long, default_value = "notebooks-export")]
        out: PathBuf,
        /// Folder of the artifacts
        #[arg(long, default_value = "results")]
        store: PathBuf,
    },
    /// Train a small model on the generated world
    Train {
        /// YAML file
        config: PathBuf,
        /// Compute damaged artifacts again
        #[arg(long)]
        repair: bool,
    },
    /// Check a configuration without running it
    Validate {
        /// YAML file
        config: PathBuf,
    },
    /// Print the JSON schema of configurations
    Schema {
        /// That of training files instead
        #[arg(long)]
        train: bool,
    },
    /// Describe an artifact or a checkpoint
    Inspect {
        /// Directory
        path: PathBuf,
    },
    /// Check every digest of an artifact, a checkpoint, a packed file, or a whole store
    Verify {
        /// Directory or packed file
        path: PathBuf,
        /// Of a delta, the checkpoint that it is from
        #[arg(long)]
        base: Option<PathBuf>,
    },
    /// Continue a text with a checkpoint, multiplying straight from its packed tiles
    Generate {
        /// Directory, tuned or not
        checkpoint: PathBuf,
        /// Text to continue
        #[arg(long)]
        prompt: String,
        /// Most tokens to write
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        tokens: u32,
        /// Keep linear layers as dense f32 instead
        #[arg(long)]
        dense: bool,
    },
    /// Compare products from packed tiles with dense ones, and what both write
    ServeCheck {
        /// Directory, tuned or not
        checkpoint: PathBuf,
        /// Text to continue
        #[arg(long, default_value = "The")]
        prompt: String,
        /// Tokens to write
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..))]
        tokens: u32,
    },
    /// Write what a fine-tune has changed from its base, without loss
    Delta {
        /// Directory of the base
        base: PathBuf,
        /// Directory of the fine-tune
        tuned: PathBuf,
        /// Directory to create
        #[arg(long)]
        out: PathBuf,
        /// With loss, by rate and distortion: a configuration with one size or lambda, used for the fine-tune
        #[arg(long, value_name = "FILE")]
        lossy: Option<PathBuf>,
    },
    /// Restore a fine-tune from its base and its delta, byte for byte
    Apply {
        /// Directory of the base
        base: PathBuf,
        /// Directory that `delta` has written
        delta: PathBuf,
        /// Directory to create
        #[arg(long)]
        out: PathBuf,
    },
    /// Pack a safetensors file without loss
    Pack {
        /// Safetensors file
        file: PathBuf,
        /// File to create
        out: PathBuf,
    },
    /// Restore the safetensors file that was packed, byte for byte
    Unpack {
        /// Packed file
        file: PathBuf,
        /// File to create
        out: PathBuf,
    },
    /// Write random weights in the layout of a published model, to try sizes and memory
    MakeCheckpoint {
        /// Name of the model, such as llama3-8b
        #[arg(long, value_name = "NAME")]
        like: String,
        /// Fewer layers than the model has
        #[arg(long, value_name = "N")]
        layers: Option<usize>,
        /// Seed of the weights
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Directory to create
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Measure speed and size
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Write files that other runtimes load
    Export {
        /// Tuned checkpoint for hf-bf16 or compressed-tensors; else a configuration, types are chosen for each of its goals
        path: PathBuf,
        /// What to write
        #[arg(long)]
        to: ExportTarget,
        /// Directory to create for a checkpoint; of a configuration, where files go [default: the store]
        #[arg(long)]
        out: Option<PathBuf>,
        #[command(flatten)]
        options: RunOptions,
    },
    /// Write a tuned checkpoint as a dense Hugging Face directory
    Decode {
        /// Tuned checkpoint
        checkpoint: PathBuf,
        /// Directory to create
        out: PathBuf,
        /// Element type [default: each tensor's own]
        #[arg(long)]
        dtype: Option<DtypeName>,
        /// Most layers to use, the base counted [default: all that are there]
        #[arg(long, value_name = "K", conflicts_with = "bytes", value_parser = clap::value_parser!(u32).range(1..))]
        layers: Option<u32>,
        /// Most bytes to use of all shards one after the other
        #[arg(long, value_name = "N")]
        bytes: Option<u64>,
    },
}

#[derive(Args, Clone)]
pub struct RunsArguments {
    /// Folder of the artifacts
    #[arg(long, default_value = "results")]
    pub store: PathBuf,
    /// Of the pipeline of this name
    #[arg(long)]
    pub model: Option<String>,
    /// Of this sweep
    #[arg(long)]
    pub sweep: Option<String>,
    /// With this among the configuration's tags
    #[arg(long)]
    pub tag: Option<String>,
    /// From a date on, such as 2026-11 or 2026-11-22
    #[arg(long)]
    pub since: Option<String>,
    /// With a point of which this holds, such as 'kl<0.01'; several hold of one point
    #[arg(long = "where", value_name = "CONDITION")]
    pub points: Vec<String>,
}

#[derive(Subcommand)]
pub enum Bench {
    /// Differences between checkpoints against their entropy, and XOR under zstd
    Difference {
        /// Rows and columns of the matrix
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(64..))]
        side: u16,
    },
    /// Of the codec, against zstd on the same bytes
    Codec {
        /// Rows and columns of the lossless matrix
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(64..=8192))]
        side: u16,
        /// Measurements of each figure
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
    },
    /// Of quantisation: gaps to the Shannon bound on a Gaussian source, and speed with error feedback
    Quantizer {
        /// Rows and columns of the matrices
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(64..=8192))]
        side: u16,
        /// Measurements of each figure
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
    },
    /// Of the gradients that calibration consists of, against candle's automatic differentiation
    Calibration {
        /// Checkpoint whose first block is measured
        checkpoint: PathBuf,
        /// Tokens of a context
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(16..=8192))]
        tokens: u16,
        /// Measurements of each figure
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
    },
    /// Of what second moments are worth to error feedback, whole and in parts
    Moments {
        /// Artifact of a calibration with full second moments
        calibration: PathBuf,
    },
    /// Of what rotating matrices before they are quantised would cost or save
    Rotation {
        /// Checkpoint that was calibrated
        checkpoint: PathBuf,
        /// Artifact of its calibration with full second moments
        calibration: PathBuf,
        /// `allocation.safetensors` of an allocation from it
        allocation: PathBuf,
    },
    /// Of starting from a tuned checkpoint, its base layer, bf16 and flat INT8: seconds to the first token
    Load {
        /// Tuned checkpoint
        checkpoint: PathBuf,
        /// Text to continue
        #[arg(long, default_value = "The")]
        prompt: String,
        /// Measurements of each figure
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
        /// One start in this process
        #[arg(long, hide = true)]
        once: Option<String>,
    },
    /// Of packed files, against zstd -19
    Pack {
        /// Checkpoint of one shard
        checkpoint: PathBuf,
    },
    /// Of static tables against adaptive models, on a tuned checkpoint's levels
    Entropy {
        /// Tuned checkpoint
        checkpoint: PathBuf,
    },
}

#[derive(Args)]
pub struct RunArguments {
    /// YAML file
    pub config: PathBuf,
    #[command(flatten)]
    pub options: RunOptions,
}

#[derive(Args)]
pub struct RunOptions {
    /// Use this model instead of the file's: hf:OWNER/NAME, path:DIR or fixture:SEED
    #[arg(long)]
    pub model: Option<String>,
    /// Use this folder for artifacts instead of the file's
    #[arg(long)]
    pub store: Option<String>,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Compute damaged artifacts again
    #[arg(long)]
    pub repair: bool,
    /// Let weights that are not coded yet make up for coded ones, as `encode.sequential` does
    #[arg(long)]
    pub sequential: bool,
}

impl RunOptions {
    /// Puts what was given here into a configuration.
    pub fn apply(&self, config: &mut Config) {
        if let Some(model) = &self.model {
            config.model = model.clone();
        }
        if let Some(store) = &self.store {
            config.store = store.clone();
        }
        if self.sequential {
            config.encode.sequential.get_or_insert_default();
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ExportTarget {
    /// A dense Hugging Face directory in bf16
    HfBf16,
    /// A directory for vLLM: INT4 or INT8 for every linear layer, scales by group or row
    CompressedTensors,
    /// A GGUF file for llama.cpp, with a type for every matrix, tokenizer and metadata
    Gguf,
    /// The same types for `llama-quantize --tensor-type-file`
    LlamaQuantizeRecipe,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DtypeName {
    Bf16,
    F32,
}

impl DtypeName {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}
