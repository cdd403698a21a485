//! Claims of a sweep, checked on its results.

use std::path::Path;

use serde::Serialize;
use waterfill_config::{AllowedLoss, Claim, Figure};
use waterfill_evaluate::{Estimate, Sequences};
use waterfill_pipeline::PointOutput;

use crate::differences::{QUESTIONS, TEXT, accuracy_change, alike, sequences_of};
use crate::equal_kl::{compare, resident_at_kl};
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
            let ratios = reference.iter().zip(resident_at_kl(points, reference));
            let compared: Vec<(f64, &PointOutput)> = ratios.filter_map(|(p, ratio)| Some((ratio?, p))).collect();
            let worst = compared.iter().max_by(|a, b| a.0.total_cmp(&b.0));
            let (value, at) =
                worst.ok_or_else(|| format!("no KL of the other run is between files of {}", claim.run))?;
            let counted = format!("{} of its {} files", compared.len(), reference.len());
            Ok((*value, format!("the largest ratio for {counted}, at {}", words(at))))
        }
        Figure::Bytes | Figure::Resident => {
            let other_run = other()?;
            let alike = Alike { text: alike(run, other_run, TEXT), questions: alike(run, other_run, QUESTIONS) };
            let other = other_run.output.points.iter().max_by_key(|p| p.bytes).ok_or("the other run has no files")?;
            let size = |p: &PointOutput| match claim.figure {
                Figure::Bytes => p.bytes.map(|b| b as f64),
                _ => Some(p.resident_bits_per_weight),
            };
            let (own, point, lost) = best(&claim.allowed_loss, points, other, alike, size)?;
            let lost: String = lost.iter().map(|l| format!(", {}", l.text)).collect();
            let detail = format!("{} against {}{lost}", words(point), words(other));
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

/// The smallest of the files that are within every limit at once, its size and what it loses.
fn best<'a>(
    allowed: &AllowedLoss,
    points: &'a [PointOutput],
    other: &PointOutput,
    alike: Alike,
    size: impl Fn(&PointOutput) -> Option<f64>,
) -> std::result::Result<(f64, &'a PointOutput, Vec<Loss>), String> {
    let losses = points.iter().filter_map(|p| Some((size(p)?, p, losses(allowed, p, other, alike)?)));
    let within = losses.filter(|(_, _, lost)| lost.iter().all(|l| l.allowed));
    within.min_by(|a, b| a.0.total_cmp(&b.0)).ok_or_else(|| "no file loses as little with 95 % confidence".into())
}

/// What a file loses against another by one figure: found, half of its 95 % interval, and the end of a one-sided one, which
/// the limit is for.
struct Loss {
    text: String,
    allowed: bool,
}

impl Loss {
    /// Of `found`, with a limit or without; `shown` turns it into the figure that is printed.
    fn new(found: Estimate, most: Option<f64>, shown: impl Fn(f64) -> f64, print: impl Fn([f64; 3]) -> String) -> Self {
        let bound = found.mean + ONE_SIDED * found.se;
        let half = (shown(found.mean + Z * found.se) - shown(found.mean)).abs();
        let text = print([shown(found.mean), half, shown(bound)]);
        Self { text, allowed: most.is_none_or(|most| bound <= most + 1e-9) }
    }
}

/// Whether two files were evaluated on the same text, and asked the same questions.
#[derive(Clone, Copy)]
struct Alike {
    text: bool,
    questions: bool,
}

/// A figure of `own` less `factor` times that of `other`: with the error of the differences sequence by sequence where both
/// were evaluated on the same, else with both errors.
fn difference(
    own: &PointOutput,
    other: &PointOutput,
    factor: f64,
    same_text: bool,
    figure: impl Fn(&Sequences) -> &Vec<f64>,
) -> Option<Estimate> {
    let (own, other) = (sequences_of(own)?, sequences_of(other)?);
    let (own, other) = (figure(&own), figure(&other));
    if own.is_empty() || other.is_empty() {
        return None;
    }
    if same_text && own.len() == other.len() {
        return Some(Estimate::of(&own.iter().zip(other).map(|(a, b)| a - factor * b).collect::<Vec<_>>()));
    }
    let (own, other) = (Estimate::of(own), Estimate::of(other));
    Some(Estimate { mean: own.mean - factor * other.mean, se: own.se.hypot(factor * other.se) })
}

