//! Many runs from one file: every combination of a grid, or a list, sharing what they can.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use waterfill_artifacts::Store;

use crate::compare::{Comparison, compare};
use crate::config::Config;
use crate::console::Console;
use crate::error::{PipelineError, Result};
use crate::estimate::{self, available_memory};
use crate::load::{config_of, merge, merged};
use crate::peers::{Peers, Reach};
use crate::plan::{PlannedStage, plan};
use crate::run::{RunOutput, run};
use crate::runs::{Place, Record, agreements, figures, write_agreements, write_page, write_tables};
use crate::session::Session;
use crate::stages::Until;
use crate::targets::{Measure, Reached, Target, check};

/// Most runs of a sweep.
const MAX_RUNS: usize = 10_000;

/// The `sweep` section of a file.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepSection {
    /// Values by dotted key, such as `allocate.policy: [free, safe]`; every combination is a run.
    #[serde(default)]
    pub grid: BTreeMap<String, Vec<Value>>,
    /// Settings by dotted key; each entry is a run, or a whole grid when there is one. The key `label` names it.
    #[serde(default)]
    pub runs: Vec<BTreeMap<String, Value>>,
    /// Configurations that every run is made for, relative to this file; values of this file go before
    /// theirs.
    #[serde(default)]
    pub over: Vec<String>,
    /// File with results of other quantizers on the evaluation's tokens, relative to the working directory.
    #[serde(default)]
    pub peers: Option<String>,
    /// What is to be reached, checked when all runs have ended.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// Memory that runs side by side may take, 10^9 bytes; three quarters of what is free if absent.
    #[serde(default)]
    pub memory_gb: Option<f64>,
    /// Most runs side by side; one for each core if absent.
    #[serde(default)]
    pub parallel: Option<usize>,
}

/// One run of a sweep.
#[derive(Debug, Clone)]
pub struct SweepRun {
    /// Its settings in words, such as `policy=safe`.
    pub label: String,
    /// Settings by dotted key.
    pub settings: BTreeMap<String, Value>,
    /// The whole configuration.
    pub config: Config,
}

/// A file's runs.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// The file's name without its ending.
    pub name: String,
    /// All runs.
    pub runs: Vec<SweepRun>,
    /// Bytes that runs side by side may take.
    pub memory: u64,
    /// Most runs side by side.
    pub parallel: usize,
    /// File with results of other quantizers.
    pub peers: Option<PathBuf>,
    /// What is to be reached.
    pub targets: Vec<Target>,
}

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

