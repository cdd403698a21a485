//! Runs a flow of stages, or lists what a run would do, from the same description.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use waterfill_store::{Artifact, Identity, Progress, Silent, reset_peak_memory};

use crate::context::Context;
use crate::device_memory;
use crate::error::Result;
use crate::estimate::{Times, available_memory, gigabytes};
use crate::stage::{ArtifactRef, Stage};

/// Expected memory above which it is announced, bytes.
const NOTABLE: u64 = 1 << 30;

/// A stage that a run needs.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedStage {
    /// In words.
    pub stage: String,
    /// Key of its artifact; where an input is not computed yet, a stand-in.
    pub key: String,
    /// True when the artifact is in the store.
    pub cached: bool,
    /// True when an earlier run of the sweep computes it.
    pub shared: bool,
    /// Pieces of which the stage consists, where they are known before it runs.
    pub units: usize,
    /// Pieces that an interrupted run has finished.
    pub units_done: usize,
    /// Estimated seconds that are left.
    pub seconds: f64,
    /// True when that is a guess without any earlier figure.
    pub rough: bool,
    /// Estimated peak memory, bytes.
    pub memory_bytes: u64,
}

/// Whether an engine makes or lists the stages of a flow.
enum Mode {
    Run,
    Plan { times: Times, stages: Vec<PlannedStage> },
}

/// Makes the artifacts of a flow in order, or plans them.
pub struct Engine<'c> {
    context: &'c Context<'c>,
    mode: RefCell<Mode>,
    /// Folders of artifacts that were made or found.
    used: RefCell<BTreeSet<PathBuf>>,
}

impl<'c> Engine<'c> {
    /// An engine that makes what is missing.
    pub fn running(context: &'c Context<'c>) -> Self {
        Self { context, mode: RefCell::new(Mode::Run), used: RefCell::default() }
    }

    /// An engine that computes nothing and lists the stages.
    pub fn planning(context: &'c Context<'c>) -> Self {
        let mode = Mode::Plan { times: Times::read(context), stages: Vec::new() };
        Self { mode: RefCell::new(mode), ..Self::running(context) }
    }

    /// The context of all stages.
    pub fn context(&self) -> &'c Context<'c> {
        self.context
    }

    /// The stages that a planning engine has listed, in order.
    pub(crate) fn into_plan(self) -> Vec<PlannedStage> {
        match self.mode.into_inner() {
            Mode::Run => Vec::new(),
            Mode::Plan { stages, .. } => stages,
        }
    }

    /// Folders of all artifacts that were made or found.
    pub fn used(&self) -> BTreeSet<PathBuf> {
        self.used.borrow().clone()
    }

    /// The artifact of a stage: found, made, or planned.
    ///
    /// # Errors
    /// Those of the stage and of the store.
    pub fn make(&self, stage: &dyn Stage) -> Result<ArtifactRef> {
        let identity = stage.identity(self.context)?;
        if let Mode::Plan { times, stages } = &mut *self.mode.borrow_mut() {
            let (planned, artifact) = plan(stage, &identity, self.context, times)?;
            let reference = artifact.map_or_else(|| ArtifactRef::pending(&planned.key), ArtifactRef::found);
            stages.push(planned);
            return Ok(reference);
        }
        let artifact = run(stage, &identity, self.context)?;
        self.used.borrow_mut().insert(artifact.dir.clone());
        Ok(ArtifactRef::found(artifact))
    }
}

/// Describes a stage and returns its artifact if it is in the store.
fn plan(
    stage: &dyn Stage,
    identity: &Identity,
    context: &Context,
    times: &Times,
) -> Result<(PlannedStage, Option<Artifact>)> {
    let found = context.store.usable(&context.config.name, identity, &Silent)?;
    let mut planned = PlannedStage {
        stage: stage.label(),
        key: identity.key(),
        cached: found.is_some(),
        shared: false,
        units: 0,
        units_done: 0,
        seconds: 0.0,
        rough: false,
        memory_bytes: 0,
    };
    if found.is_none() {
        let estimate = stage.estimate(context);
        let finished = context.store.finished_units(&context.config.name, identity);
        let units = stage.units(context)?;
        planned.units = units.len();
        planned.units_done = units.iter().filter(|unit| finished.contains(*unit)).count();
        let (seconds, rough) = times.of(&identity.stage, &estimate);
        let left = 1.0 - planned.units_done as f64 / units.len().max(1) as f64;
        (planned.seconds, planned.rough) = (seconds * left, rough);
        planned.memory_bytes = estimate.memory;
    }
    Ok((planned, found))
}

/// Finds or makes an artifact, with progress on the console.
fn run(stage: &dyn Stage, identity: &Identity, context: &Context) -> Result<Artifact> {
    let (label, console) = (stage.label(), context.console);
    console.step(&label);
    let start = Instant::now();
    let artifact = context.store.get_or_make(&context.config.name, identity, console, |work| {
        announce(stage, identity, context);
        let free = device_memory::free(context);
        stage.run(context, work).map_err(|error| device_memory::explain(error, context, stage, free))
    })?;
    let peak = artifact.timings().peak_memory_bytes;
    console.step_done(artifact.cached, start.elapsed().as_secs_f64(), (peak > 0).then_some(peak));
    Ok(artifact)
}

/// Says how much a stage is expected to take, where that is much.
fn announce(stage: &dyn Stage, identity: &Identity, context: &Context) {
    reset_peak_memory();
    let (estimate, free) = (stage.estimate(context), available_memory());
    if estimate.memory <= NOTABLE && estimate.memory <= free {
        return;
    }
    let disk = match estimate.disk {
        0 => String::new(),
        bytes => format!(", {} on disk", gigabytes(bytes)),
    };
    let (seconds, _) = Times::read(context).of(&identity.stage, &estimate);
    let time = match seconds {
        s if s < 90.0 => String::new(),
        s if s < 5400.0 => format!(", roughly {:.0} minutes", s / 60.0),
        s => format!(", roughly {:.1} hours", s / 3600.0),
    };
    let (label, memory, free) = (stage.label(), gigabytes(estimate.memory), gigabytes(free));
    context.console.note(&format!("{label}: about {memory} of memory ({free} are free){disk}{time}"));
}
