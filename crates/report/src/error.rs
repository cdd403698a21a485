//! Errors of reports, and the one way in which their files are written.

use std::path::{Path, PathBuf};

/// Result of writing a report.
pub type Result<T> = std::result::Result<T, ReportError>;

/// A report that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A figure could not be drawn.
    #[error("figure {figure}: {reason}")]
    Figure {
        /// The figure's name.
        figure: String,
        /// The plotting library's message.
        reason: String,
    },
    /// A table could not be read or written.
    #[error("{path}: {reason}")]
    Table {
        /// The file.
        path: PathBuf,
        /// The table library's message.
        reason: String,
    },
}

/// Writes a text file.
pub(crate) fn save(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|source| ReportError::Io { path: path.to_path_buf(), source })
}
