//! What a sweep is to reach, checked by its results.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compare::compare;
use crate::error::Result;
use crate::run::PointOutput;
use crate::runs::{Record, accuracy_change, by_model, short};

/// Half width of a 95 % interval in standard errors.
const Z: f64 = 1.96;

/// A figure of a sweep's results and its limit; without one it is only told.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What is to be reached, in words.
    pub name: String,
    /// What is looked at.
    pub figure: TargetFigure,
    /// Label of the run; of the files of this run that `losing` allows, the best counts.
    pub run: String,
    /// Label of the run that it is compared with: its largest file, or its curve.
    #[serde(default)]
    pub against: Option<String>,
    /// Name of the pipeline, where a sweep is over several; all of them if absent.
    #[serde(default)]
    pub model: Option<String>,
    /// What files may lose against that.
    #[serde(default)]
    pub losing: Losing,
    /// Directory of a base and of what was made from it, of deltas.
    #[serde(default)]
    pub delta: Option<DeltaOf>,
    /// Limit from above.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Limit from below.
    #[serde(default)]
    pub at_least: Option<f64>,
}

/// Two checkpoints.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeltaOf {
    /// Directory of the base.
    pub base: String,
    /// Directory of what was made from it.
    pub tuned: String,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetFigure {
    /// Bytes of the smallest file over the other's.
    Bytes,
    /// Bits in memory of the smallest there over the other's.
    Resident,
    /// Bytes of the run's largest file over those of the other's curve at its KL.
    BytesAtKl,
    /// The same of the smallest file.
    BaseBytesAtKl,
    /// KL of the largest file.
    Kl,
    /// Nats per token of the original.
    OriginalNll,
    /// Prefixes of checkpoints in layers that are worse than a shorter one.
    WorsePrefixes,
    /// Seconds from the smallest file to the first token over those of flat INT8.
    Start,
    /// Bytes of a delta over those of the whole checkpoint.
    DeltaOfCheckpoint,
    /// Bytes of a delta over those of both checkpoints' XOR under zstd -19.
    DeltaOfXor,
}

/// What a file may lose against another; all of it counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Losing {
    /// Its KL over the other's.
    #[serde(default)]
    pub kl_ratio: Option<f64>,
    /// Percent of perplexity more.
    #[serde(default)]
    pub perplexity_percent: Option<f64>,
    /// Points of accuracy in the first benchmark, paired question by question.
    #[serde(default)]
    pub accuracy_points: Option<f64>,
}

/// What became of a target.
#[derive(Debug, Clone, Serialize)]
pub struct Reached {
    /// What was to be reached, with the model where there are several.
    pub name: String,
    /// What was found; none where nothing fits, or it could not be measured.
    pub value: Option<f64>,
    /// Limits.
    pub at_most: Option<f64>,
    /// The other one.
    pub at_least: Option<f64>,
    /// Whether there is a value within them.
    pub met: bool,
    /// Which files these are and what they lose, or why there is no value.
    pub detail: String,
}

/// What a program measures for targets, beyond what a sweep leaves.
pub trait Measure {
    /// Median seconds from a checkpoint to the first token, and from the same weights in flat INT8.
    ///
    /// # Errors
    /// In words.
    fn start(&self, checkpoint: &Path) -> std::result::Result<[f64; 2], String>;
    /// Bytes of what `tuned` has changed from `base`, of XOR under zstd -19, and of `tuned` itself.
    ///
    /// # Errors
    /// In words.
    fn delta(&self, base: &Path, tuned: &Path) -> std::result::Result<[u64; 3], String>;
}