/// What a file loses against another by every figure that has a limit, and in accuracy where questions were asked; none where
/// a figure with a limit was not measured. A limit is for the end of the one-sided 95 % interval: of differences paired by
/// sequence or question where text or questions are the same. Else it is, of KL and perplexity, by both files' errors over
/// their sequences, and where no sequences are kept, of KL by both standard errors and of perplexity by its value alone.
fn losses(allowed: &AllowedLoss, point: &PointOutput, other: &PointOutput, alike: Alike) -> Option<Vec<Loss>> {
    let mut all = vec![];
    if let Some(most) = allowed.kl_ratio {
        let apart = || {
            let errors = point.kl_se.unwrap_or(0.0).hypot(most * other.kl_se.unwrap_or(0.0));
            Some(Estimate { mean: point.kl? - most * other.kl?, se: errors })
        };
        let found = difference(point, other, most, alike.text, |s| &s.kl).or_else(apart)?;
        let unit = other.kl?;
        let print = |[value, half, bound]: [f64; 3]| format!("KL {value:.3} ± {half:.3} times, 95 % bound {bound:.3}");
        all.push(Loss::new(found, Some(0.0), |v| most + v / unit, print));
    }
    if let Some(most) = allowed.perplexity_percent {
        let apart = || Some(Estimate { mean: (point.perplexity? / other.perplexity?).ln(), se: 0.0 });
        let found = difference(point, other, 1.0, alike.text, |s| &s.nll).or_else(apart)?;
        let print =
            |[value, half, bound]: [f64; 3]| format!("perplexity {value:+.3} ± {half:.3} %, 95 % bound {bound:+.3} %");
        all.push(Loss::new(found, Some((1.0 + most / 100.0).ln()), |v| 100.0 * v.exp_m1(), print));
    }
    let change = accuracy_change(other, point).filter(|_| alike.questions);
    match (change, allowed.accuracy_points) {
        (Some(change), most) => {
            let lost = Estimate { mean: -change.mean, ..change };
            let print = |[value, half, bound]: [f64; 3]| {
                format!("accuracy {value:+.2} ± {half:.2} points, 95 % bound {bound:+.2}")
            };
            all.push(Loss::new(lost, most.map(|most| most / 100.0), |v| -100.0 * v, print));
        }
        (None, Some(_)) => return None,
        (None, None) => {}
    }
    Some(all)
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
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use waterfill_evaluate::tasks::Task;
    use waterfill_evaluate::{ChoiceResult, QuestionResult, Share};
    use waterfill_pipeline::{BenchmarkOutput, write_json};

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

    fn benchmark() -> BenchmarkOutput {
        let right = Share { accuracy: 1.0, interval: (0.9, 1.0), questions: 100 };
        BenchmarkOutput {
            task: Task::Mmlu,
            result: ChoiceResult {
                all: right,
                other_way: None,
                subjects: BTreeMap::new(),
                groups: BTreeMap::new(),
                truncated: 0,
                skipped: 0,
            },
            change: Estimate { mean: 0.0, se: 0.0 },
            answers: PathBuf::new(),
        }
    }

    const APART: Alike = Alike { text: false, questions: false };
    const SAME: Alike = Alike { text: true, questions: true };

    fn allows(allowed: &AllowedLoss, own: &PointOutput, other: &PointOutput, alike: Alike) -> bool {
        losses(allowed, own, other, alike).is_some_and(|all| all.iter().all(|l| l.allowed))
    }

    #[test]
    fn files_lose_no_more_than_is_allowed() {
        let point = |kl: f64, perplexity: f64| PointOutput {
            kl: Some(kl),
            perplexity: Some(perplexity),
            ..PointOutput::default()
        };
        let allows =
            |allowed: AllowedLoss| super::tests::allows(&allowed, &point(0.02, 10.1), &point(0.01, 10.0), SAME);
        let none = AllowedLoss::default();
        assert!(allows(none));
        assert!(allows(AllowedLoss { kl_ratio: Some(2.0), perplexity_percent: Some(1.1), accuracy_points: None }));
        assert!(!allows(AllowedLoss { kl_ratio: Some(1.9), ..none }));
        assert!(!allows(AllowedLoss { perplexity_percent: Some(0.9), ..none }));
        assert!(!allows(AllowedLoss { accuracy_points: Some(100.0), ..none }), "no questions");
    }

    /// A file whose KL is below a limit by less than its error is not within it.
    #[test]
    fn limits_hold_with_confidence() {
        let point = |kl: f64, kl_se: f64| PointOutput { kl: Some(kl), kl_se: Some(kl_se), ..PointOutput::default() };
        let limit = AllowedLoss { kl_ratio: Some(1.0), ..AllowedLoss::default() };
        assert!(allows(&limit, &point(0.009, 0.0004), &point(0.01, 0.0004), APART));
        assert!(!allows(&limit, &point(0.0095, 0.0004), &point(0.01, 0.0004), APART));
    }

    /// A file with figures by sequence and 100 answers, of which those with these numbers are wrong.
    fn evaluated(dir: &Path, name: &str, nll: &[f64], kl: &[f64], wrong: &[usize]) -> PointOutput {
        let [sequences, answers] = ["sequences", "answers"].map(|what| dir.join(format!("{name}-{what}.json")));
        let figures = Sequences { nll: nll.to_vec(), kl: kl.to_vec(), top1: vec![1.0; kl.len()] };
        write_json(&sequences, &figures).unwrap();
        let answer = |n: usize| QuestionResult {
            subject: "s".into(),
            scores: vec![],
            answer: "0".into(),
            written: None,
            correct: !wrong.contains(&n),
            correct_other_way: None,
            truncated: false,
        };
        write_json(&answers, &(0..100).map(answer).collect::<Vec<_>>()).unwrap();
        let (nll, kl) = (Estimate::of(nll), Estimate::of(kl));
        PointOutput {
            nll: Some(nll.mean),
            perplexity: Some(nll.mean.exp()),
            kl: Some(kl.mean),
            kl_se: Some(kl.se),
            benchmarks: vec![BenchmarkOutput { answers, ..benchmark() }],
            sequences: Some(sequences),
            ..PointOutput::default()
        }
    }

    /// Sequences differ by much more than files do: what is paired is within limits that it is not within otherwise.
    #[test]
    fn differences_are_paired_where_files_were_evaluated_on_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (hard, moved) = ([1.0, 2.0, 3.0, 4.0], [1.01, 2.02, 3.01, 4.02]);
        let (own, other) = (
            evaluated(dir.path(), "own", &moved, &moved.map(|v| 0.9e-3 * v), &[1, 2]),
            evaluated(dir.path(), "other", &hard, &hard.map(|v| 1e-3 * v), &[1, 2]),
        );
        for limit in [
            AllowedLoss { kl_ratio: Some(1.0), ..AllowedLoss::default() },
            AllowedLoss { perplexity_percent: Some(2.1), ..AllowedLoss::default() },
            AllowedLoss { accuracy_points: Some(0.0), ..AllowedLoss::default() },
        ] {
            assert!(allows(&limit, &own, &other, SAME), "{limit:?}");
            assert!(!allows(&limit, &own, &other, APART), "{limit:?}");
        }
        // Perplexity is 1.5 % higher, and with confidence up to 2.0 %.
        let limit = |percent| AllowedLoss { perplexity_percent: Some(percent), ..AllowedLoss::default() };
        assert!(!allows(&limit(1.9), &own, &other, SAME));
    }

    /// One question of 100 is one point, and up to 2.6 with confidence.
    #[test]
    fn limits_of_accuracy_are_for_the_bound_and_it_is_printed() {
        let dir = tempfile::tempdir().unwrap();
        let own = evaluated(dir.path(), "own", &[1.0], &[0.1], &[7]);
        let other = evaluated(dir.path(), "other", &[1.0], &[0.1], &[]);
        let limit = |points| AllowedLoss { accuracy_points: Some(points), ..AllowedLoss::default() };
        assert!(!allows(&limit(1.0), &own, &other, SAME) && !allows(&limit(2.6), &own, &other, SAME));
        assert!(allows(&limit(2.7), &own, &other, SAME));
        let printed = losses(&limit(2.7), &own, &other, SAME).unwrap();
        assert_eq!(printed[0].text, "accuracy -1.00 ± 1.96 points, 95 % bound -2.64");
    }

    /// The small file meets one limit and the middle one the other; only the large one meets both.
    #[test]
    fn one_file_meets_all_limits() {
        let dir = tempfile::tempdir().unwrap();
        let other = evaluated(dir.path(), "other", &[1.0], &[0.1], &[]);
        let file = |name: &str, bytes: u64, kl: f64, wrong: &[usize]| PointOutput {
            bytes: Some(bytes),
            ..evaluated(dir.path(), name, &[1.0], &[kl], wrong)
        };
        let files = [file("small", 10, 0.2, &[]), file("middle", 20, 0.05, &[1, 2]), file("large", 30, 0.05, &[])];
        let size = |p: &PointOutput| p.bytes.map(|b| b as f64);
        let smallest =
            |allowed: AllowedLoss, files: &[PointOutput]| best(&allowed, files, &other, SAME, size).map(|b| b.0);
        let (kl_ratio, accuracy_points) = (Some(1.0), Some(1.0));
        let none = AllowedLoss::default();
        assert_eq!(smallest(AllowedLoss { accuracy_points, ..none }, &files), Ok(10.0));
        assert_eq!(smallest(AllowedLoss { kl_ratio, ..none }, &files), Ok(20.0));
        let both = AllowedLoss { kl_ratio, accuracy_points, ..none };
        assert_eq!(smallest(both, &files), Ok(30.0));
        assert!(smallest(both, &files[..2]).is_err());
    }
}
