//! Claims of a sweep, checked on its results.

use std::path::Path;

use serde::Serialize;
use waterfill_config::{AllowedLoss, Claim, Figure};
use waterfill_evaluate::{Estimate, Sequences};
use waterfill_pipeline::PointOutput;

use crate::differences::{accuracy_change, sequences_of};
use crate::equal_kl::compare;
use crate::record::{Record, by_model, short};

/// Half width of a 95 % interval in standard errors, and the end of a one-sided one.
const Z: f64 = 1.96;
const ONE_SIDED: f64 = 1.645;

/// The outcome of a claim.
#[derive(Debug, Clone, Serialize)]
pub struct Reached {
    /// The claim in words, with the model where there are several.
    pub name: String,
    /// The figure; none where no file fits, or where it could not be measured.
    pub value: Option<f64>,
    /// Upper limit.
    pub at_most: Option<f64>,
    /// Lower limit.
    pub at_least: Option<f64>,
    /// Whether there is a value within them.
    pub met: bool,
    /// The files and their loss, or the reason why there is no value.
    pub detail: String,
}

/// Measurements for claims that need more than a sweep's results.
pub trait Measure {
    /// Median seconds from a checkpoint to the first token, and from the same weights in flat INT8.
    ///
    /// # Errors
    /// In words.
    fn load_time(&self, checkpoint: &Path) -> std::result::Result<[f64; 2], String>;
    /// Bytes of the delta from `base` to `fine_tune`, of their XOR under zstd -19, and of `fine_tune` itself.
    ///
    /// # Errors
    /// In words.
    fn delta(&self, base: &Path, fine_tune: &Path) -> std::result::Result<[u64; 3], String>;
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

/// The outcome of a claim with the figure that was found.
fn reached(claim: &Claim, name: String, found: std::result::Result<(f64, String), String>) -> Reached {
    let (value, detail) = match found {
        Ok((value, detail)) => (Some(value), detail),
        Err(reason) => (None, reason),
    };
    let within = |v: f64| claim.at_most.is_none_or(|most| v <= most) && claim.at_least.is_none_or(|least| v >= least);
    Reached { name, value, at_most: claim.at_most, at_least: claim.at_least, met: value.is_some_and(within), detail }
}

/// The figure of a claim, and the files it is from.
fn measured(claim: &Claim, runs: &[&Record], measure: &dyn Measure) -> std::result::Result<(f64, String), String> {
    let find = |label: &str| {
        let found = runs.iter().find(|r| short(r) == label);
        found.copied().ok_or_else(|| format!("{label} did not run"))
    };
    let run = find(&claim.run)?;
    let points = &run.output.points;
    let no_points = || format!("{} has no files", claim.run);
    let by_bytes = |p: &&PointOutput| p.bytes.unwrap_or(u64::MAX);
    let largest = points.iter().max_by_key(|p| p.bytes).ok_or_else(no_points)?;
    let smallest = points.iter().min_by_key(by_bytes).ok_or_else(no_points)?;
    let other = || find(claim.compared_with.as_deref().unwrap_or_default());
    match claim.figure {
        Figure::OriginalNll => {
            let base = run.output.base.as_ref().ok_or("the original was not evaluated")?;
            Ok((base.nll, format!("perplexity {:.4}", base.perplexity)))
        }
        Figure::Kl => {
            let kl = largest.kl.ok_or("no KL was measured")?;
            Ok((kl, format!("{}, ± {:.1e}", words(largest), Z * largest.kl_se.unwrap_or(0.0))))
        }
        Figure::WorsePrefixes => {
            let mut prefixes: Vec<(u64, f64)> =
                points.iter().filter(|p| p.quality_layers.is_some()).filter_map(|p| Some((p.bytes?, p.kl?))).collect();
            prefixes.sort_by_key(|p| p.0);
            if prefixes.len() < 2 {
                return Err(format!("{} has no layers", claim.run));
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
        Figure::BytesAtKl | Figure::BaseBytesAtKl => {
            let point = if claim.figure == Figure::BytesAtKl { largest } else { smallest };
            let ratio = compare(std::slice::from_ref(point), &other()?.output.points).first().and_then(|c| c.at_kl);
            let beyond = || format!("KL {:.2e} is not between points of the other run", point.kl.unwrap_or(0.0));
            Ok((ratio.ok_or_else(beyond)?, words(point)))
        }
        Figure::ResidentAtKl => {
            let reference = &other()?.output.points;
            let ratios =
                reference.iter().filter_map(|p| Some((resident_at(points, p.kl?)? / p.resident_bits_per_weight, p)));
            let worst = ratios.max_by(|a, b| a.0.total_cmp(&b.0));
            let (value, at) =
                worst.ok_or_else(|| format!("no KL of the other run is between files of {}", claim.run))?;
            Ok((value, format!("the largest ratio, at {}", words(at))))
        }
        Figure::Bytes | Figure::Resident => {
            let other = other()?.output.points.iter().max_by_key(|p| p.bytes).ok_or("the other run has no files")?;
            let size = |p: &PointOutput| match claim.figure {
                Figure::Bytes => p.bytes.map(|b| b as f64),
                _ => Some(p.resident_bits_per_weight),
            };
            let allowed = points.iter().filter(|p| allows(&claim.allowed_loss, p, other));
            let best = allowed.filter_map(|p| Some((size(p)?, p))).min_by(|a, b| a.0.total_cmp(&b.0));
            let (own, point) = best.ok_or("no file loses as little")?;
            let change = accuracy_change(other, point);
            let accuracy = change.map_or(String::new(), |c| {
                format!(", accuracy {:+.2} ± {:.2} points", 100.0 * c.mean, 100.0 * Z * c.se)
            });
            let detail = format!("{} against {}{accuracy}", words(point), words(other));
            Ok((own / size(other).ok_or("the other has no size")?, detail))
        }
        Figure::LoadTime => {
            let checkpoint = smallest.checkpoint.as_ref().ok_or("no checkpoint")?;
            let [own, flat] = measure.load_time(checkpoint)?;
            let detail = format!("{}: {:.0} ms, flat INT8 {:.0} ms", words(smallest), 1e3 * own, 1e3 * flat);
            Ok((own / flat, detail))
        }
        Figure::DeltaOfCheckpoint | Figure::DeltaOfXor => {
            let of = claim.delta.as_ref().ok_or("no checkpoints are named")?;
            let [delta, xor, whole] = measure.delta(Path::new(&of.base), Path::new(&of.fine_tune))?;
            let against = if claim.figure == Figure::DeltaOfXor { xor } else { whole };
            let detail = format!("{delta} bytes, XOR under zstd -19 {xor}, checkpoint {whole}");
            Ok((delta as f64 / against as f64, detail))
        }
    }
}

/// Whether the mean of differences is at most `most` with 95 % confidence, by their spread over sequences or questions.
fn within(differences: Estimate, most: f64) -> bool {
    differences.mean + ONE_SIDED * differences.se <= most + 1e-9
}

/// Differences of two files that were evaluated on the same sequences, sequence by sequence: `own` less `factor` times `other`.
fn paired(
    own: &PointOutput,
    other: &PointOutput,
    factor: f64,
    figure: impl Fn(&Sequences) -> &Vec<f64>,
) -> Option<Estimate> {
    let (own, other) = (sequences_of(own)?, sequences_of(other)?);
    let (own, other) = (figure(&own), figure(&other));
    let differences: Vec<f64> = own.iter().zip(other).map(|(a, b)| a - factor * b).collect();
    (own.len() == other.len() && !own.is_empty()).then(|| Estimate::of(&differences))
}

/// Whether a file loses no more against another than is allowed, with 95 % confidence for each limit: by paired differences where
/// both were evaluated on the same sequences, else, of KL, by both standard errors, and of perplexity by its value alone.
fn allows(allowed: &AllowedLoss, point: &PointOutput, other: &PointOutput) -> bool {
    let kl = allowed.kl_ratio.is_none_or(|most| {
        let apart = || {
            let (own, other_kl) = (point.kl?, other.kl?);
            let errors = point.kl_se.unwrap_or(0.0).hypot(most * other.kl_se.unwrap_or(0.0));
            Some(Estimate { mean: own - most * other_kl, se: errors })
        };
        paired(point, other, most, |s| &s.kl).or_else(apart).is_some_and(|differences| within(differences, 0.0))
    });
    let perplexity = allowed.perplexity_percent.is_none_or(|most| {
        let apart = || Some(Estimate { mean: (point.perplexity? / other.perplexity?).ln(), se: 0.0 });
        let differences = paired(point, other, 1.0, |s| &s.nll).or_else(apart);
        differences.is_some_and(|differences| within(differences, (1.0 + most / 100.0).ln()))
    });
    let accuracy = allowed.accuracy_points.is_none_or(|most| {
        let lost = accuracy_change(other, point).map(|change| Estimate { mean: -change.mean, ..change });
        lost.is_some_and(|lost| within(lost, most / 100.0))
    });
    kl && perplexity && accuracy
}

/// Bits in memory at which the curve through `points` has a KL, by interpolation of its logarithm.
fn resident_at(points: &[PointOutput], kl: f64) -> Option<f64> {
    let mut curve: Vec<(f64, f64)> =
        points.iter().filter_map(|p| Some((p.kl.filter(|kl| *kl > 0.0)?.ln(), p.resident_bits_per_weight))).collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = kl.ln();
    let pair = curve.windows(2).find(|w| (w[0].0..=w[1].0).contains(&at))?;
    let share = (at - pair[0].0) / (pair[1].0 - pair[0].0).max(f64::MIN_POSITIVE);
    Some(pair[0].1 + share * (pair[1].1 - pair[0].1))
}

fn words(p: &PointOutput) -> String {
    let kl = p.kl.map_or(String::new(), |kl| format!(", KL {kl:.2e}"));
    let perplexity = p.perplexity.map_or(String::new(), |v| format!(", perplexity {v:.3}"));
    format!("{:.2} bits, {:.2} in memory{kl}{perplexity}", p.bits_per_weight.unwrap_or(0.0), p.resident_bits_per_weight)
}

/// Checks claims on the records of a sweep's runs, each for every model that it names; one that cannot be measured says
/// why.
pub(crate) fn check(claims: &[Claim], records: &[Record], measure: &dyn Measure) -> Vec<Reached> {
    let models = by_model(records);
    let mut found = Vec::new();
    for claim in claims {
        let wanted = models.iter().filter(|(model, _)| claim.model.as_ref().is_none_or(|m| m == *model));
        let before = found.len();
        for (model, runs) in wanted {
            let name = if models.len() > 1 { format!("{}, {model}", claim.name) } else { claim.name.clone() };
            found.push(reached(claim, name, measured(claim, runs, measure)));
        }
        if found.len() == before {
            found.push(reached(claim, claim.name.clone(), Err("no run of this model ended well".into())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(figure: Figure) -> Claim {
        Claim {
            name: "t".into(),
            figure,
            run: "a".into(),
            compared_with: None,
            model: None,
            allowed_loss: AllowedLoss::default(),
            delta: None,
            at_most: Some(0.7),
            at_least: None,
        }
    }

    #[test]
    fn limits_are_inclusive_and_missing_figures_are_not_met() {
        let limited = Claim { at_least: Some(0.5), ..claim(Figure::Kl) };
        let met = |v: f64| reached(&limited, "t".into(), Ok((v, String::new()))).met;
        assert!(met(0.7) && met(0.5) && !met(0.71) && !met(0.49));
        let unlimited = Claim { at_most: None, ..claim(Figure::Kl) };
        let printed = reached(&unlimited, "t".into(), Ok((9.0, String::new())));
        assert_eq!((printed.outcome(), printed.limits().as_str()), ("measured", ""));
        let missing = reached(&limited, "t".into(), Err("nothing".into()));
        assert!(!missing.met && missing.value.is_none() && missing.detail == "nothing");
    }

    #[test]
    fn files_lose_no_more_than_is_allowed() {
        let point = |kl: f64, perplexity: f64| PointOutput {
            kl: Some(kl),
            perplexity: Some(perplexity),
            ..PointOutput::default()
        };
        let (own, other) = (point(0.02, 10.1), point(0.01, 10.0));
        assert!(allows(&AllowedLoss::default(), &own, &other));
        assert!(allows(
            &AllowedLoss { kl_ratio: Some(2.0), perplexity_percent: Some(1.1), accuracy_points: None },
            &own,
            &other
        ));
        assert!(!allows(&AllowedLoss { kl_ratio: Some(1.9), ..AllowedLoss::default() }, &own, &other));
        assert!(!allows(&AllowedLoss { perplexity_percent: Some(0.9), ..AllowedLoss::default() }, &own, &other));
        assert!(
            !allows(&AllowedLoss { accuracy_points: Some(100.0), ..AllowedLoss::default() }, &own, &other),
            "no questions"
        );
    }

    /// A file whose KL is below a limit by less than its error is not within it.
    #[test]
    fn limits_hold_with_confidence() {
        let point = |kl: f64, kl_se: f64| PointOutput { kl: Some(kl), kl_se: Some(kl_se), ..PointOutput::default() };
        let limit = AllowedLoss { kl_ratio: Some(1.0), ..AllowedLoss::default() };
        assert!(allows(&limit, &point(0.009, 0.0004), &point(0.01, 0.0004)));
        assert!(!allows(&limit, &point(0.0095, 0.0004), &point(0.01, 0.0004)));
        assert!(within(Estimate { mean: 0.1, se: 0.05 }, 0.19) && !within(Estimate { mean: 0.1, se: 0.06 }, 0.19));
    }

    #[test]
    fn memory_is_compared_where_kl_is_equal() {
        let point =
            |bits: f64, kl: f64| PointOutput { kl: Some(kl), resident_bits_per_weight: bits, ..PointOutput::default() };
        let curve = [point(3.0, 0.1), point(4.0, 0.01), point(6.0, 1e-4)];
        assert!((resident_at(&curve, 0.1 * 10f64.powf(-0.25)).unwrap() - 3.25).abs() < 1e-9);
        assert!((resident_at(&curve, 1e-3).unwrap() - 5.0).abs() < 1e-9);
        assert_eq!(resident_at(&curve, 0.2), None);
    }
}
