//! Points and tensors as CSV and Parquet.

use std::fs::File;
use std::path::Path;

use polars::prelude::*;

use crate::data::{OperatingPoint, Report, Tensor};
use crate::error::{ReportError, Result};

/// Writes `points.{csv,parquet}` and `tensors.{csv,parquet}`.
pub(crate) fn write(report: &Report, dir: &Path) -> Result<()> {
    let table = |path: &Path, reason: String| ReportError::Table { path: path.to_path_buf(), reason };
    for (name, frame) in [("points", points(report)), ("tensors", tensors(report))] {
        let mut frame = frame.map_err(|e| table(&dir.join(name), e.to_string()))?;
        let create = |path: &Path| File::create(path).map_err(|source| ReportError::Io { path: path.into(), source });
        let path = dir.join(format!("{name}.csv"));
        CsvWriter::new(create(&path)?).finish(&mut frame).map_err(|e| table(&path, e.to_string()))?;
        let path = dir.join(format!("{name}.parquet"));
        ParquetWriter::new(create(&path)?).finish(&mut frame).map_err(|e| table(&path, e.to_string()))?;
    }
    Ok(())
}

fn points(report: &Report) -> PolarsResult<DataFrame> {
    let number = |name: &str, f: fn(&OperatingPoint) -> f64| {
        Column::new(name.into(), report.points.iter().map(f).collect::<Vec<_>>())
    };
    let optional = |name: &str, f: fn(&OperatingPoint) -> Option<f64>| {
        Column::new(name.into(), report.points.iter().map(f).collect::<Vec<Option<f64>>>())
    };
    let columns = vec![
        Column::new("model".into(), vec![report.model.as_str(); report.points.len()]),
        number("lambda", |p| p.lambda),
        Column::new("bytes".into(), report.points.iter().map(|p| p.bytes).collect::<Vec<u64>>()),
        number("bits_per_weight", |p| p.bits_per_weight),
        number("linear_bits_per_weight", |p| p.linear_bits_per_weight),
        number("resident_bits_per_weight", |p| p.resident_bits_per_weight),
        number("nll", |p| p.nll),
        number("nll_se", |p| p.nll_se),
        number("nll_change", |p| p.nll_change),
        number("nll_change_se", |p| p.nll_change_se),
        number("perplexity", |p| p.perplexity),
        number("kl", |p| p.kl),
        number("kl_se", |p| p.kl_se),
        number("top1", |p| p.top1),
        number("top1_se", |p| p.top1_se),
        optional("accuracy", |p| p.accuracy),
        optional("accuracy_low", |p| p.accuracy_low),
        optional("accuracy_high", |p| p.accuracy_high),
        optional("accuracy_change", |p| p.accuracy_change),
        optional("accuracy_change_se", |p| p.accuracy_change_se),
        number("predicted_kl", |p| p.predicted_kl),
    ];
    DataFrame::new(report.points.len(), columns)
}

fn tensors(report: &Report) -> PolarsResult<DataFrame> {
    let rows: Vec<(f64, &Tensor)> =
        report.points.iter().flat_map(|p| p.tensors.iter().map(move |t| (p.lambda, t))).collect();
    let share = |format: &str| -> Vec<f64> {
        rows.iter().map(|(_, t)| t.formats.get(format).copied().unwrap_or(0) as f64 / t.weights as f64).collect()
    };
    let mut columns = vec![
        Column::new("lambda".into(), rows.iter().map(|r| r.0).collect::<Vec<_>>()),
        Column::new("tensor".into(), rows.iter().map(|r| r.1.name.as_str()).collect::<Vec<_>>()),
        Column::new("weights".into(), rows.iter().map(|r| r.1.weights).collect::<Vec<_>>()),
        Column::new("bits".into(), rows.iter().map(|r| r.1.bits).collect::<Vec<_>>()),
        Column::new("predicted_loss".into(), rows.iter().map(|r| r.1.loss).collect::<Vec<_>>()),
    ];
    for format in ["int4", "int8", "fp8", "lossless"] {
        columns.push(Column::new(format!("share_{format}").into(), share(format)));
    }
    DataFrame::new(rows.len(), columns)
}
