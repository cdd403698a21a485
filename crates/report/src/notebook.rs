//! A Jupyter notebook that reads a sweep's tables and draws its main figures again (nbformat 4.5).

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Result, save};

const LOAD: &str = include_str!("../notebook/load.py");
const CURVES: &str = include_str!("../notebook/curves.py");
const RESIDENT: &str = include_str!("../notebook/resident.py");
const PREDICTED: &str = include_str!("../notebook/predicted.py");
const TENSORS: &str = include_str!("../notebook/tensors.py");

/// Writes the notebook of a sweep whose tables are in the folder `data`, a path relative to the notebook's.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_notebook(title: &str, data: &str, path: &Path) -> Result<()> {
    let intro = format!(
        "# {title}\n\nTables of a waterfill sweep, one row a run, a point (compressed checkpoint), a coded tensor. `docs/TABLES.md` of waterfill \
         says what columns hold. Losses are nats per token, `_se` standard errors."
    );
    let cells = [
        ("markdown", intro.as_str()),
        ("code", &LOAD.replace("DATA_FOLDER", data)),
        ("markdown", "## Rate and distortion"),
        ("code", CURVES),
        ("code", RESIDENT),
        ("markdown", "## Predicted and measured"),
        ("code", PREDICTED),
        ("markdown", "## Where the bits go"),
        ("code", TENSORS),
    ];
    let cells: Vec<Value> = cells.into_iter().enumerate().map(|(n, (kind, source))| cell(n, kind, source)).collect();
    let notebook = json!({
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    });
    save(path, &(serde_json::to_string_pretty(&notebook).expect("plain data") + "\n"))
}

fn cell(n: usize, kind: &str, source: &str) -> Value {
    let lines: Vec<String> = source.trim_end().split_inclusive('\n').map(String::from).collect();
    let mut cell = json!({"id": format!("cell-{}", n + 1), "cell_type": kind, "metadata": {}, "source": lines});
    if kind == "code" {
        cell["execution_count"] = Value::Null;
        cell["outputs"] = json!([]);
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requirements of nbformat 4.5's schema.
    #[test]
    fn the_notebook_has_what_the_format_requires() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.ipynb");
        write_notebook("a \"sweep\"", "tables", &path).unwrap();
        let notebook: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((notebook["nbformat"].as_u64(), notebook["nbformat_minor"].as_u64()), (Some(4), Some(5)));
        assert!(notebook["metadata"].is_object());
        let cells = notebook["cells"].as_array().unwrap();
        let mut ids = std::collections::BTreeSet::new();
        for cell in cells {
            let id = cell["id"].as_str().unwrap();
            assert!((1..=64).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
            assert!(ids.insert(id), "{id} is there twice");
            assert!(cell["metadata"].is_object() && cell["source"].as_array().unwrap().iter().all(Value::is_string));
            match cell["cell_type"].as_str().unwrap() {
                "code" => assert!(cell["outputs"].is_array() && cell["execution_count"].is_null()),
                kind => assert!(kind == "markdown" && cell.get("outputs").is_none()),
            }
        }
        assert!(cells[1]["source"].to_string().contains("Path(\\\"tables\\\")"));
    }
}
