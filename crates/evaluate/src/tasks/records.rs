//! Rows of tables: lines of JSON, also compressed, and Parquet.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use polars::prelude::{AnyValue, DataFrame, Field, ParquetReader, SerReader};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{EvaluateError, Result};

/// Rows of files, in order: `.parquet`, or lines of JSON, whose name may end with `.gz`. Of all
/// files together at most `most` rows are read.
///
/// # Errors
/// Files that cannot be read, rows of another layout, no rows at all.
pub fn records<T: DeserializeOwned>(paths: &[PathBuf], most: usize) -> Result<Vec<T>> {
    let mut all = Vec::new();
    for path in paths {
        let left = most - all.len();
        all.extend(match path.extension().is_some_and(|e| e == "parquet") {
            true => parquet(path, left)?,
            false => lines(path, left)?,
        });
    }
    match (paths.first(), all.is_empty()) {
        (Some(path), true) if most > 0 => Err(failed(path, "has no rows".into())),
        _ => Ok(all),
    }
}

/// Byte order mark in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// Most bytes of a line.
const LINE: u64 = 64 << 20;

fn failed(path: &Path, reason: String) -> EvaluateError {
    EvaluateError::Questions { path: path.to_path_buf(), reason }
}

fn lines<T: DeserializeOwned>(path: &Path, most: usize) -> Result<Vec<T>> {
    let file = File::open(path).map_err(|e| failed(path, e.to_string()))?;
    let source: Box<dyn Read> = match path.extension().is_some_and(|e| e == "gz") {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    };
    let mut source = BufReader::new(source);
    let (mut all, mut line) = (Vec::new(), Vec::new());
    for n in 1.. {
        if all.len() == most {
            break;
        }
        let wrong = |reason: String| failed(path, format!("line {n}: {reason}"));
        line.clear();
        // Little that is compressed may become much.
        let bytes = source.by_ref().take(LINE).read_until(b'\n', &mut line).map_err(|e| wrong(e.to_string()))?;
        if bytes == 0 {
            break;
        }
        if bytes as u64 == LINE {
            return Err(wrong(format!("is longer than {} MiB", LINE >> 20)));
        }
        // Some editors begin files with a byte order mark.
        let text = if n == 1 { line.strip_prefix(MARK).unwrap_or(&line) } else { &line };
        if !text.trim_ascii().is_empty() {
            let row = serde_json::from_slice(text).map_err(|e| match e.is_data() {
                true => wrong(e.to_string()),
                false => wrong(format!("is no JSON: {e}")),
            });
            all.push(row?);
        }
    }
    Ok(all)
}

fn parquet<T: DeserializeOwned>(path: &Path, most: usize) -> Result<Vec<T>> {
    let file = File::open(path).map_err(|e| failed(path, e.to_string()))?;
    // The reader trusts some lengths in damaged files.
    let read = || ParquetReader::new(file).with_slice(Some((0, most))).finish();
    let table = catch_unwind(AssertUnwindSafe(read))
        .map_err(|_| failed(path, "is damaged".into()))?
        .map_err(|e| failed(path, e.to_string()))?;
    let row = |n: usize| -> Result<T> {
        let value = row(&table, n).map_err(|reason| failed(path, format!("row {}: {reason}", n + 1)))?;
        serde_json::from_value(value).map_err(|e| {
            let names: Vec<&str> = table.get_column_names().into_iter().map(|name| name.as_str()).collect();
            failed(path, format!("row {}: {e}; its columns are {}", n + 1, names.join(", ")))
        })
    };
    (0..table.height()).map(row).collect()
}

fn row(table: &DataFrame, n: usize) -> std::result::Result<Value, String> {
    let mut fields = Map::new();
    for column in table.columns() {
        let value = column.get(n).map_err(|e| e.to_string())?;
        fields.insert(column.name().to_string(), json(value).map_err(|e| format!("column {}: {e}", column.name()))?);
    }
    Ok(Value::Object(fields))
}

