//! Many runs from one file, sharing what they can.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Serialize, Serializer};
use serde_json::Value;
use waterfill_config::{Sweep, SweepRun};
use waterfill_pipeline::{Console, Context, PlannedStage, RunOutput, SCHEMA, Until, available_memory, plan};
use waterfill_store::Store;

use crate::agreement::{agreements, write as write_agreements};
use crate::budget::Budget;
use crate::claims::{Measure, Reached, check};
use crate::equal_kl::{Comparison, compare};
use crate::error::{ExperimentError, Result};
use crate::figures::figures;
use crate::page::write_page;
use crate::peers::{Peers, Reach};
use crate::record::{Record, SweepSlot};
use crate::run::run;
use crate::tables::{write_claims, write_tables};

/// The object that `sweep --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct SweepOutput {
    /// Version of this object's names.
    pub schema: u32,
    /// Name of the sweep.
    pub sweep: String,
    /// Every run, in order.
    pub runs: Vec<SweepRunOutput>,
    /// Our bytes at the KL of every peer, where the file names peers.
    pub reach: Vec<Reach>,
    /// The claims with their outcome.
    pub claims: Vec<Reached>,
    /// The same under its name of schema 1.
    pub targets: Vec<Reached>,
    /// Pictures; `curves-MODEL` has all curves of a model.
    pub figures: Vec<PathBuf>,
    /// One page with everything; the folder `tables` is next to it.
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
    /// The object that `run` prints, if it ended well.
    #[serde(flatten, serialize_with = "with_both_names")]
    pub output: Option<RunOutput>,
}

impl SweepOutput {
    /// Number of runs that failed.
    pub fn failures(&self) -> usize {
        self.runs.iter().filter(|r| r.error.is_some()).count()
    }
}

/// The plan of a sweep.
#[derive(Debug, Clone, Serialize)]
pub struct DryRun {
    /// Version of this object's names.
    pub schema: u32,
    /// Name of the sweep.
    pub sweep: String,
    /// Every run, in order.
    pub runs: Vec<DryRunEntry>,
    /// Estimated seconds in all.
    pub seconds: f64,
    /// True when no figure of an earlier run was there to estimate from.
    pub rough: bool,
}

/// The plan of a run.
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
            |reason| ExperimentError::Mismatch { path: path.clone(), reason: format!("run {}: {reason}", run.label) };
        peers.check(e.sequences, e.context).map_err(failed)?;
    }
    let budget = Budget::new(sweep.memory.unwrap_or_else(|| available_memory() / 4 * 3));
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
    let (claims, figures, page) = write_results(sweep, peers.as_ref(), measure)?;
    Ok(SweepOutput {
        schema: SCHEMA,
        sweep: sweep.name.clone(),
        runs,
        reach,
        targets: claims.clone(),
        claims,
        figures,
        page,
    })
}

/// Claims with their outcome, figures, and the page.
type Results = (Vec<Reached>, Vec<PathBuf>, Option<PathBuf>);

/// Checks claims, and writes figures, page and tables of all runs that are recorded, in their order, into the sweep's folder.
fn write_results(sweep: &Sweep, peers: Option<&Peers>, measure: &dyn Measure) -> Result<Results> {
    let Some(first) = sweep.runs.first() else { return Ok(Results::default()) };
    let own = |run: &SweepRun| {
        Record::of(Path::new(&run.config.store), &run.config, &slot(sweep.name.as_str(), run)).transpose()
    };
    let records: Vec<Record> = sweep.runs.iter().filter_map(own).collect::<Result<_>>()?;
    if records.is_empty() {
        return Ok(Results::default());
    }
    let claims = check(&sweep.claims, &records, measure);
    let dir = Path::new(&first.config.store).join(&sweep.name);
    write_tables(&records, &dir.join("tables"))?;
    let calibrations = agreements(&records);
    write_agreements(&calibrations, &dir.join("tables"))?;
    write_claims(&claims, &dir.join("tables"))?;
    let figures = figures(&records, peers, &calibrations);
    let images = figures.iter().map(|f| f.write(&dir)).collect::<Result<_>>()?;
    let page = write_page(&sweep.name, (&records, &calibrations, &claims), &figures, &dir.join("report.html"))?;
    Ok((claims, images, Some(page)))
}

/// The place of a run in the sweep.
fn slot(sweep: &str, run: &SweepRun) -> SweepSlot {
    SweepSlot { sweep: Some(sweep.into()), label: Some(run.label.clone()) }
}

fn one_run(
    one: &SweepRun,
    sweep: &str,
    store: &Store,
    device: &str,
    (console, budget): (&Console, &Budget),
) -> Result<RunOutput> {
    let within = |context: &Context| {
        let memory = peak_memory(&plan(context)?);
        budget.within(memory, || run(context, &slot(sweep, one), Until::Report))
    };
    let opened = Context::open(&one.config, store, device, console).map_err(ExperimentError::from);
    let outcome = opened.and_then(|context| within(&context));
    match &outcome {
        Ok(_) => console.finish("done"),
        Err(error) => console.finish(&format!("FAILED: {error}")),
    }
    outcome
}

/// One store for each folder, so that runs share its list of checked artifacts.
fn stores(sweep: &Sweep, repair: bool) -> BTreeMap<String, Store> {
    let open = |s: &String| (s.clone(), Store::new(PathBuf::from(s)).repairing(repair));
    sweep.runs.iter().map(|r| open(&r.config.store)).collect()
}

/// The stages that [`run_sweep`] would compute, and those it would find.
pub fn dry_run(sweep: &Sweep, device: &str, console: &Console) -> DryRun {
    let stores = stores(sweep, false);
    let mut seen = BTreeSet::new();
    let mut result = DryRun { schema: SCHEMA, sweep: sweep.name.clone(), runs: Vec::new(), seconds: 0.0, rough: false };
    for one in &sweep.runs {
        let planned =
            Context::open(&one.config, &stores[&one.config.store], device, console).map_err(ExperimentError::from);
        let planned = planned.and_then(|context| Ok(plan(&context)?));
        let (mut stages, error) = match planned {
            Ok(stages) => (stages, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let memory_bytes = peak_memory(&stages);
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

/// Estimated peak memory of the stages that are left, bytes.
fn peak_memory(stages: &[PlannedStage]) -> u64 {
    stages.iter().map(|stage| stage.memory_bytes).max().unwrap_or(0)
}

fn with_both_names<S: Serializer>(output: &Option<RunOutput>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    output.as_ref().map(RunOutput::to_json).serialize(serializer)
}
