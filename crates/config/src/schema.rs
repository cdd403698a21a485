//! JSON schemas of the files.

use serde_json::Value;

use crate::config::Config;
use crate::sweep::SweepSection;
use crate::train::TrainConfig;

/// JSON schema of pipeline and sweep files.
pub fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    let include = serde_json::json!({
        "description": "YAML files (relative to this one) whose values hold where this file gives none.",
        "type": "array", "items": {"type": "string"},
    });
    schema["properties"]["include"] = include;
    let mut sweep = schemars::schema_for!(SweepSection).to_value();
    sweep["description"] = "Runs of `waterfill sweep`; other commands refuse a file with this section.".into();
    schema["properties"]["sweep"] = sweep;
    schema
}

/// JSON schema of training files.
pub fn train_schema() -> Value {
    schemars::schema_for!(TrainConfig).to_value()
}
