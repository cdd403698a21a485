//! Many runs from one file, sharing what they can.

mod budget;
mod section;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use serde_json::Value;
use waterfill_store::Store;

use budget::Budget;
pub(crate) use section::SweepSection;
pub use section::{Sweep, SweepRun, load_sweep};

use crate::compare::{Comparison, compare};
use crate::console::Console;
use crate::error::{PipelineError, Result};
use crate::estimate;
use crate::peers::{Peers, Reach};
use crate::plan::{PlannedStage, plan};
use crate::run::{RunOutput, run};
use crate::runs::{Place, Record, agreements, figures, write_agreements, write_page, write_tables, write_targets};
use crate::session::Session;
use crate::stages::Until;
use crate::targets::{Measure, Reached, check};

/// The object that `sweep --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct SweepOutput {
    /// Name of the sweep.
    pub sweep: String,
    /// Every run, in order.
    pub runs: Vec<SweepRunOutput>,
    /// Our bytes at the KL of every peer, where the file names peers.
    pub reach: Vec<Reach>,
    /// What became of the targets.
    pub targets: Vec<Reached>,
    /// Pictures; `curves-MODEL` has all curves of a model.
    pub figures: Vec<PathBuf>,
    /// One page with everything, beside it `tables`.
    pub page: Option<PathBuf>,
}

/// One run's outcome.
#[derive(Debug, Clone, Serialize)]
pub struct SweepRunOutput {
    /// Its settings in words.
    pub label: String,
    /// Its settings by dotted key.
    pub settings: BTreeMap<String, Value>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Its points against the first run of the same model, smallest first; none of that run itself.
    pub against_first: Vec<Comparison>,
    /// What `run` prints, if it did not.
    #[serde(flatten)]
    pub output: Option<RunOutput>,
}

impl SweepOutput {
    /// Number of runs that failed.
    pub fn failures(&self) -> usize {
        self.runs.iter().filter(|r| r.error.is_some()).count()
    }
}

/// What a sweep would do.
#[derive(Debug, Clone, Serialize)]
pub struct DryRun {
    /// Name of the sweep.
    pub sweep: String,
    /// Every run, in order.
    pub runs: Vec<DryRunEntry>,
    /// Estimated seconds in all.
    pub seconds: f64,
    /// True when no figure of an earlier run was there to estimate from.
    pub rough: bool,
}

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct DryRunEntry {
    /// Its settings in words.
    pub label: String,
    /// Estimated peak memory, bytes.
    pub memory_bytes: u64,
    /// Its stages.
    pub stages: Vec<PlannedStage>,
    /// Why it cannot run.
    pub error: Option<String>,
}

