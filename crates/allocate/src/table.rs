//! The allocation as a table: one row for each tile, in Parquet.

use std::fs::File;
use std::path::Path;

use polars::prelude::*;

use crate::error::{AllocateError, Result};
use crate::select::Selection;

/// Writes one row per tile: `tensor, tile_row, tile_col, format, step, bits, loss`, a row group
/// for each tensor. `step` is the index in quarter octaves, `bits` the estimated coded bits of the
/// samples, `loss` the predicted nats per token.
///
/// # Errors
/// As the file system says.
pub fn write_table<'a>(path: &Path, selections: impl Iterator<Item = (&'a str, &'a Selection)>) -> Result<()> {
    let failed = |e: PolarsError| AllocateError::File { path: path.to_path_buf(), reason: e.to_string() };
    let io = |e: std::io::Error| AllocateError::File { path: path.to_path_buf(), reason: e.to_string() };
    let mut writer = None;
    for (name, selection) in selections {
        let frame = frame(name, selection).map_err(failed)?;
        let writer = match &mut writer {
            Some(writer) => writer,
            empty => {
                let file = File::create(path).map_err(io)?;
                empty.insert(ParquetWriter::new(file).batched(frame.schema()).map_err(failed)?)
            }
        };
        writer.write_batch(&frame).map_err(failed)?;
    }
    match writer {
        Some(writer) => writer.finish().map(|_| ()).map_err(failed),
        None => Ok(()),
    }
}

fn frame(name: &str, selection: &Selection) -> PolarsResult<DataFrame> {
    let (across, chosen) = (selection.plan.tiles_across(), &selection.chosen);
    let column = |f: &dyn Fn(usize) -> u32| (0..chosen.len()).map(f).collect::<Vec<u32>>();
    let columns = vec![
        Column::new("tensor".into(), vec![name; chosen.len()]),
        Column::new("tile_row".into(), column(&|n| (n / across) as u32)),
        Column::new("tile_col".into(), column(&|n| (n % across) as u32)),
        Column::new("format".into(), chosen.iter().map(|p| p.format.name()).collect::<Vec<_>>()),
        Column::new("step".into(), chosen.iter().map(|p| i32::from(p.step)).collect::<Vec<_>>()),
        Column::new("bits".into(), chosen.iter().map(|p| p.rate.0 as f32).collect::<Vec<_>>()),
        Column::new("loss".into(), chosen.iter().map(|p| p.loss.0 as f32).collect::<Vec<_>>()),
    ];
    DataFrame::new(chosen.len(), columns)
}
