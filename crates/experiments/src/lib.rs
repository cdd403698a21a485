//! Runs and comparisons between them: records, sweeps, claims, tables, figures and pages.
//!
//! [`run`] runs one pipeline and keeps its [`Record`]; [`run_sweep`] runs many, checks the sweep's claims and writes its
//! page. Everything else is read from records and from the artifacts that they name.

mod agreement;
mod budget;
mod claims;
mod curves;
mod differences;
mod equal_kl;
mod error;
mod figures;
mod gc;
mod list;
mod matrix_figures;
mod page;
mod peers;
mod record;
mod report;
mod run;
mod sweep;
mod tables;

pub use claims::{Measure, Reached};
pub use differences::{Differences, differences};
pub use equal_kl::Comparison;
pub use error::{ExperimentError, Result};
pub use gc::{Garbage, collect};
pub use list::{Filter, list};
pub use matrix_figures::draw_matrix;
pub use peers::{Peers, Reach};
pub use record::{Record, SweepSlot};
pub use run::run;
pub use sweep::{DryRun, DryRunEntry, SweepOutput, SweepRunOutput, dry_run, run_sweep};
pub use tables::{export_notebook, write_tables, write_tile_table};
