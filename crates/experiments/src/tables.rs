//! Runs as tables for notebooks.

use std::path::Path;

use waterfill_pipeline::{Attempt, BaseOutput, PointOutput, TensorSummary};
use waterfill_report::{Cells, Table, Tiles, place, write_notebook, write_tiles};

use crate::claims::Reached;
use crate::error::{ExperimentError, Result};
use crate::record::Record;

/// Formats whose shares tables have.
const FORMATS: [(&str, &str); 4] =
    [("int4", "share_int4"), ("int8", "share_int8"), ("fp8", "share_fp8"), ("lossless", "share_lossless")];

/// A point with its run's name and its number there, the smallest first.
type Numbered<'a> = (&'a str, u64, &'a PointOutput);

/// Writes the tables of runs into a directory, which is created: `runs`, `points` and `tensors` as CSV and Parquet.
///
/// # Errors
/// Files that cannot be written.
pub fn write_tables(records: &[Record], dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(ExperimentError::io(dir))?;
    [runs(records), points(records), tensors(records)].iter().try_for_each(|table| table.write(dir))?;
    let looped = records.iter().flat_map(|r| &r.output.points).any(|p| !p.closed_loop.is_empty());
    if looped { Ok(attempts(records).write(dir)?) } else { Ok(()) }
}

/// Writes claims with their outcome into a directory, which exists.
///
/// # Errors
/// Files that cannot be written.
pub(crate) fn write_claims(all: &[Reached], dir: &Path) -> Result<()> {
    if all.is_empty() { Ok(()) } else { Ok(claims(all).write(dir)?) }
}

/// Writes `tiles.parquet` into a directory, streamed from the allocations of all points; returns the number of tiles.
///
/// # Errors
/// Files that cannot be read or written.
pub fn write_tile_table(records: &[Record], dir: &Path) -> Result<u64> {
    let file = |p: &PointOutput| Some(p.allocation.as_ref()?.join("tiles.parquet")).filter(|f| f.is_file());
    let tiles = |(run, point, p): Numbered| Some(Tiles { run: run.into(), point, file: file(p)? });
    Ok(write_tiles(&all_points(records).filter_map(tiles).collect::<Vec<_>>(), &dir.join("tiles.parquet"))?)
}

/// Writes `NAME.ipynb` into a directory, and the tables that it reads into the folder `NAME` next to it.
///
/// # Errors
/// No runs, files that cannot be written.
pub fn export_notebook(records: &[Record], name: &str, out: &Path) -> Result<std::path::PathBuf> {
    if records.is_empty() {
        let reason = format!("no run of a sweep {name:?}; `waterfill runs` lists what has been run");
        return Err(ExperimentError::NoRun { store: out.into(), reason });
    }
    write_tables(records, &out.join(name))?;
    let path = out.join(format!("{name}.ipynb"));
    write_notebook(name, name, &path)?;
    Ok(path)
}

fn all_points(records: &[Record]) -> impl Iterator<Item = Numbered<'_>> {
    records.iter().flat_map(|r| r.output.points.iter().enumerate().map(|(n, p)| (r.id.as_str(), n as u64, p)))
}

fn runs(records: &[Record]) -> Table {
    let text = |f: &dyn Fn(&Record) -> String| Cells::Text(records.iter().map(f).collect());
    let maybe = |f: fn(&Record) -> Option<String>| Cells::MaybeText(records.iter().map(f).collect());
    let base = |f: fn(&BaseOutput) -> Option<f64>| {
        Cells::Number(records.iter().map(|r| r.output.base.as_ref().and_then(f)).collect())
    };
    let columns = vec![
        ("run", text(&|r| r.id.clone())),
        ("pipeline", text(&|r| r.output.model.clone())),
        ("sweep", maybe(|r| r.sweep.clone())),
        ("label", maybe(|r| r.label.clone())),
        ("tags", text(&|r| r.tags.join(", "))),
        ("date", text(&|r| r.date.clone())),
        ("program", text(&|r| r.program.clone())),
        ("device", text(&|r| r.device.clone())),
        ("model", text(&|r| r.model.clone())),
        ("base_nll", base(|b| Some(b.nll))),
        ("base_perplexity", base(|b| Some(b.perplexity))),
        ("base_accuracy", base(|b| b.accuracy)),
        ("config", text(&|r| r.config.to_string())),
    ];
    Table { name: "runs", columns }
}

