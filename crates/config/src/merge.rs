//! YAML files with their includes as one value.

use std::path::Path;

use serde_json::Value;

use crate::Note;
use crate::error::{ConfigError, Result};
use crate::renamed::rename;

/// Deepest chain of includes.
const MAX_DEPTH: usize = 8;

/// The values of a file over those of its includes, all under this version's names; `note` receives the old ones.
pub(crate) fn merged(path: &Path, note: Note) -> Result<Value> {
    merged_at(path, 0, note)
}

fn merged_at(path: &Path, depth: usize, note: Note) -> Result<Value> {
    if depth > MAX_DEPTH {
        return Err(ConfigError::IncludeDepth { path: path.into(), most: MAX_DEPTH });
    }
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.into(), source })?;
    let mut value: Value =
        serde_yaml::from_str(&text).map_err(|source| ConfigError::Yaml { path: path.into(), source })?;
    if !value.is_object() {
        return Err(ConfigError::NotAMapping { path: path.into() });
    }
    let old = rename(&mut value, path)?;
    if !old.is_empty() {
        note(&format!("{}: old names, read until the next version: {}", path.display(), old.join(", ")));
    }
    let mut result = Value::Object(Default::default());
    if let Some(includes) = value.as_object_mut().and_then(|map| map.remove("include")) {
        let includes: Vec<String> =
            serde_json::from_value(includes).map_err(|_| ConfigError::Include { path: path.into() })?;
        for include in includes {
            let file = path.parent().unwrap_or(Path::new(".")).join(include);
            merge(&mut result, merged_at(&file, depth + 1, note)?);
        }
    }
    merge(&mut result, value);
    Ok(result)
}

/// Values of `over` replace those of `base`; mappings merge key by key.
pub(crate) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}