impl Reached {
    /// Met, not met, or measured where there is no limit.
    pub fn outcome(&self) -> &'static str {
        match (self.met, self.at_most.or(self.at_least)) {
            (true, Some(_)) => "met",
            (true, None) => "measured",
            (false, _) => "not met",
        }
    }

    /// Limits in words.
    pub fn limits(&self) -> String {
        let limits = [self.at_least.map(|v| format!("at least {v}")), self.at_most.map(|v| format!("at most {v}"))];
        limits.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Target {
    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self, labels: &[String]) -> Option<String> {
        let needs_other = matches!(
            self.figure,
            TargetFigure::Bytes | TargetFigure::Resident | TargetFigure::BytesAtKl | TargetFigure::BaseBytesAtKl
        );
        let known = |label: &String| labels.iter().any(|l| l == label || l.ends_with(&format!(": {label}")));
        if needs_other && self.against.is_none() {
            return Some(format!("target {:?} compares: give against", self.name));
        }
        let delta = matches!(self.figure, TargetFigure::DeltaOfCheckpoint | TargetFigure::DeltaOfXor);
        if delta != self.delta.is_some() {
            let reason = if delta { "needs delta: {base, tuned}" } else { "has delta, which its figure does not take" };
            return Some(format!("target {:?} {reason}", self.name));
        }
        let unknown = std::iter::once(&self.run).chain(&self.against).find(|label| !known(label));
        unknown.map(|label| format!("target {:?} names the run {label:?}; there are {}", self.name, labels.join(", ")))
    }

    fn reached(&self, name: String, found: std::result::Result<(f64, String), String>) -> Reached {
        let (value, detail) = match found {
            Ok((value, detail)) => (Some(value), detail),
            Err(reason) => (None, reason),
        };
        let within = |v: f64| self.at_most.is_none_or(|most| v <= most) && self.at_least.is_none_or(|least| v >= least);
        Reached { name, value, at_most: self.at_most, at_least: self.at_least, met: value.is_some_and(within), detail }
    }

    fn check(&self, runs: &[&Record], measure: &dyn Measure) -> std::result::Result<(f64, String), String> {
        let find = |label: &str| {
            let found = runs.iter().find(|r| short(r) == label);
            found.copied().ok_or_else(|| format!("{label} did not run"))
        };
        let run = find(&self.run)?;
        let points = &run.output.points;
        let no_points = || format!("{} has no files", self.run);
        let by_bytes = |p: &&PointOutput| p.bytes.unwrap_or(u64::MAX);
        let largest = points.iter().max_by_key(|p| p.bytes).ok_or_else(no_points)?;
        let smallest = points.iter().min_by_key(by_bytes).ok_or_else(no_points)?;
        let other = || find(self.against.as_deref().unwrap_or_default());
        match self.figure {
            TargetFigure::OriginalNll => {
                let base = run.output.base.as_ref().ok_or("the original was not evaluated")?;
                Ok((base.nll, format!("perplexity {:.4}", base.perplexity)))
            }
            TargetFigure::Kl => {
                let kl = largest.kl.ok_or("no KL was measured")?;
                Ok((kl, format!("{}, ± {:.1e}", words(largest), Z * largest.kl_se.unwrap_or(0.0))))
            }
            TargetFigure::WorsePrefixes => {
                let mut prefixes: Vec<(u64, f64)> =
                    points.iter().filter(|p| p.layers.is_some()).filter_map(|p| Some((p.bytes?, p.kl?))).collect();
                prefixes.sort_by_key(|p| p.0);
                if prefixes.len() < 2 {
                    return Err(format!("{} has no layers", self.run));
                }
                let worse = prefixes.windows(2).filter(|w| w[1].1 > w[0].1).count();
                let ends = (prefixes[0], prefixes[prefixes.len() - 1]);
                let detail = format!(
                    "{} prefixes, KL {:.2e} at {} to {:.2e} at {} bytes",
                    prefixes.len(),
                    ends.0.1,
                    ends.0.0,
                    ends.1.1,
                    ends.1.0
                );
                Ok((worse as f64, detail))
            }
            TargetFigure::BytesAtKl | TargetFigure::BaseBytesAtKl => {
                let point = if self.figure == TargetFigure::BytesAtKl { largest } else { smallest };
                let ratio = compare(std::slice::from_ref(point), &other()?.output.points).first().and_then(|c| c.at_kl);
                let beyond = || format!("KL {:.2e} is not between points of the other run", point.kl.unwrap_or(0.0));
                Ok((ratio.ok_or_else(beyond)?, words(point)))
            }
            TargetFigure::Bytes | TargetFigure::Resident => {
                let other =
                    other()?.output.points.iter().max_by_key(|p| p.bytes).ok_or("the other run has no files")?;
                let size = |p: &PointOutput| match self.figure {
                    TargetFigure::Bytes => p.bytes.map(|b| b as f64),
                    _ => Some(p.resident_bits_per_weight),
                };
                let allowed = points.iter().filter(|p| self.losing.allows(p, other));
                let best = allowed.filter_map(|p| Some((size(p)?, p))).min_by(|a, b| a.0.total_cmp(&b.0));
                let (own, point) = best.ok_or("no file loses as little")?;
                let change = accuracy_change(other, point);
                let accuracy = change.map_or(String::new(), |c| {
                    format!(", accuracy {:+.2} ± {:.2} points", 100.0 * c.mean, 100.0 * Z * c.se)
                });
                let detail = format!("{} against {}{accuracy}", words(point), words(other));
                Ok((own / size(other).ok_or("the other has no size")?, detail))
            }
            TargetFigure::Start => {
                let checkpoint = smallest.checkpoint.as_ref().ok_or("no checkpoint")?;
                let [own, flat] = measure.start(checkpoint)?;
                let detail = format!("{}: {:.0} ms, flat INT8 {:.0} ms", words(smallest), 1e3 * own, 1e3 * flat);
                Ok((own / flat, detail))
            }
            TargetFigure::DeltaOfCheckpoint | TargetFigure::DeltaOfXor => {
                let of = self.delta.as_ref().ok_or("no checkpoints are named")?;
                let [delta, xor, whole] = measure.delta(Path::new(&of.base), Path::new(&of.tuned))?;
                let against = if self.figure == TargetFigure::DeltaOfXor { xor } else { whole };
                let detail = format!("{delta} bytes, XOR under zstd -19 {xor}, checkpoint {whole}");
                Ok((delta as f64 / against as f64, detail))
            }
        }
    }
}

