//! The configuration of one pipeline. Paths in it are relative to the working directory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::allocate::Allocate;
use crate::baseline::Baseline;
use crate::calibrate::Calibrate;
use crate::encode::Encode;
use crate::evaluate::Evaluate;

/// One pipeline.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the folder that gets the results.
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
    /// A common quantizer instead of allocation and coding, to compare with.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// Quality of the decoded files.
    pub evaluate: Evaluate,
}

pub(crate) fn default_store() -> String {
    "results".into()
}
