//! What a run would do, without doing it.

use std::collections::BTreeMap;

use serde::Serialize;
use waterfill_checkpoint::QualityPrefix;
use waterfill_model::Windows;
use waterfill_quantize::EncodeSummary;
use waterfill_store::{Artifact, Identity};

use crate::closed_loop::Allocated;
use crate::config::{Probes, Sequential};
use crate::error::Result;
use crate::estimate::Times;
use crate::evaluation::prefix_digest;
use crate::evaluation::{Asked, Part};
use crate::probe::{ALONE, TOGETHER};
use crate::results::read_json;
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

/// Digests of a calibration and of one on held-out text.
type Digests = (String, Option<String>);

/// Digests of the original's evaluation that comparisons depend on.
struct Base {
    text: String,
    positions: Option<String>,
}

struct Planner<'a, 'b> {
    session: &'a Session<'b>,
    times: Times,
    stages: Vec<PlannedStage>,
    /// Artifacts that are there, by their digests.
    found: BTreeMap<String, Artifact>,
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
        let Some(artifact) = found else { return Ok(format!("pending:{key}")) };
        let digest = artifact.digest();
        self.found.insert(digest.clone(), artifact);
        Ok(digest)
    }

    /// Adds allocation and coding; the digest of the latter.
    fn encoded(
        &mut self,
        calibration: &Digests,
        points: &str,
        probed: Option<String>,
        goal: Goal,
        (sequential, layered): (Option<Sequential>, bool),
    ) -> Result<String> {
        let mut goals = vec![goal];
        if let (true, Some(layers)) = (layered, &self.session.config.encode.layers) {
            // Where a size is wanted, lambdas are not known before.
            let lambdas = layers.lambdas(if let Goal::Lambda(lambda) = goal { lambda } else { 1.0 });
            goals.splice(..0, lambdas[..lambdas.len() - 1].iter().map(|&lambda| Goal::Lambda(lambda)));
        }
        let mut allocations = Vec::new();
        for goal in goals {
            let identity = self.session.allocation_identity(points.into(), probed.clone(), goal);
            allocations.push(self.stage(goal.label(), &identity)?);
        }
        self.stage("encode".into(), &self.session.encoding_identity(calibration.clone(), &allocations, sequential))
    }

    /// Adds an evaluation of the original or of a checkpoint beside it; digests that others depend on.
    fn evaluated(&mut self, checkpoint: Option<String>, base: Option<&Base>, asked: &Asked) -> Result<Base> {
        let (session, original) = (self.session, checkpoint.is_none());
        let e = &session.config.evaluate;
        let identity = session.text_identity(checkpoint.clone(), base.map(|b| b.text.clone()), &asked.windows);
        let text = self.stage(Part::Text.label(original), &identity)?;
        let mut positions = None;
        if let (Some(windows), Some(long)) = (&asked.long, &e.long_context) {
            let base = base.and_then(|b| b.positions.clone());
            let identity = session.position_identity(checkpoint.clone(), base, windows, long.bands);
            positions = Some(self.stage(Part::Positions.label(original), &identity)?);
        }
        for (m, items) in e.choices().zip(&asked.questions) {
            let identity = session.answers_identity(checkpoint.clone(), m, items)?;
            self.stage(Part::Answers(m.task).label(original), &identity)?;
        }
        Ok(Base { text, positions })
    }

    /// Adds what groups lose alone; their digests.
    fn parts(&mut self, groups: Probes, base: &str, encoded: &str) -> Result<Vec<String>> {
        let session = self.session;
        let groups = session.probed_groups(groups).into_iter();
        groups
            .map(|(group, names)| {
                let identity = session.part_identity(base.into(), encoded.into(), &names);
                self.stage(format!("probe {group}"), &identity)
            })
            .collect()
    }

    /// Adds a second and a uniform allocation of a tuned checkpoint's size, with its goal where the size is not known yet,
    /// each coded once; all three, coded.
    fn closed_loop(
        &mut self,
        (held_out, calibration): (&Windows, &Digests),
        points: &str,
        (goal, first): (Goal, String),
    ) -> Result<[String; 3]> {
        let session = self.session;
        let (a, sequential) = (&session.config.allocate, session.config.encode.sequential);
        let base =
            self.stage("evaluate the original on held-out text".into(), &session.part_base_identity(held_out))?;
        let parts = self.parts(a.closed_loop, &base, &first)?;
        let measured = self.stage("weigh groups by what they lose".into(), &session.measured_identity(parts))?;
        let sizes = self.found.get(&first).map(|a| read_json::<EncodeSummary>(&a.path("summary.json"))).transpose()?;
        let bytes = sizes.map_or(0, |s| s.bytes);
        let goal = if bytes > 0 { Goal::Bytes(bytes) } else { goal };
        let even = self.stage("spread bits evenly".into(), &session.even_identity(points.into(), bytes))?;
        let all = session.probed_groups(a.closed_loop).into_values().flatten().collect();
        let mut coded = vec![first];
        for corrections in [measured, even] {
            coded.push(self.encoded(calibration, points, Some(corrections), goal, (sequential, false))?);
        }
        for (allocated, encoded) in [Allocated::First, Allocated::Second, Allocated::Uniform].iter().zip(&coded) {
            self.stage(
                format!("probe {}", allocated.name()),
                &session.part_identity(base.clone(), encoded.clone(), &all),
            )?;
        }
        Ok(coded.try_into().expect("three"))
    }

    /// Adds probes; their digest.
    fn probes(&mut self, held_out: &Windows, calibration: &Digests, points: &str) -> Result<String> {
        let session = self.session;
        let base =
            self.stage("evaluate the original on held-out text".into(), &session.part_base_identity(held_out))?;
        let lambdas = session.probed_lambdas();
        let encoded = self.encoded(calibration, points, None, Goal::Lambda(lambdas[ALONE]), (None, false))?;
        let parts = self.parts(session.config.allocate.probes, &base, &encoded)?;
        let alone = self.stage("probe-alone".into(), &session.probe_identity("probe-alone", parts))?;
        let all = session.probed_groups(session.config.allocate.probes).into_values().flatten().collect();
        let mut whole = Vec::new();
        for lambda in lambdas {
            let sequential = session.config.encode.sequential;
            let encoded =
                self.encoded(calibration, points, Some(alone.clone()), Goal::Lambda(lambda), (sequential, false))?;
            let identity = session.part_identity(base.clone(), encoded, &all);
            whole.push(self.stage(format!("probe {TOGETHER}"), &identity)?);
        }
        self.stage("probe".into(), &session.probe_identity("probe", whole))
    }
}