impl Losing {
    fn allows(&self, point: &PointOutput, other: &PointOutput) -> bool {
        let ratio = |own: Option<f64>, other: Option<f64>| own.zip(other).map(|(a, b)| a / b);
        let kl = self.kl_ratio.is_none_or(|most| ratio(point.kl, other.kl).is_some_and(|r| r <= most));
        let perplexity = self
            .perplexity_percent
            .is_none_or(|most| ratio(point.perplexity, other.perplexity).is_some_and(|r| 100.0 * (r - 1.0) <= most));
        let accuracy = self
            .accuracy_points
            .is_none_or(|most| accuracy_change(other, point).is_some_and(|change| -100.0 * change.mean <= most + 1e-9));
        kl && perplexity && accuracy
    }
}

fn words(p: &PointOutput) -> String {
    let kl = p.kl.map_or(String::new(), |kl| format!(", KL {kl:.2e}"));
    let perplexity = p.perplexity.map_or(String::new(), |v| format!(", perplexity {v:.3}"));
    format!("{:.2} bits, {:.2} in memory{kl}{perplexity}", p.bits_per_weight.unwrap_or(0.0), p.resident_bits_per_weight)
}

/// Checks targets on the records of a sweep's runs, each for every model that it is for.
///
/// # Errors
/// None of its own; what cannot be measured is told by its target.
pub(crate) fn check(targets: &[Target], records: &[Record], measure: &dyn Measure) -> Result<Vec<Reached>> {
    let models = by_model(records);
    let mut found = Vec::new();
    for target in targets {
        let wanted = models.iter().filter(|(model, _)| target.model.as_ref().is_none_or(|m| m == *model));
        let before = found.len();
        for (model, runs) in wanted {
            let name = if models.len() > 1 { format!("{}, {model}", target.name) } else { target.name.clone() };
            found.push(target.reached(name, target.check(runs, measure)));
        }
        if found.len() == before {
            found.push(target.reached(target.name.clone(), Err("no run of this model ended well".into())));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(figure: TargetFigure) -> Target {
        Target {
            name: "t".into(),
            figure,
            run: "a".into(),
            against: None,
            model: None,
            losing: Losing::default(),
            delta: None,
            at_most: Some(0.7),
            at_least: None,
        }
    }

    #[test]
    fn targets_without_what_they_need_are_named() {
        let labels = ["a".to_string(), "m: b".to_string()];
        assert!(target(TargetFigure::Bytes).problem(&labels).unwrap().contains("give against"));
        let compares = Target { against: Some("b".into()), ..target(TargetFigure::Bytes) };
        assert_eq!(compares.problem(&labels), None);
        assert!(
            Target { against: Some("c".into()), ..compares }.problem(&labels).unwrap().contains("\"c\"; there are a")
        );
        assert!(target(TargetFigure::DeltaOfXor).problem(&labels).unwrap().contains("needs delta"));
    }

    #[test]
    fn limits_are_inclusive_and_what_is_missing_is_not_met() {
        let target = Target { at_least: Some(0.5), ..target(TargetFigure::Kl) };
        let met = |v: f64| target.reached("t".into(), Ok((v, String::new()))).met;
        assert!(met(0.7) && met(0.5) && !met(0.71) && !met(0.49));
        let told = Target { at_most: None, ..super::tests::target(TargetFigure::Kl) }
            .reached("t".into(), Ok((9.0, String::new())));
        assert_eq!((told.outcome(), told.limits().as_str()), ("measured", ""));
        let missing = target.reached("t".into(), Err("nothing".into()));
        assert!(!missing.met && missing.value.is_none() && missing.detail == "nothing");
    }

    #[test]
    fn files_may_lose_no_more_than_is_said() {
        let point = |kl: f64, perplexity: f64| PointOutput {
            kl: Some(kl),
            perplexity: Some(perplexity),
            ..PointOutput::default()
        };
        let (own, other) = (point(0.02, 10.1), point(0.01, 10.0));
        assert!(Losing::default().allows(&own, &other));
        assert!(
            Losing { kl_ratio: Some(2.0), perplexity_percent: Some(1.1), accuracy_points: None }.allows(&own, &other)
        );
        assert!(!Losing { kl_ratio: Some(1.9), ..Losing::default() }.allows(&own, &other));
        assert!(!Losing { perplexity_percent: Some(0.9), ..Losing::default() }.allows(&own, &other));
        assert!(!Losing { accuracy_points: Some(100.0), ..Losing::default() }.allows(&own, &other), "no questions");
    }
}
