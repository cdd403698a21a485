//! Command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use waterfill_codec::Dtype;
use waterfill_config::Config;
use waterfill_pipeline::Mode;

/// Decides how many bits every weight of an LLM deserves, and writes a checkpoint with those bits.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Threads; results do not depend on it [default: one for each core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// No progress; with --json no events
    #[arg(long, global = true)]
    pub quiet: bool,
    /// One JSON object on standard output, events as JSON lines on standard error
    #[arg(long, global = true)]
    pub json: bool,
}

impl Arguments {
    /// How progress is shown.
    pub fn progress(&self) -> Mode {
        if self.quiet { Mode::Quiet } else { self.mode() }
    }

    /// How results are shown.
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
    /// Write the compressed checkpoints
    Encode(RunArguments),
    /// Measure perplexity, KL and accuracy of the decoded files
    Evaluate {
        /// Only the original: nothing is calibrated, and more architectures are supported
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
        /// Print the stages to compute, those in the store, and the estimated time
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        options: RunOptions,
    },
    /// List runs
    Runs(RunsArguments),
    /// Compare two runs: settings, points with paired differences, tensors
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
        /// Only list what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Write runs as tables: `runs`, `points`, `tensors` (CSV and Parquet) and `tiles` (Parquet)
    Tables {
        #[command(flatten)]
        runs: RunsArguments,
        /// Directory
        #[arg(long)]
        out: PathBuf,
    },
    /// Draw one matrix of a run: sensitivity, bits and mode by tile, and levels against their table
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
    /// Write a sweep's tables, and a Jupyter notebook that reads them and draws the main figures
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
        /// Print the schema of training files instead
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
        /// For a delta: the checkpoint that it starts from
        #[arg(long)]
        base: Option<PathBuf>,
    },
    /// Continue a text with a checkpoint, multiplying straight from its packed tiles
    Generate {
        /// Checkpoint directory, compressed or not
        checkpoint: PathBuf,
        /// Text to continue
        #[arg(long)]
        prompt: String,
        /// Most tokens to write
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        tokens: u32,
        /// Keep matrices as dense f32 instead
        #[arg(long)]
        dense: bool,
        /// Keep matrices coded as in the file, and decode a slice at a time when they are used
        #[arg(long, conflicts_with = "dense")]
        coded: bool,
    },
    /// Compare products from packed tiles with dense products, and the texts that both generate
    ServeCheck {
        /// Checkpoint directory, compressed or not
        checkpoint: PathBuf,
        /// Text to continue
        #[arg(long, default_value = "The")]
        prompt: String,
        /// Tokens to write
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..))]
        tokens: u32,
    },
    /// Write the changes of a fine-tune from its base, without loss; all files are kept, with folders and dotfiles
    ///
    /// Left out, and named in the output, are .git, .cache/huggingface, links to directories, and what is neither a file
    /// nor a directory. The delta appears when every file has been restored from it and compared.
    Delta {
        /// Directory of the base
        base: PathBuf,
        /// Directory of the fine-tune
        fine_tune: PathBuf,
        /// Directory to create
        #[arg(long)]
        out: PathBuf,
        /// Code with loss: a configuration with one size or lambda, used for the fine-tune
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
    /// Pack a safetensors file, or a directory with all its files, without loss
    Pack {
        /// Safetensors file or directory
        file: PathBuf,
        /// File to create
        out: PathBuf,
    },
    /// Restore what was packed, byte for byte
    Unpack {
        /// Packed file
        file: PathBuf,
        /// File or directory to create
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
        /// Compressed checkpoint for hf-bf16 or compressed-tensors; otherwise a configuration, with one file for each of its sizes
        path: PathBuf,
        /// Format to write
        #[arg(long)]
        to: ExportTarget,
        /// Directory to create; required for a checkpoint. Files of a configuration stay in the store without it
        #[arg(long)]
        out: Option<PathBuf>,
        #[command(flatten)]
        options: RunOptions,
    },
    /// Write a compressed checkpoint as a dense Hugging Face directory
    Decode {
        /// Compressed checkpoint
        checkpoint: PathBuf,
        /// Directory to create
        out: PathBuf,
        /// Element type [default: each tensor's own]
        #[arg(long)]
        dtype: Option<DtypeName>,
        /// Most quality layers to use, with the base [default: all]
        #[arg(long, value_name = "K", conflicts_with = "bytes", value_parser = clap::value_parser!(u32).range(1..))]
        layers: Option<u32>,
        /// Most bytes to use, counted over the shards in order
        #[arg(long, value_name = "N")]
        bytes: Option<u64>,
    },
}

#[derive(Args, Clone)]
pub struct RunsArguments {
    /// Folder of the artifacts
    #[arg(long, default_value = "results")]
    pub store: PathBuf,
    /// Only of the pipeline with this name
    #[arg(long)]
    pub model: Option<String>,
    /// Only of this sweep
    #[arg(long)]
    pub sweep: Option<String>,
    /// Only with this tag in the configuration
    #[arg(long)]
    pub tag: Option<String>,
    /// Only from a date on, such as 2026-11 or 2026-11-22
    #[arg(long)]
    pub since: Option<String>,
    /// Only with a point for which this holds, such as 'kl<0.01'; several conditions hold for the same point
    #[arg(long = "where", value_name = "CONDITION")]
    pub points: Vec<String>,
}

#[derive(Subcommand)]
pub enum Bench {
    /// Size of coded differences against their entropy and against XOR under zstd
    Difference {
        /// Rows and columns of the matrix
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(64..))]
        side: u16,
    },
    /// Speed of the codec, against zstd on the same bytes
    Codec {
        /// Rows and columns of the lossless matrix
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(64..=8192))]
        side: u16,
        /// Measurements of each figure
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
    },
    /// Gap of the quantizers to the Shannon bound on a Gaussian source, and speed of error feedback
    Quantizer {
        /// Rows and columns of the matrices
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u16).range(64..=8192))]
        side: u16,
        /// Measurements of each figure
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
    },
    /// Speed of calibration's gradients, against candle's automatic differentiation
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
    /// Bits that second moments save in error feedback, whole and in parts
    Moments {
        /// Artifact of a calibration with full second moments
        calibration: PathBuf,
    },
    /// Bits that rotating matrices before quantization would cost or save
    Rotation {
        /// Checkpoint that was calibrated
        checkpoint: PathBuf,
        /// Artifact of its calibration with full second moments
        calibration: PathBuf,
        /// `allocation.safetensors` of an allocation from it
        allocation: PathBuf,
    },
    /// Seconds to the first token from a compressed checkpoint, its base layer, bf16 and flat INT8
    Load {
        /// Compressed checkpoint
        checkpoint: PathBuf,
        /// Text to continue
        #[arg(long, default_value = "The")]
        prompt: String,
        /// Measurements of each figure
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
        /// Load once, in this process
        #[arg(long, hide = true)]
        once: Option<String>,
    },
    /// Size of packed files, against zstd -19
    Pack {
        /// Checkpoint of one shard
        checkpoint: PathBuf,
    },
    /// Size and speed of static tables against adaptive models, on a compressed checkpoint's levels
    Entropy {
        /// Compressed checkpoint
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
    /// Adjust weights that are not coded yet, as `encode.sequential` does
    #[arg(long)]
    pub sequential: bool,
}

impl RunOptions {
    /// Puts the given options into a configuration.
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
    pub fn in_codec(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
        }
    }
}