/// Stages of a run in order; the report, which takes no time, is left out.
///
/// # Errors
/// Data that cannot be read, and damaged artifacts.
pub(crate) fn plan(session: &Session) -> Result<Vec<PlannedStage>> {
    let mut planner = Planner { session, times: Times::read(session), stages: Vec::new(), found: BTreeMap::new() };
    let (windows, held_out) = session.source.calibration(session.config, &session.model.config, session.console)?;
    let shards = session.config.calibrate.shards;
    let fitted = planner.stage("calibrate".into(), &session.calibration_identity(&windows, shards))?;
    let apart = session.predicts_held_out().then(|| session.calibration_identity(&held_out, 1));
    let apart = apart.map(|identity| planner.stage("calibrate on held-out text".into(), &identity)).transpose()?;
    let calibration = (fitted.clone(), apart);
    let mut points = String::new();
    let mut probed = None;
    if session.config.baseline.is_none() {
        points = planner.stage("points".into(), &session.points_identity(fitted.clone()))?;
        if session.config.allocate.probes != Probes::None {
            probed = Some(planner.probes(&held_out, &calibration, &points)?);
        }
    }
    let asked = session.asked()?;
    let base = planner.evaluated(None, None, &asked)?;
    for goal in session.goals() {
        let encoded = match goal {
            Goal::Width(bits) => planner.stage(goal.label(), &session.baseline_identity(fitted.clone(), bits))?,
            _ => {
                let sequential = session.config.encode.sequential;
                planner.encoded(&calibration, &points, probed.clone(), goal, (sequential, true))?
            }
        };
        if let (false, Goal::Lambda(_) | Goal::Bytes(_)) = (session.config.allocate.closed_loop == Probes::None, goal) {
            let inputs = (&held_out, &calibration);
            let [first, others @ ..] = planner.closed_loop(inputs, &points, (goal, encoded))?;
            planner.evaluated(Some(first), Some(&base), &asked)?;
            for encoded in others {
                let identity = session.text_identity(Some(encoded), Some(base.text.clone()), &asked.windows);
                planner.stage(Part::Text.label(false), &identity)?;
            }
            continue;
        }
        for layers in 1..=session.config.encode.layers.as_ref().map_or(0, |l| l.bits.len()) {
            planner.evaluated(Some(prefix_digest(&encoded, QualityPrefix::Layers(layers))), Some(&base), &asked)?;
        }
        planner.evaluated(Some(encoded), Some(&base), &asked)?;
    }
    Ok(planner.stages)
}
