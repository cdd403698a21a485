//! Tables, figures and one HTML page from the results of a run.

mod data;
mod figures;
mod html;
mod notebook;
mod style;
mod sweep;
mod tables;
mod tidy;

use std::path::{Path, PathBuf};

pub use data::{Point, Report, Sensitivity, Tensor, place};
pub use figures::bars::{Bar, Bars};
pub use figures::curves::{Curve, CurvePoint, Curves, Line, Quality};
pub use figures::levels::Levels;
pub use figures::scatter::{Predictions, Scatter};
pub use figures::stages::{StageCost, Stages};
pub use figures::tiles::TileMap;
pub use notebook::write_notebook;
pub use sweep::{Cell, PageTable, SweepPage};
pub use tidy::{Cells, Table, Tiles, all_tile_bits, tile_bits, write_tiles};

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

/// Writes into the empty directory `dir`: `points` and `tensors` as CSV and Parquet, all figures as SVG and PNG, and
/// `report.html`.
///
/// # Errors
/// Files that cannot be written.
pub fn write(report: &Report, dir: &Path) -> Result<()> {
    tables::write(report, dir)?;
    let figures = figures::write(report, dir)?;
    save(&dir.join("report.html"), &html::page(report, &figures))
}

fn save(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|source| ReportError::Io { path: path.to_path_buf(), source })
}
