//! One run with its report and its record.

use waterfill_pipeline::{self as pipeline, Context, RunOutput, Until};
use waterfill_store::Progress;

use crate::error::Result;
use crate::record::{Record, SweepSlot};
use crate::report::write_report;

/// Runs the stages up to `until`, writes the report, and keeps the record.
///
/// # Errors
/// The first failure; finished artifacts stay.
pub fn run(context: &Context, slot: &SweepSlot, until: Until) -> Result<RunOutput> {
    let mut artifacts = pipeline::run(context, until)?;
    if until >= Until::Report
        && let Some(report) = write_report(context, &artifacts)?
    {
        artifacts.output.artifacts.insert("report".into(), report.dir().to_path_buf());
        artifacts.used.insert(report.dir().to_path_buf());
    }
    // A store that cannot be written to may still have everything.
    if let Err(error) = Record::keep(context, slot, until, &artifacts) {
        context.console.note(&format!("the run is not recorded: {error}"));
    }
    Ok(artifacts.output)
}
