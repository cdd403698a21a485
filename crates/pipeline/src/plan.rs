//! What a run would do, without doing it.

use std::collections::BTreeMap;

use serde::Serialize;
use waterfill_artifacts::Identity;
use waterfill_model::Windows;

use crate::config::Probes;
use crate::error::Result;
use crate::estimate::Times;
use crate::probe::TOGETHER;
use crate::session::{Goal, Session};

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
    /// Seconds it takes, estimated.
    pub seconds: f64,
    /// True when that is a guess without any earlier figure.
    pub rough: bool,
}

struct Planner<'a, 'b> {
    session: &'a Session<'b>,
    times: Times,
    stages: Vec<PlannedStage>,
}

impl Planner<'_, '_> {
    /// Adds a stage and returns its digest, or a stand-in that depends on the same things.
    fn stage(&mut self, label: String, identity: &Identity) -> Result<String> {
        let found = self.session.store.find(&self.session.config.name, identity)?;
        let (seconds, rough) = match &found {
            Some(_) => (0.0, false),
            None => self.times.of(self.session, &identity.stage),
        };
        let key = identity.key();
        self.stages.push(PlannedStage {
            stage: label,
            key: key.clone(),
            cached: found.is_some(),
            shared: false,
            seconds,
            rough,
        });
        Ok(found.map_or_else(|| format!("pending:{key}"), |artifact| artifact.digest()))
    }

    /// Adds allocation and coding; the digest of the latter.
    fn encoded(&mut self, calibration: &str, points: &str, probed: Option<String>, goal: Goal) -> Result<String> {
        let identity = self.session.allocation_identity(points.into(), probed, goal);
        let allocation = self.stage(goal.label(), &identity)?;
        self.stage("encode".into(), &self.session.encoding_identity(calibration.into(), allocation))
    }

    /// Adds probes; their digest.
    fn probes(&mut self, held_out: &Windows, calibration: &str, points: &str) -> Result<String> {
        let session = self.session;
        let encoded = self.encoded(calibration, points, None, Goal::Lambda(session.probed_lambda()))?;
        let base =
            self.stage("evaluate the original on held-out text".into(), &session.part_base_identity(held_out))?;
        let groups = session.probed_groups();
        let all = groups.values().flatten().cloned().collect();
        let mut parts = BTreeMap::new();
        for (group, names) in groups.iter().chain([(&TOGETHER.to_string(), &all)]) {
            let identity = session.part_identity(base.clone(), encoded.clone(), names);
            parts.insert(group.clone(), self.stage(format!("probe {group}"), &identity)?);
        }
        self.stage("probe".into(), &session.probe_identity(encoded, parts.into_values().collect()))
    }
}

/// Stages of a run in order; the report, which takes no time, is left out.
///
/// # Errors
/// Data that cannot be read, and damaged artifacts.
pub(crate) fn plan(session: &Session) -> Result<Vec<PlannedStage>> {
    let mut planner = Planner { session, times: Times::read(session), stages: Vec::new() };
    let (windows, held_out) = session.source.calibration(session.config, &session.model.config)?;
    let calibration = planner.stage("calibrate".into(), &session.calibration_identity(&windows))?;
    let mut points = String::new();
    let mut probed = None;
    if session.config.baseline.is_none() {
        points = planner.stage("points".into(), &session.points_identity(calibration.clone()))?;
        if session.config.allocate.probes != Probes::None {
            probed = Some(planner.probes(&held_out, &calibration, &points)?);
        }
    }
    let windows = session.source.evaluation(session.config, session.sizes())?;
    let questions = session.questions()?;
    let base = planner.stage("evaluate the original".into(), &session.base_identity(&windows, questions.as_ref()))?;
    for goal in session.goals() {
        let encoded = match goal {
            Goal::Width(bits) => planner.stage(goal.label(), &session.baseline_identity(calibration.clone(), bits))?,
            _ => planner.encoded(&calibration, &points, probed.clone(), goal)?,
        };
        planner.stage("evaluate".into(), &session.evaluation_identity(base.clone(), encoded))?;
    }
    Ok(planner.stages)
}