/// A cell as JSON; numbers, texts, lists and structures of them.
fn json(value: AnyValue) -> std::result::Result<Value, String> {
    Ok(match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(b) => b.into(),
        AnyValue::String(s) => s.into(),
        AnyValue::StringOwned(s) => s.as_str().into(),
        AnyValue::UInt8(v) => v.into(),
        AnyValue::UInt16(v) => v.into(),
        AnyValue::UInt32(v) => v.into(),
        AnyValue::UInt64(v) => v.into(),
        AnyValue::Int8(v) => v.into(),
        AnyValue::Int16(v) => v.into(),
        AnyValue::Int32(v) => v.into(),
        AnyValue::Int64(v) => v.into(),
        AnyValue::Float32(v) => v.into(),
        AnyValue::Float64(v) => v.into(),
        AnyValue::List(series) => Value::Array(series.iter().map(json).collect::<std::result::Result<_, _>>()?),
        AnyValue::Struct(..) => json(value.into_static())?,
        AnyValue::StructOwned(fields) => {
            let (values, fields) = *fields;
            let field = |(value, field): (AnyValue, Field)| Ok((field.name().to_string(), json(value)?));
            Value::Object(values.into_iter().zip(fields).map(field).collect::<std::result::Result<_, String>>()?)
        }
        other => return Err(format!("is of type {}, which no benchmark has", other.dtype())),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use polars::prelude::{Column, IntoSeries, NamedFrom, ParquetWriter, Series, StructChunked};
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Row {
        question: String,
        answer: i64,
        choices: Choices,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Choices {
        text: Vec<String>,
        label: Vec<String>,
    }

    fn table(path: &Path) {
        let lists =
            |name: &str, rows: [[&str; 2]; 2]| Series::new(name.into(), rows.map(|row| Series::new("".into(), row)));
        let parts = [lists("text", [["a", "b"], ["c", "d\n"]]), lists("label", [["1", "2"], ["A", "B"]])];
        let choices = StructChunked::from_series("choices".into(), 2, parts.iter()).unwrap().into_series();
        let columns = [Series::new("question".into(), ["q1", "q2"]), Series::new("answer".into(), [0i64, 1]), choices];
        let columns: Vec<Column> = columns.into_iter().map(Column::from).collect();
        let mut frame = DataFrame::new(2, columns).unwrap();
        ParquetWriter::new(File::create(path).unwrap()).finish(&mut frame).unwrap();
    }

    #[test]
    fn tables_and_compressed_lines_hold_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [tables, text] = ["rows.parquet", "rows.json.gz"].map(|name| dir.path().join(name));
        table(&tables);
        let mut gzip = GzEncoder::new(File::create(&text).unwrap(), Compression::default());
        for row in [
            r#"{"question": "q1", "answer": 0, "choices": {"text": ["a", "b"], "label": ["1", "2"]}}"#,
            r#"{"question": "q2", "answer": 1, "choices": {"text": ["c", "d\n"], "label": ["A", "B"]}}"#,
        ] {
            writeln!(gzip, "{row}").unwrap();
        }
        gzip.finish().unwrap();
        let all: Vec<Row> = records(std::slice::from_ref(&tables), 9).unwrap();
        assert_eq!((all.len(), all[1].choices.text[1].as_str()), (2, "d\n"));
        assert_eq!(records::<Row>(std::slice::from_ref(&text), 9).unwrap(), all);
        let both: Vec<Row> = records(&[tables.clone(), text], 3).unwrap();
        assert_eq!((both.len(), &both[2]), (3, &all[0]));
        #[derive(Debug, Deserialize)]
        struct Other {
            #[serde(rename = "goal")]
            _goal: String,
        }
        let message = records::<Other>(&[tables], 9).unwrap_err().to_string();
        assert!(
            message.contains("row 1: missing field `goal`; its columns are question, answer, choices"),
            "{message}"
        );
    }

    #[test]
    fn endless_lines_and_broken_streams_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl.gz");
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        for _ in 0..=LINE >> 20 {
            gzip.write_all(&[b' '; 1 << 20]).unwrap();
        }
        let bytes = gzip.finish().unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let message = || records::<Row>(std::slice::from_ref(&path), 9).unwrap_err().to_string();
        assert!(message().contains("line 1: is longer than 64 MiB"), "{}", message());
        std::fs::write(&path, &bytes[..100]).unwrap();
        assert!(message().contains("line 1"), "{}", message());
        std::fs::write(&path, "not compressed").unwrap();
        assert!(message().contains("rows.jsonl.gz: line 1"), "{}", message());
    }

    #[test]
    fn damaged_tables_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        table(&path);
        let bytes = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            damaged.truncate(bytes.len() - at % 3);
            std::fs::write(&path, damaged).unwrap();
            // Parquet has no digests: what is read may also be other text.
            refused += usize::from(records::<Row>(std::slice::from_ref(&path), 9).is_err());
        }
        assert!(refused > bytes.len() / 2, "{refused} of {}", bytes.len());
    }
}
