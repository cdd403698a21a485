//! Texts in files of rows, and data on the hub.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use waterfill_evaluate::tasks::records;
use waterfill_hub::{HubId, Kind};

use crate::error::{PipelineError, Result};

/// How rows become one text.
pub(crate) struct Rows<'a> {
    /// Text between two rows.
    pub join: &'a str,
    /// Rows taken; all if absent.
    pub most: Option<usize>,
}

/// A dataset on the hub, and which of its files are meant.
pub(crate) struct OnHub {
    pub id: HubId,
    pub pattern: Option<String>,
}

/// The dataset that `hf:OWNER/NAME[@REVISION][:PATTERN]` names; `None` for other texts. `key` is for messages.
pub(crate) fn on_hub(text: &str, key: &str) -> Result<Option<OnHub>> {
    let Some(rest) = text.strip_prefix("hf:") else { return Ok(None) };
    let (id, pattern) = match rest.split_once(':') {
        Some((id, pattern)) => (id, Some(pattern.to_string())),
        None => (rest, None),
    };
    let bad = |reason: String| PipelineError::Value { key: key.into(), reason };
    let id = HubId::new(Kind::Dataset, id).map_err(bad)?;
    Ok(Some(OnHub { id, pattern }))
}

/// The one file below `dir` that matches.
pub(crate) fn only_file(dir: &Path, pattern: &str) -> Result<PathBuf> {
    let mut files = waterfill_store::matching_files(dir, &[pattern.to_string()]);
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(file),
        (_, more) => {
            let reason = format!("{} files match {pattern}, expected one", more + 1);
            Err(PipelineError::Value { key: dir.display().to_string(), reason })
        }
    }
}

/// Text of files: as they are, all kinds of line ends as line feeds, or their rows' `text`s.
pub(crate) fn read_text(files: &[PathBuf], rows: &Rows) -> Result<String> {
    #[derive(Deserialize)]
    struct Row {
        text: String,
    }
    let has_rows = |path: &PathBuf| {
        path.extension().is_some_and(|e| ["parquet", "jsonl", "json", "gz"].iter().any(|known| e == *known))
    };
    match files {
        [path] if !has_rows(path) => {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(PipelineError::io(path))?;
            Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
        }
        _ => {
            let rows_read: Vec<Row> = records(files, rows.most.unwrap_or(usize::MAX))?;
            Ok(rows_read.into_iter().map(|row| row.text).collect::<Vec<_>>().join(rows.join))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_on_the_hub_are_named_by_pattern() {
        let asked = on_hub("hf:allenai/c4@refs/convert/parquet:en/*.parquet", "text").unwrap().unwrap();
        assert_eq!(asked.id.to_string(), "allenai/c4@refs/convert/parquet");
        assert_eq!(asked.pattern.as_deref(), Some("en/*.parquet"));
        assert!(on_hub("hf:a/b", "text").unwrap().unwrap().pattern.is_none());
        assert!(on_hub("data/text.txt", "text").unwrap().is_none());
        assert!(on_hub("hf:a/../b", "text").is_err_and(|e| e.to_string().contains("OWNER/NAME")));
    }

    #[test]
    fn rows_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let rows = write("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"\", \"url\": 1}\n{\"text\": \"two\"}\n");
        let read = |files: &[&PathBuf], join, most| {
            read_text(&files.iter().copied().cloned().collect::<Vec<_>>(), &Rows { join, most })
        };
        assert_eq!(read(&[&rows], "\n\n", None).unwrap(), "one\n\n\n\ntwo");
        assert_eq!(read(&[&rows, &rows], " ", Some(4)).unwrap(), "one  two one");
        let plain = write("a.txt", "{\"text\": 1}");
        assert_eq!(read(&[&plain], " ", None).unwrap(), "{\"text\": 1}");
        let ends = write("c.txt", "one\r\ntwo\rthree\n");
        assert_eq!(read(&[&ends], " ", None).unwrap(), "one\ntwo\nthree\n");
        let other = write("b.jsonl", "{\"txt\": \"one\"}");
        assert!(read(&[&other], " ", None).is_err_and(|e| e.to_string().contains("missing field `text`")));
    }
}
