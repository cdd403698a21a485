//! Tables, figures and one HTML page from the results of a run.

mod curves;
mod data;
mod figures;
mod html;
mod notebook;
mod sweep;
mod tables;
mod tidy;

use std::path::{Path, PathBuf};

pub use curves::{Curve, curves_svg, write_curves};
pub use data::{Point, Report, Tensor, place};
pub use notebook::write_notebook;
pub use sweep::{Cell, PageTable, SweepPage};
pub use tidy::{Cells, Table, Tiles, write_tiles};

/// Result of writing a report.
pub type Result<T> = std::result::Result<T, ReportError>;

/// A report that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A figure could not be drawn.
    #[error("figure {figure}: {reason}")]
    Figure {
        /// Which one.
        figure: String,
        /// What the plotting library said.
        reason: String,
    },
    /// A table could not be written.
    #[error("{path}: {reason}")]
    Table {
        /// The file.
        path: PathBuf,
        /// What the table library said.
        reason: String,
    },
}

/// Writes into the empty directory `dir`: `points` and `tensors` as CSV and Parquet, the
/// rate-distortion curve and predicted against measured loss as SVG and PNG, the other figures as SVG,
/// and `report.html`.
///
/// # Errors
/// Files that cannot be written.
pub fn write(report: &Report, dir: &Path) -> Result<()> {
    tables::write(report, dir)?;
    figures::all_png(report, dir)?;
    let figures = figures::all_svg(report)?;
    for (name, svg) in &figures {
        save(&dir.join(format!("{name}.svg")), svg)?;
    }
    save(&dir.join("report.html"), &html::page(report, &figures))
}

fn save(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|source| ReportError::Io { path: path.to_path_buf(), source })
}
