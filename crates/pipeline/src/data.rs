//! Texts and conversations in files of rows, and data on the hub.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use waterfill_evaluate::tasks::records;
use waterfill_hub::{HubId, Kind};
use waterfill_model::Message;

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

/// Text of files: as they are, without a byte order mark and all kinds of line ends as line feeds, or their rows' `text`s.
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
            let text = text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text);
            Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
        }
        _ => {
            let rows_read: Vec<Row> = records(files, rows.most.unwrap_or(usize::MAX))?;
            Ok(rows_read.into_iter().map(|row| row.text).collect::<Vec<_>>().join(rows.join))
        }
    }
}

/// Conversations of files' rows: their `messages`, else their `conversations`, which must be lists of messages. How
/// rows are joined has no meaning here.
pub(crate) fn read_chats(files: &[PathBuf], rows: &Rows) -> Result<Vec<Vec<Message>>> {
    #[derive(Deserialize)]
    struct Fields {
        messages: Option<Vec<Message>>,
        conversations: Option<Vec<Message>>,
    }
    #[derive(Deserialize)]
    #[serde(try_from = "Fields")]
    struct Row(Vec<Message>);
    impl TryFrom<Fields> for Row {
        type Error = &'static str;

        fn try_from(fields: Fields) -> std::result::Result<Self, &'static str> {
            let messages = fields.messages.or(fields.conversations);
            messages
                .map(Self)
                .ok_or("has no conversation, expected messages or conversations: a list of {role, content}")
        }
    }
    let rows_read: Vec<Row> = records(files, rows.most.unwrap_or(usize::MAX))?;
    Ok(rows_read.into_iter().map(|Row(messages)| messages).collect())
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
        let marked = write("m.txt", "\u{feff}one\u{feff}");
        assert_eq!(read(&[&marked], " ", None).unwrap(), "one\u{feff}");
        let marked = write("m.jsonl", "\u{feff}{\"text\": \"one\"}\r\n{\"text\": \"two\"}\r\n");
        assert_eq!(read(&[&marked], " ", None).unwrap(), "one two");
        let ends = write("c.txt", "one\r\ntwo\rthree\n");
        assert_eq!(read(&[&ends], " ", None).unwrap(), "one\ntwo\nthree\n");
        let other = write("b.jsonl", "{\"txt\": \"one\"}");
        assert!(read(&[&other], " ", None).is_err_and(|e| e.to_string().contains("missing field `text`")));
    }

    #[test]
    fn conversations_are_read_from_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let read = |text: &str, most| {
            std::fs::write(&path, text).unwrap();
            read_chats(std::slice::from_ref(&path), &Rows { join: "", most }).map_err(|e| e.to_string())
        };
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"text\": \"x\"}\n\
                    {\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}]}\n";
        let all = read(rows, None).unwrap();
        assert_eq!(all, [vec![message("user", "Hi")], vec![message("user", "a"), message("assistant", "b")]]);
        assert_eq!(read(rows, Some(1)).unwrap(), all[..1]);
        let fails = |text: &str, what: &str| {
            let error = read(text, None).unwrap_err();
            assert!(error.contains("a.jsonl: line 1: ") && error.contains(what), "{error}");
        };
        fails("{\"text\": \"one\"}", "has no conversation, expected messages or conversations");
        fails("{\"messages\": \"one\"}", "invalid type: string \"one\", expected a sequence");
        fails("{\"messages\": [{\"role\": \"user\"}]}", "a message has only role, expected texts role and content");
    }
}
