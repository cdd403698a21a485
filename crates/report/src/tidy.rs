//! Tables for notebooks: one observation a row, in CSV and Parquet (Wickham 2014). `docs/TABLES.md` says what columns hold.

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::prelude::*;

use crate::error::{ReportError, Result};

/// Rows of a table of tiles that are in memory at a time.
const ROWS: usize = 1 << 20;

/// The values of a column, one a row.
#[derive(Debug, Clone)]
pub enum Cells {
    /// Text.
    Text(Vec<String>),
    /// Text, with missing values.
    MaybeText(Vec<Option<String>>),
    /// Counts.
    Whole(Vec<u64>),
    /// Counts, with missing values.
    MaybeWhole(Vec<Option<u64>>),
    /// Numbers, with missing values.
    Number(Vec<Option<f64>>),
}

/// A table by columns.
#[derive(Debug, Clone)]
pub struct Table {
    /// Name of its files, without ending.
    pub name: &'static str,
    /// Column names and values, all of the same length.
    pub columns: Vec<(&'static str, Cells)>,
}

fn failed(path: &Path) -> impl Fn(PolarsError) -> ReportError + '_ {
    |e| ReportError::Table { path: path.into(), reason: e.to_string() }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|source| ReportError::Io { path: path.into(), source })
}

impl Table {
    fn frame(&self) -> PolarsResult<DataFrame> {
        let column = |(name, cells): &(&str, Cells)| {
            let name: PlSmallStr = (*name).into();
            match cells {
                Cells::Text(v) => Column::new(name, v),
                Cells::MaybeText(v) => Column::new(name, v),
                Cells::Whole(v) => Column::new(name, v),
                Cells::MaybeWhole(v) => Column::new(name, v),
                Cells::Number(v) => Column::new(name, v),
            }
        };
        let columns: Vec<Column> = self.columns.iter().map(column).collect();
        DataFrame::new(columns.first().map_or(0, Column::len), columns)
    }

    /// Writes `NAME.csv` and `NAME.parquet` into a directory.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(format!("{}.csv", self.name));
        let mut frame = self.frame().map_err(failed(&path))?;
        CsvWriter::new(create(&path)?).finish(&mut frame).map_err(failed(&path))?;
        let path = dir.join(format!("{}.parquet", self.name));
        ParquetWriter::new(create(&path)?).finish(&mut frame).map_err(failed(&path)).map(|_| ())
    }
}

/// Estimated bits of one matrix' tiles in raster order, from a table that `waterfill-allocate` wrote.
///
/// # Errors
/// A file that cannot be read, or has no such matrix.
pub fn tile_bits(file: &Path, tensor: &str) -> Result<Vec<f64>> {
    let open = || File::open(file).map_err(|source| ReportError::Io { path: file.into(), source });
    let columns = vec!["tensor".to_string(), "bits".to_string()];
    let frame = ParquetReader::new(open()?).with_columns(Some(columns)).finish().map_err(failed(file))?;
    let read = || -> PolarsResult<Vec<f64>> {
        let (names, bits) = (frame.column("tensor")?.str()?, frame.column("bits")?.f32()?);
        let own = names.iter().zip(bits.iter()).filter(|(name, _)| *name == Some(tensor));
        Ok(own.map(|(_, bits)| f64::from(bits.unwrap_or(0.0))).collect())
    };
    let found = read().map_err(failed(file))?;
    let missing = || ReportError::Table { path: file.into(), reason: format!("no tiles of {tensor}") };
    if found.is_empty() { Err(missing()) } else { Ok(found) }
}

/// Estimated bits of all tiles, matrix by matrix, from such a table.
///
/// # Errors
/// A file that cannot be read.
pub fn all_tile_bits(file: &Path) -> Result<Vec<f32>> {
    let open = File::open(file).map_err(|source| ReportError::Io { path: file.into(), source })?;
    let frame = ParquetReader::new(open).with_columns(Some(vec!["bits".into()])).finish().map_err(failed(file))?;
    let bits = frame.column("bits").and_then(|c| c.f32()).map_err(failed(file))?;
    Ok(bits.iter().map(|b| b.unwrap_or(0.0)).collect())
}

/// Tiles of one point, as allocation left them.
#[derive(Debug, Clone)]
pub struct Tiles {
    /// The run's name.
    pub run: String,
    /// The point's number.
    pub point: u64,
    /// Parquet file of its tiles.
    pub file: PathBuf,
}

/// Writes the tiles of all points into one Parquet file, a million rows in memory at a time; returns how many there are.
///
/// # Errors
/// Files that cannot be read or written.
pub fn write_tiles(all: &[Tiles], path: &Path) -> Result<u64> {
    let mut writer = None;
    let mut rows = 0;
    for Tiles { run, point, file } in all {
        let open = || File::open(file).map_err(|source| ReportError::Io { path: file.clone(), source });
        let count = ParquetReader::new(open()?).num_rows().map_err(failed(file))?;
        for start in (0..count).step_by(ROWS) {
            let length = ROWS.min(count - start);
            let part = ParquetReader::new(open()?).with_slice(Some((start, length))).finish().map_err(failed(file))?;
            let mut columns = vec![
                Column::new_scalar("run".into(), Scalar::from(PlSmallStr::from(run.as_str())), length),
                Column::new_scalar("point".into(), Scalar::from(*point), length),
            ];
            columns.extend(part.columns().iter().cloned());
            let mut frame = DataFrame::new(length, columns).map_err(failed(path))?;
            // Rows are read in the chunks of their row groups.
            frame.rechunk_mut_par();
            let writer = match &mut writer {
                Some(writer) => writer,
                empty => {
                    let made = ParquetWriter::new(create(path)?).batched(frame.schema()).map_err(failed(path))?;
                    empty.insert(made)
                }
            };
            writer.write_batch(&frame).map_err(failed(path))?;
            rows += length as u64;
        }
    }
    match writer {
        Some(writer) => writer.finish().map(|_| rows).map_err(failed(path)),
        None => Ok(0),
    }
}
