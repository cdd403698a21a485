//! YAML configurations: of a pipeline ([`Config`]), of a sweep over pipelines ([`Sweep`]) and of a training
//! ([`TrainConfig`]).
//!
//! [`load`], [`load_sweep`] and [`load_train`] merge included files, accept the [`renamed`] keys of the last version with
//! a warning, name unknown keys with the nearest known one, and check every limit that needs no model.

mod allocate;
mod baseline;
mod calibrate;
mod claims;
mod config;
mod encode;
mod error;
mod evaluate;
mod keys;
mod lambdas;
mod limits;
mod load;
mod merge;
mod quality_layers;
pub mod renamed;
mod schema;
mod sweep;
mod texts;
mod train;
mod validate;

pub use allocate::{Allocate, Floor, PolicyName, Probes, Size};
pub use baseline::{Baseline, BaselineMethod};
pub use calibrate::Calibrate;
pub use claims::{AllowedLoss, Claim, DeltaOf, Figure};
pub use config::Config;
pub use encode::{Encode, Sequential};
pub use error::{ConfigError, Problem, Result};
pub use evaluate::{Bos, Evaluate, LongContext, MultipleChoice};
pub use load::load;
pub use quality_layers::{LayerStructure, OptimizeFor, QualityLayers};
pub use schema::{json_schema, train_schema};
pub use sweep::{Sweep, SweepRun, SweepSection, load_sweep};
pub use texts::TextEntry;
pub use train::{LetterConfig, NetworkConfig, StyleName, TrainConfig, TrainSettings, WorldConfig, load_train};
pub use validate::validate;

/// Tokens of a batch in calibration and evaluation, unless the configuration says otherwise.
pub const BATCH_TOKENS: usize = 2048;

/// Receives a message for the user that is not an error.
pub type Note<'a> = &'a dyn Fn(&str);
