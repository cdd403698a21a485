//! Keys and values of the last version that are still read, and their names in this version.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{ConfigError, Result};

/// A dotted key under its old name, and its new name.
const KEYS: [(&str, &str); 15] = [
    ("calibrate.shards", "calibrate.folds"),
    ("calibrate.second_moment", "calibrate.hessian"),
    ("calibrate.second_moment_block", "calibrate.hessian_block"),
    ("calibrate.second_moment_weighting", "calibrate.hessian_weighting"),
    ("calibrate.output_moment", "calibrate.gradient_covariance"),
    ("allocate.targets", "allocate.sizes"),
    ("allocate.shard_rule", "allocate.fold_rule"),
    ("encode.layers", "encode.quality_layers"),
    ("encode.quality_layers.favour", "encode.quality_layers.optimize_for"),
    ("encode.quality_layers.restraint", "encode.quality_layers.error_penalty"),
    ("sweep.over", "sweep.configs"),
    ("sweep.targets", "sweep.claims"),
    ("sweep.claims[].losing", "sweep.claims[].allowed_loss"),
    ("sweep.claims[].against", "sweep.claims[].compared_with"),
    ("sweep.claims[].delta.tuned", "sweep.claims[].delta.fine_tune"),
];

/// Values under their old names: key in its new spelling, old value, new value.
const VALUES: [(&str, &str, &str); 5] = [
    ("allocate.probes", "kinds", "roles"),
    ("allocate.probes", "layers", "tensors"),
    ("allocate.closed_loop", "kinds", "roles"),
    ("allocate.closed_loop", "layers", "tensors"),
    ("sweep.claims[].figure", "start", "load-time"),
];

/// Puts the new names in the place of old ones, in all sections and in the settings of a sweep; returns `old is now new`
/// for each.
///
/// # Errors
/// A key that is given under both names.
pub fn rename(value: &mut Value, path: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (old, new) in KEYS {
        rename_key(value, old, new, path, &mut found)?;
    }
    for (key, old, new) in VALUES {
        rename_value(value, &parts(key), (key, old, new), &mut found);
    }
    if let Some(sweep) = value.get_mut("sweep") {
        rename_settings(sweep, path, &mut found)?;
        rename_labels(sweep);
    }
    found.dedup();
    Ok(found)
}

/// The dotted key, in this version, of one that may be from the last.
pub fn current(key: &str) -> String {
    let mut key = key.to_string();
    for (old, new) in KEYS {
        if key == old {
            key = new.into();
        } else if let Some(rest) = key.strip_prefix(old).filter(|rest| rest.starts_with('.')) {
            key = format!("{new}{rest}");
        }
    }
    key
}

/// Old names of the keys that are called `new` in some section.
pub(crate) fn old_names(new: &str) -> Vec<&'static str> {
    let last = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    KEYS.iter().filter(|(_, name)| last(name) == new).map(|(old, _)| last(old)).collect()
}

/// `a.b[].c` as `a`, `b`, `[]`, `c`.
fn parts(key: &str) -> Vec<&str> {
    let part = |part| match str::strip_suffix(part, "[]") {
        Some(list) => vec![list, "[]"],
        None => vec![part],
    };
    key.split('.').flat_map(part).collect()
}

fn rename_key(value: &mut Value, old: &str, new: &str, path: &Path, found: &mut Vec<String>) -> Result<()> {
    let (old_parts, new_parts) = (parts(old), parts(new));
    let (Some((last, section)), Some(name)) = (old_parts.split_last(), new_parts.last()) else { return Ok(()) };
    let mut twice = false;
    each(value, section, &mut |map| {
        if let Some(value) = map.remove(*last) {
            twice |= map.contains_key(*name);
            map.insert((*name).into(), value);
            found.push(format!("{old} is now {new}"));
        }
    });
    match twice {
        true => Err(ConfigError::GivenTwice { path: path.into(), old: old.into(), new: new.into() }),
        false => Ok(()),
    }
}

fn rename_value(value: &mut Value, key: &[&str], (named, old, new): (&str, &str, &str), found: &mut Vec<String>) {
    let Some((last, section)) = key.split_last() else { return };
    each(value, section, &mut |map| {
        if let Some(value) = map.get_mut(*last).filter(|v| v.as_str() == Some(old)) {
            *value = new.into();
            found.push(format!("{named}: {old} is now {named}: {new}"));
        }
    });
}

/// Calls `f` with every mapping at the end of a path.
fn each(value: &mut Value, path: &[&str], f: &mut dyn FnMut(&mut Map<String, Value>)) {
    match (path.split_first(), value) {
        (None, Value::Object(map)) => f(map),
        (Some((&"[]", rest)), Value::Array(items)) => items.iter_mut().for_each(|item| each(item, rest, f)),
        (Some((key, rest)), Value::Object(map)) => {
            if let Some(value) = map.get_mut(*key) {
                each(value, rest, f);
            }
        }
        _ => {}
    }
}

/// Dotted keys of a sweep's `grid` and `runs`, and their values.
fn rename_settings(sweep: &mut Value, path: &Path, found: &mut Vec<String>) -> Result<()> {
    let mut maps: Vec<&mut Map<String, Value>> = Vec::new();
    let Some(sweep) = sweep.as_object_mut() else { return Ok(()) };
    for (key, value) in sweep {
        match (key.as_str(), value) {
            ("grid", Value::Object(map)) => maps.push(map),
            ("runs", Value::Array(runs)) => maps.extend(runs.iter_mut().filter_map(Value::as_object_mut)),
            _ => {}
        }
    }
    for map in maps {
        for old in map.keys().cloned().collect::<Vec<_>>() {
            let new = current(&old);
            let Some(mut value) = map.remove(&old) else { continue };
            if new != old {
                found.push(format!("{old} is now {new}"));
                if map.contains_key(&new) {
                    return Err(ConfigError::GivenTwice { path: path.into(), old, new });
                }
            }
            rename_setting(&new, &mut value, path, found)?;
            map.insert(new, value);
        }
    }
    Ok(())
}