fn points(records: &[Record]) -> Table {
    let all: Vec<Numbered> = all_points(records).collect();
    let number = |f: fn(&PointOutput) -> Option<f64>| Cells::Number(all.iter().map(|(.., p)| f(p)).collect());
    let whole = |f: fn(&PointOutput) -> Option<u64>| Cells::MaybeWhole(all.iter().map(|(.., p)| f(p)).collect());
    let checkpoint = |p: &PointOutput| p.checkpoint.as_ref().map(|c| c.display().to_string());
    let columns = vec![
        ("run", Cells::Text(all.iter().map(|p| p.0.to_string()).collect())),
        ("point", Cells::Whole(all.iter().map(|p| p.1).collect())),
        ("lambda", number(|p| Some(p.lambda))),
        ("layers", whole(|p| p.quality_layers.map(|l| l.used as u64))),
        ("bytes", whole(|p| p.bytes)),
        ("bits_per_weight", number(|p| p.bits_per_weight)),
        ("linear_bits_per_weight", number(|p| p.linear_bits_per_weight)),
        ("resident_bits_per_weight", number(|p| Some(p.resident_bits_per_weight))),
        ("nll", number(|p| p.nll)),
        ("perplexity", number(|p| p.perplexity)),
        ("kl", number(|p| p.kl)),
        ("kl_se", number(|p| p.kl_se)),
        ("top1", number(|p| p.top1)),
        ("accuracy", number(|p| p.accuracy)),
        ("accuracy_change", number(|p| p.benchmarks.first().map(|b| b.change.mean))),
        ("accuracy_change_se", number(|p| p.benchmarks.first().map(|b| b.change.se))),
        ("predicted_loss", number(|p| Some(p.predicted_loss))),
        ("decoded_loss", number(|p| p.decoded_loss)),
        ("predicted_kl", number(|p| p.predicted_kl)),
        ("checkpoint", Cells::MaybeText(all.iter().map(|(.., p)| checkpoint(p)).collect())),
    ];
    Table { name: "points", columns }
}

fn tensors(records: &[Record]) -> Table {
    let mut all: Vec<(&str, u64, &TensorSummary)> = Vec::new();
    for r in records {
        for (n, tensors) in r.tensors.iter().enumerate() {
            all.extend(tensors.iter().map(|t| (r.id.as_str(), n as u64, t)));
        }
    }
    let mut columns = vec![
        ("run", Cells::Text(all.iter().map(|t| t.0.to_string()).collect())),
        ("point", Cells::Whole(all.iter().map(|t| t.1).collect())),
        ("tensor", Cells::Text(all.iter().map(|t| t.2.name.clone()).collect())),
        ("block", Cells::MaybeWhole(all.iter().map(|t| place(&t.2.name).0.map(|n| n as u64)).collect())),
        ("role", Cells::Text(all.iter().map(|t| place(&t.2.name).1.to_string()).collect())),
        ("weights", Cells::Whole(all.iter().map(|t| t.2.weights).collect())),
        ("bits", Cells::Number(all.iter().map(|t| Some(t.2.bits)).collect())),
        ("predicted_loss", Cells::Number(all.iter().map(|t| Some(t.2.loss)).collect())),
    ];
    for (format, column) in FORMATS {
        let share =
            |t: &TensorSummary| Some(t.formats.get(format).copied().unwrap_or(0) as f64 / t.weights.max(1) as f64);
        columns.push((column, Cells::Number(all.iter().map(|t| share(t.2)).collect())));
    }
    Table { name: "tensors", columns }
}

/// Allocations of closed loops.
fn attempts(records: &[Record]) -> Table {
    let all: Vec<(&str, u64, &Attempt)> =
        all_points(records).flat_map(|(run, n, p)| p.closed_loop.iter().map(move |a| (run, n, a))).collect();
    let text = |f: fn(&Attempt) -> String| Cells::Text(all.iter().map(|a| f(a.2)).collect());
    let number = |f: fn(&Attempt) -> Option<f64>| Cells::Number(all.iter().map(|a| f(a.2)).collect());
    let columns = vec![
        ("run", Cells::Text(all.iter().map(|a| a.0.to_string()).collect())),
        ("point", Cells::Whole(all.iter().map(|a| a.1).collect())),
        ("allocation", text(|a| a.allocated.name().into())),
        ("kept", Cells::Whole(all.iter().map(|a| a.2.kept.into()).collect())),
        ("bytes", Cells::Whole(all.iter().map(|a| a.2.bytes).collect())),
        ("bits_per_weight", number(|a| Some(a.bits_per_weight))),
        ("held_out_kl", number(|a| Some(a.held_out.mean))),
        ("held_out_kl_se", number(|a| Some(a.held_out.se))),
        ("kl", number(|a| a.kl.map(|kl| kl.mean))),
        ("kl_se", number(|a| a.kl.map(|kl| kl.se))),
        ("checkpoint", text(|a| a.checkpoint.display().to_string())),
    ];
    Table { name: "loops", columns }
}

fn claims(all: &[Reached]) -> Table {
    let text = |f: fn(&Reached) -> String| Cells::Text(all.iter().map(f).collect());
    let number = |f: fn(&Reached) -> Option<f64>| Cells::Number(all.iter().map(f).collect());
    let columns = vec![
        ("claim", text(|r| r.name.clone())),
        ("value", number(|r| r.value)),
        ("at_least", number(|r| r.at_least)),
        ("at_most", number(|r| r.at_most)),
        ("outcome", text(|r| r.outcome().into())),
        ("detail", text(|r| r.detail.clone())),
    ];
    Table { name: "claims", columns }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_documented() {
        let text = include_str!("../../../docs/TABLES.md");
        let agreement = crate::agreement::table(&[]);
        for table in [runs(&[]), points(&[]), tensors(&[]), attempts(&[]), claims(&[]), agreement] {
            let section = text.split("\n## ").find(|s| s.starts_with(table.name)).expect("a section of the table");
            for (column, _) in &table.columns {
                assert!(section.contains(&format!("`{column}`")), "{}: {column}", table.name);
            }
        }
    }
}
