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
    let failed = |source| ConfigError::Yaml { path: path.into(), source };
    // Keys that are given twice are an error here, and JSON has no numbers that are not finite.
    check_finite(&serde_yaml::from_str(&text).map_err(failed)?, "", path)?;
    let mut value: Value = serde_yaml::from_str(&text).map_err(failed)?;
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

fn check_finite(value: &serde_yaml::Value, at: &str, path: &Path) -> Result<()> {
    match value {
        serde_yaml::Value::Number(number) if !number.is_finite() => {
            let (key, value) = (at.to_string(), number.to_string());
            Err(ConfigError::NotFinite { path: path.into(), key, value })
        }
        serde_yaml::Value::Mapping(map) => map.iter().try_for_each(|(key, value)| {
            let key = key.as_str().unwrap_or_default();
            let dotted = if at.is_empty() { key.to_string() } else { format!("{at}.{key}") };
            check_finite(value, &dotted, path)
        }),
        serde_yaml::Value::Sequence(items) => {
            items.iter().enumerate().try_for_each(|(i, item)| check_finite(item, &format!("{at}[{i}]"), path))
        }
        _ => Ok(()),
    }
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