/// Runs that claims name by a label made from settings, such as `shards=2`: their labels have the new names.
fn rename_labels(sweep: &mut Value) {
    let runs = sweep["runs"].as_array().into_iter().flatten();
    let given: Vec<String> = runs.filter_map(|run| run["label"].as_str().map(String::from)).collect();
    let last = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    let setting = |part: &str| match part.split_once('=') {
        Some((key, value)) => {
            let key = KEYS.iter().find(|(old, _)| last(old) == key).map_or(key, |(_, new)| last(new));
            let value = VALUES.iter().find(|(named, old, _)| last(named) == key && *old == value);
            let value = value.map_or(part.split_once('=').map_or("", |p| p.1), |(_, _, new)| new);
            format!("{key}={value}")
        }
        None => part.to_string(),
    };
    for claim in sweep.get_mut("claims").and_then(Value::as_array_mut).into_iter().flatten() {
        for key in ["run", "compared_with"] {
            if let Some(label) =
                claim.get_mut(key).filter(|l| l.as_str().is_some_and(|l| !given.iter().any(|g| g == l)))
            {
                let settings: Vec<String> = label.as_str().unwrap_or_default().split(", ").map(setting).collect();
                *label = settings.join(", ").into();
            }
        }
    }
}

/// Renames inside the value of a setting: one value, a list of values to try, or a section.
fn rename_setting(key: &str, value: &mut Value, path: &Path, found: &mut Vec<String>) -> Result<()> {
    if let Value::Array(values) = value {
        return values.iter_mut().try_for_each(|value| rename_setting(key, value, path, found));
    }
    // A section is renamed as if it stood in the file.
    let mut section = std::mem::take(value);
    for part in key.rsplit('.') {
        section = Value::Object(Map::from_iter([(part.to_string(), section)]));
    }
    for (old, new) in KEYS {
        rename_key(&mut section, old, new, path, found)?;
    }
    for (named, old, new) in VALUES {
        rename_value(&mut section, &parts(named), (named, old, new), found);
    }
    *value = key.split('.').fold(section, |mut at, part| at.get_mut(part).map(std::mem::take).unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn renamed(mut value: Value) -> (Value, Vec<String>) {
        let found = rename(&mut value, Path::new("c.yaml")).unwrap();
        (value, found)
    }

    #[test]
    fn old_keys_and_values_get_their_new_names() {
        let (value, found) = renamed(json!({
            "calibrate": {"shards": 4, "second_moment": "full"},
            "allocate": {"targets": [{"bytes": 5}], "closed_loop": "layers"},
            "encode": {"layers": {"bits": [1.0], "favour": "base"}},
        }));
        assert_eq!(
            value,
            json!({
                "calibrate": {"folds": 4, "hessian": "full"},
                "allocate": {"sizes": [{"bytes": 5}], "closed_loop": "tensors"},
                "encode": {"quality_layers": {"bits": [1.0], "optimize_for": "base"}},
            })
        );
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(found.contains(&"calibrate.shards is now calibrate.folds".to_string()));
    }

    #[test]
    fn settings_of_sweeps_are_renamed_too() {
        let (value, found) = renamed(json!({"sweep": {
            "grid": {"calibrate.shards": [1, 2], "allocate.probes": ["none", "kinds"]},
            "runs": [{"label": "a", "encode.layers.favour": "all"}, {"encode.layers": {"favour": "base"}}, {"allocate": {"probes": "layers"}}],
            "over": ["a.yaml"],
            "targets": [{"figure": "start", "run": "shards=2, probes=kinds", "against": "a", "delta": {"base": "b", "tuned": "t"}}],
        }}));
        assert_eq!(
            value["sweep"],
            json!({
                "grid": {"calibrate.folds": [1, 2], "allocate.probes": ["none", "roles"]},
                "runs": [{"label": "a", "encode.quality_layers.optimize_for": "all"},
                         {"encode.quality_layers": {"optimize_for": "base"}},
                         {"allocate": {"probes": "tensors"}}],
                "configs": ["a.yaml"],
                "claims": [{"figure": "load-time", "run": "folds=2, probes=roles", "compared_with": "a", "delta": {"base": "b", "fine_tune": "t"}}],
            })
        );
        assert!(!found.is_empty());
    }

    #[test]
    fn the_guide_lists_every_old_name() {
        let guide = include_str!("../../../docs/GUIDE.md");
        let table: Vec<&str> = guide.lines().filter(|line| line.starts_with('|')).collect();
        let last = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
        let keys = KEYS.map(|(old, new)| (last(old), last(new)));
        for (old, new) in keys.into_iter().chain(VALUES.map(|(_, old, new)| (old, new))) {
            assert!(table.iter().any(|row| row.contains(old) && row.contains(new)), "{old} and {new} in a row");
        }
    }

    #[test]
    fn both_names_at_once_are_refused_and_new_names_are_silent() {
        let mut twice = json!({"calibrate": {"shards": 4, "folds": 2}});
        let message = rename(&mut twice, Path::new("c.yaml")).unwrap_err().to_string();
        assert!(message.contains("calibrate.folds") && message.contains("calibrate.shards"), "{message}");
        let (_, found) = renamed(json!({"calibrate": {"folds": 4}, "allocate": {"probes": "roles"}}));
        assert!(found.is_empty());
    }
}