/// Reads a file with a `sweep` section, or one without, which is a sweep of one run.
///
/// # Errors
/// As [`crate::load`]; the run is named whose settings are at fault.
pub fn load_sweep(path: &Path) -> Result<Sweep> {
    let failed = |reason: String| PipelineError::Config { path: path.to_path_buf(), reason };
    let mut value = merged(path)?;
    let section = match value.as_object_mut().and_then(|m| m.remove("sweep")) {
        Some(section) => {
            crate::load::check_section(&section).map_err(failed)?;
            serde_json::from_value(section).map_err(|e| failed(format!("sweep: {e}")))?
        }
        None => SweepSection::default(),
    };
    if let Some(gb) = section.memory_gb.filter(|gb| !(0.01..=1e6).contains(gb)) {
        return Err(failed(format!("sweep.memory_gb is {gb}, expected 0.01 to 1000000")));
    }
    if section.parallel.is_some_and(|p| !(1..=1024).contains(&p)) {
        return Err(failed("sweep.parallel is outside its limits, expected 1 to 1024".into()));
    }
    if let Some((key, _)) = section.grid.iter().find(|(_, values)| values.is_empty()) {
        return Err(failed(format!("sweep.grid.{key} has no values, expected at least one")));
    }
    let mut all = if section.runs.is_empty() { vec![BTreeMap::new()] } else { section.runs.clone() };
    for (key, values) in &section.grid {
        if all.len().saturating_mul(values.len()) > MAX_RUNS {
            return Err(failed(format!("more than {MAX_RUNS} runs")));
        }
        let with = |settings: &BTreeMap<String, Value>, value: &Value| {
            let mut settings = settings.clone();
            settings.insert(key.clone(), value.clone());
            settings
        };
        all = all.iter().flat_map(|s| values.iter().map(move |v| with(s, v))).collect();
    }
    let mut bases = Vec::new();
    for over in &section.over {
        let mut base = merged(&path.parent().unwrap_or(Path::new(".")).join(over))?;
        merge(&mut base, value.clone());
        bases.push(base);
    }
    let named = bases.len() > 1;
    if bases.is_empty() {
        bases.push(value);
    }
    let mut runs: Vec<SweepRun> = Vec::new();
    for (base, settings) in bases.iter().flat_map(|b| all.iter().map(move |s| (b, s))) {
        let mut settings = settings.clone();
        let own = settings.remove("label");
        let mut label = own.as_ref().and_then(Value::as_str).map_or_else(|| label(&settings), String::from);
        if let Some(name) = base.get("name").and_then(Value::as_str).filter(|_| named) {
            label = format!("{name}: {label}");
        }
        let mut value = base.clone();
        for (key, setting) in &settings {
            set(&mut value, key, setting.clone()).map_err(|e| failed(format!("run {label}: {e}")))?;
        }
        let config = config_of(value, path).map_err(|e| match e {
            PipelineError::Config { path, reason } => {
                PipelineError::Config { path, reason: format!("run {label}: {reason}") }
            }
            other => other,
        })?;
        if let Some(twin) = runs.iter().find(|r| r.label == label && r.settings == settings) {
            return Err(failed(format!("run {} is there twice", twin.label)));
        }
        runs.push(SweepRun { label, settings, config });
    }
    let labels: Vec<String> = runs.iter().map(|r| r.label.clone()).collect();
    if let Some(problem) = section.targets.iter().find_map(|t| t.problem(&labels)) {
        return Err(failed(format!("sweep.targets: {problem}")));
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    Ok(Sweep {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        runs,
        memory: section.memory_gb.map_or_else(|| available_memory() / 4 * 3, |gb| (gb * 1e9) as u64),
        parallel: section.parallel.unwrap_or(cores),
        peers: section.peers.map(PathBuf::from),
        targets: section.targets,
    })
}

/// `policy=safe, sequences=64`: the last part of every key.
fn label(settings: &BTreeMap<String, Value>) -> String {
    if settings.is_empty() {
        return "base".into();
    }
    let short = |value: &Value| match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let part = |(key, value): (&String, &Value)| format!("{}={}", key.rsplit('.').next().unwrap_or(key), short(value));
    settings.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// Sets a value by dotted key.
fn set(value: &mut Value, key: &str, setting: Value) -> std::result::Result<(), String> {
    let mut at = value;
    for part in key.split('.') {
        if at.is_null() {
            *at = Value::Object(Default::default());
        }
        let Some(map) = at.as_object_mut() else {
            return Err(format!("{key}: {part} is inside something that is no section"));
        };
        at = map.entry(part).or_insert(Value::Null);
    }
    *at = setting;
    Ok(())
}

/// Memory that is free for runs.
struct Budget {
    left: Mutex<u64>,
    freed: Condvar,
    whole: u64,
}

impl Budget {
    fn new(bytes: u64) -> Self {
        Self { left: Mutex::new(bytes), freed: Condvar::new(), whole: bytes }
    }

    /// Runs `work` once `bytes` are free; what needs more than the whole budget runs alone.
    fn within<T>(&self, bytes: u64, work: impl FnOnce() -> T) -> T {
        let bytes = bytes.min(self.whole);
        let mut left = self.left.lock().expect("no panic while held");
        while *left < bytes {
            left = self.freed.wait(left).expect("no panic while held");
        }
        *left -= bytes;
        drop(left);
        let result = work();
        *self.left.lock().expect("no panic while held") += bytes;
        self.freed.notify_all();
        result
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "name: a\nmodel: fixture:1\ncalibrate: {text: fixture}\nallocate: {lambdas: [1e-8]}\nevaluate: {text: fixture}\n";

    fn load_text(sweep: &str) -> std::result::Result<Sweep, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.yaml");
        std::fs::write(&path, format!("{BASE}sweep: {sweep}\n")).unwrap();
        load_sweep(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn grids_multiply_and_lists_do_not() {
        let sweep = load_text("{grid: {allocate.policy: [free, safe], calibrate.sequences: [4, 8, 16]}}").unwrap();
        assert_eq!(sweep.runs.len(), 6);
        assert_eq!(sweep.runs[5].label, "policy=safe, sequences=16");
        assert_eq!(sweep.runs[5].config.calibrate.sequences, 16);
        let sweep = load_text("{runs: [{model: 'fixture:2'}, {allocate.formats: [int8]}], parallel: 1}").unwrap();
        assert_eq!((sweep.runs.len(), sweep.parallel), (2, 1));
        assert_eq!(sweep.runs[0].config.model, "fixture:2");
        assert_eq!(load_text("{}").unwrap().runs[0].label, "base");
    }

    #[test]
    fn bad_sweeps_name_the_run_and_the_key() {
        let message = load_text("{grid: {allocate.polici: [free]}}").unwrap_err();
        assert!(message.contains("run polici=free") && message.contains("did you mean policy"), "{message}");
        let message = load_text("{grid: {allocate.margin: [0, -1]}}").unwrap_err();
        assert!(message.contains("run margin=-1") && message.contains("allocate.margin is -1"), "{message}");
        assert!(load_text("{gird: {}}").unwrap_err().contains("did you mean grid"));
        assert!(load_text("{grid: {name.x: [1]}}").unwrap_err().contains("no section"));
        assert!(load_text("{grid: {allocate.margin: []}}").unwrap_err().contains("no values"));
        assert!(load_text("{runs: [{allocate.margin: 1}, {allocate.margin: 1}]}").unwrap_err().contains("twice"));
    }

    #[test]
    fn the_budget_lets_no_more_in_than_fits() {
        let budget = Budget::new(10);
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    budget.within(4, || {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(5));
                        inside.fetch_sub(1, Ordering::SeqCst);
                    })
                });
            }
        });
        assert!(most.into_inner() <= 2);
        budget.within(1000, || {});
    }
}
