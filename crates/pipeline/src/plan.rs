//! What a run would do, without doing it.

use serde::Serialize;
use waterfill_artifacts::Identity;

use crate::error::Result;
use crate::estimate::Times;
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
}

/// Stages of a run in order; the report, which takes no time, is left out.
///
/// # Errors
/// Data that cannot be read, and damaged artifacts.
pub(crate) fn plan(session: &Session) -> Result<Vec<PlannedStage>> {
    let mut planner = Planner { session, times: Times::read(session), stages: Vec::new() };
    let (windows, _) = session.source.calibration(session.config, &session.model.config)?;
    let calibration = planner.stage("calibrate".into(), &session.calibration_identity(&windows))?;
    let points = planner.stage("points".into(), &session.points_identity(calibration.clone()))?;
    let windows = session.source.evaluation(session.config, session.sizes())?;
    let questions = session.questions()?;
    let base = planner.stage("evaluate the original".into(), &session.base_identity(&windows, questions.as_ref()))?;
    for goal in session.goals() {
        if let Goal::Width(_) = goal {
            continue;
        }
        let allocation = planner.stage(goal.label(), &session.allocation_identity(points.clone(), None, goal))?;
        let encoded = planner.stage("encode".into(), &session.encoding_identity(calibration.clone(), allocation))?;
        planner.stage("evaluate".into(), &session.evaluation_identity(base.clone(), encoded))?;
    }
    Ok(planner.stages)
}