/// Runs all runs of a sweep, several side by side; a failure ends its own run only.
///
/// # Errors
/// Results of peers that cannot be read or were measured on something else; nothing has run then.
pub fn run_sweep(
    sweep: &Sweep,
    repair: bool,
    device: &str,
    measure: &dyn Measure,
    console: &Console,
) -> Result<SweepOutput> {
    let peers = sweep.peers.as_deref().map(Peers::read).transpose()?;
    for (run, (peers, path)) in sweep.runs.iter().flat_map(|run| peers.iter().zip(&sweep.peers).map(move |p| (run, p)))
    {
        let e = &run.config.evaluate;
        let failed =
            |reason| PipelineError::Config { path: path.clone(), reason: format!("run {}: {reason}", run.label) };
        peers.check(e.sequences, e.context).map_err(failed)?;
    }
    let budget = Budget::new(sweep.memory);
    let stores = stores(sweep, repair);
    let consoles: Vec<Console> = sweep.runs.iter().map(|r| console.row(&r.label)).collect();
    let outcomes: Vec<Mutex<Option<Result<RunOutput>>>> = sweep.runs.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..sweep.parallel.min(sweep.runs.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::SeqCst);
                    let Some(one) = sweep.runs.get(i) else { return };
                    let outcome =
                        one_run(one, &sweep.name, &stores[&one.config.store], device, (&consoles[i], &budget));
                    *outcomes[i].lock().expect("no panic while held") = Some(outcome);
                }
            });
        }
    });
    let mut runs: Vec<SweepRunOutput> = Vec::new();
    for (one, outcome) in sweep.runs.iter().zip(outcomes) {
        let outcome = outcome.into_inner().expect("no panic while held").expect("every run was taken");
        let (output, error) = match outcome {
            Ok(output) => (Some(output), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let first = runs.iter().filter_map(|r| r.output.as_ref()).find(|o| o.model == one.config.name);
        let against_first = match (&output, first) {
            (Some(output), Some(first)) => compare(&output.points, &first.points),
            _ => Vec::new(),
        };
        runs.push(SweepRunOutput {
            label: one.label.clone(),
            settings: one.settings.clone(),
            error,
            against_first,
            output,
        });
    }
    console.finish("");
    let measured = runs.iter().filter_map(|r| Some((r.label.as_str(), r.output.as_ref()?.points.as_slice())));
    let reach = peers.as_ref().map_or(vec![], |peers| peers.reach(measured));
    let (targets, figures, page) = write_results(sweep, peers.as_ref(), measure)?;
    Ok(SweepOutput { sweep: sweep.name.clone(), runs, reach, targets, figures, page })
}

/// What became of targets, pictures, and the page.
type Results = (Vec<Reached>, Vec<PathBuf>, Option<PathBuf>);

/// Checks targets, and writes figures, page and tables of all runs that are recorded, in their order, into the sweep's folder.
fn write_results(sweep: &Sweep, peers: Option<&Peers>, measure: &dyn Measure) -> Result<Results> {
    let Some(first) = sweep.runs.first() else { return Ok(Results::default()) };
    let own = |run: &SweepRun| {
        Record::of(Path::new(&run.config.store), &run.config, &place(sweep.name.as_str(), run)).transpose()
    };
    let records: Vec<Record> = sweep.runs.iter().filter_map(own).collect::<Result<_>>()?;
    if records.is_empty() {
        return Ok(Results::default());
    }
    let targets = check(&sweep.targets, &records, measure)?;
    let dir = Path::new(&first.config.store).join(&sweep.name);
    write_tables(&records, &dir.join("tables"))?;
    let calibrations = agreements(&records);
    write_agreements(&calibrations, &dir.join("tables"))?;
    write_targets(&targets, &dir.join("tables"))?;
    let figures = figures(&records, peers, &calibrations);
    let images = figures.iter().map(|f| f.write(&dir)).collect::<Result<_>>()?;
    let page = write_page(&sweep.name, (&records, &calibrations, &targets), &figures, &dir.join("report.html"))?;
    Ok((targets, images, Some(page)))
}

/// Which run of a sweep it is.
fn place(sweep: &str, run: &SweepRun) -> Place {
    Place { sweep: Some(sweep.into()), label: Some(run.label.clone()) }
}

fn one_run(
    one: &SweepRun,
    sweep: &str,
    store: &Store,
    device: &str,
    (console, budget): (&Console, &Budget),
) -> Result<RunOutput> {
    let outcome = Session::open(&one.config, store, device, console)
        .map(|session| session.placed(place(sweep, one)))
        .and_then(|session| budget.within(estimate::memory(&session), || run(&session, Until::Report)));
    match &outcome {
        Ok(_) => console.finish("done"),
        Err(error) => console.finish(&format!("FAILED: {error}")),
    }
    outcome
}

/// One store for each folder, so that runs share what is known of it.
fn stores(sweep: &Sweep, repair: bool) -> BTreeMap<String, Store> {
    let open = |s: &String| (s.clone(), Store::new(PathBuf::from(s)).repairing(repair));
    sweep.runs.iter().map(|r| open(&r.config.store)).collect()
}

/// What [`run_sweep`] would compute and what it would find.
pub fn dry_run(sweep: &Sweep, device: &str, console: &Console) -> DryRun {
    let stores = stores(sweep, false);
    let mut seen = BTreeSet::new();
    let mut result = DryRun { sweep: sweep.name.clone(), runs: Vec::new(), seconds: 0.0, rough: false };
    for one in &sweep.runs {
        let planned = Session::open(&one.config, &stores[&one.config.store], device, console)
            .and_then(|session| Ok((estimate::memory(&session), plan(&session)?)));
        let (memory_bytes, mut stages, error) = match planned {
            Ok((memory, stages)) => (memory, stages, None),
            Err(error) => (0, Vec::new(), Some(error.to_string())),
        };
        for stage in &mut stages {
            stage.shared = !stage.cached && !seen.insert(stage.key.clone());
            if !stage.cached && !stage.shared {
                result.seconds += stage.seconds;
                result.rough |= stage.rough;
            }
        }
        result.runs.push(DryRunEntry { label: one.label.clone(), memory_bytes, stages, error });
    }
    result
}
