//! The check of keys against a JSON schema.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ConfigError, Result};
use crate::renamed::old_names;

/// `value` as a `T` with the given schema; `at` is the section that it is, for messages.
pub(crate) fn checked<T: DeserializeOwned>(value: Value, schema: &Value, at: &str, path: &Path) -> Result<T> {
    check_keys(&value, schema, schema, at, path)?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inside = error.path().to_string();
        let key = match (at, inside.as_str()) {
            ("", ".") => "the file".to_string(),
            ("", _) => inside,
            (_, ".") => at.to_string(),
            _ => format!("{at}.{inside}"),
        };
        ConfigError::Type { path: path.into(), key, source: error.into_inner() }
    })
}

/// Compares keys with the schema, so that a typo is named with the key that was likely meant.
fn check_keys(value: &Value, schema: &Value, root: &Value, at: &str, path: &Path) -> Result<()> {
    let schema = resolve(schema, root);
    match value {
        Value::Object(map) => {
            let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Ok(()) };
            map.iter().try_for_each(|(key, value)| {
                let dotted = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                match properties.get(key) {
                    Some(schema) => check_keys(value, schema, root, &dotted, path),
                    None => {
                        let nearest = nearest(key, properties.keys());
                        Err(ConfigError::UnknownKey { path: path.into(), key: dotted, nearest })
                    }
                }
            })
        }
        Value::Array(items) => match schema.get("items") {
            Some(schema) => {
                items.iter().enumerate().try_for_each(|(i, v)| check_keys(v, schema, root, &format!("{at}[{i}]"), path))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The known key that is spelled most alike, by its name in this version or in the last.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    let alike = |known: &String| {
        let names = old_names(known).into_iter().chain([known.as_str()]);
        names.map(|name| strsim::jaro_winkler(key, name)).fold(0.0, f64::max)
    };
    known.max_by(|a, b| alike(a).total_cmp(&alike(b))).cloned()
}

/// Follows `$ref` and the non-null branch of an optional value.
fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        return root.pointer(name.trim_start_matches('#')).map_or(schema, |s| resolve(s, root));
    }
    let branches = schema.get("anyOf").and_then(Value::as_array);
    let value = branches.and_then(|b| b.iter().find(|s| s.get("type") != Some(&Value::from("null"))));
    value.map_or(schema, |s| resolve(s, root))
}
