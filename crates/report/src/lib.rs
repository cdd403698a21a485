//! Tables, figures and HTML pages from the results of runs and sweeps.
//!
//! [`write()`] makes the report of one run from a [`Report`]; [`SweepPage`] and the figure types ([`Curves`], [`Bars`],
//! [`Scatter`], [`Stages`], [`TileMap`], [`Levels`]) make the page of a sweep. Every figure is drawn once, as SVG and as PNG.

mod bitmap;
mod data;
mod error;
mod figures;
mod html;
mod notebook;
mod pareto;
mod style;
mod sweep;
mod tables;
mod tidy;

use std::path::Path;

pub use data::{OperatingPoint, Report, Sensitivity, Tensor, place};
pub use error::{ReportError, Result};
pub use figures::bars::{Bar, Bars};
pub use figures::curves::{Curve, CurvePoint, Curves, Line, Quality};
pub use figures::levels::Levels;
pub use figures::scatter::{Predictions, Scatter};
pub use figures::stages::{StageCost, Stages};
pub use figures::tiles::TileMap;
pub use notebook::write_notebook;
pub use sweep::{Cell, PageTable, SweepPage};
pub use tidy::{Cells, Table, Tiles, all_tile_bits, tile_bits, write_tiles};

/// Writes into the empty directory `dir`: `points` and `tensors` as CSV and Parquet, all figures as SVG and PNG, and
/// `report.html`.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn write(report: &Report, dir: &Path) -> Result<()> {
    tables::write(report, dir)?;
    let figures = figures::write(report, dir)?;
    error::save(&dir.join("report.html"), &html::page(report, &figures))
}
