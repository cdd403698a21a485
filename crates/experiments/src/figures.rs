//! The figures of a sweep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use waterfill_report::{Bar, Bars, Curve, CurvePoint, Curves, Line, Predictions, Quality, Scatter, StageCost, Stages};
use waterfill_store::Artifact;

use crate::agreement::Agreement;
use crate::curves::{Size, Value, attempts_of, curves_of, kl};
use crate::equal_kl::compare;
use crate::error::Result;
use crate::peers::Peers;
use crate::record::{Record, by_model, label, short};

/// Most models whose curves are drawn in one figure.
const MODELS: usize = 4;

const MODELS_NAME: &str = "models";

/// A figure of a sweep.
pub(crate) struct SweepFigure {
    /// Name of its files.
    pub name: String,
    /// Above it on a page.
    pub title: String,
    drawing: Drawing,
}

enum Drawing {
    Bars(Bars),
    Curves(Curves),
    Scatter(Scatter),
    Stages(Stages),
}

impl SweepFigure {
    /// Writes `NAME.svg` and `NAME.png` into a directory; the path of the latter.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        Ok(match &self.drawing {
            Drawing::Bars(bars) => bars.write(dir, &self.name)?,
            Drawing::Curves(curves) => curves.write(dir, &self.name)?,
            Drawing::Scatter(scatter) => scatter.write(dir, &self.name)?,
            Drawing::Stages(stages) => stages.write(dir, &self.name)?,
        })
    }

    /// As SVG text.
    pub fn svg(&self) -> Result<String> {
        Ok(match &self.drawing {
            Drawing::Bars(bars) => bars.svg()?,
            Drawing::Curves(curves) => curves.svg()?,
            Drawing::Scatter(scatter) => scatter.svg()?,
            Drawing::Stages(stages) => stages.svg()?,
        })
    }
}

/// How calibrations of a model agree, by their tokens: a curve for each kind.
fn agreement(
    all: &[Agreement],
    model: &str,
    name: &str,
    size: &str,
    quality: Quality,
    value: fn(&Agreement) -> Option<f64>,
) -> Option<SweepFigure> {
    let mut kinds: Vec<(&str, Curve)> = Vec::new();
    for a in all.iter().filter(|a| a.model == model) {
        let Some(value) = value(a) else { continue };
        let point = CurvePoint { size: a.tokens as f64, value, interval: None, name: None };
        match kinds.iter_mut().find(|(kind, _)| *kind == a.kind) {
            Some((_, curve)) => curve.points.push(point),
            // The label without its number of sequences says which kind it is.
            None => {
                let label: Vec<&str> = a.label.split(", ").filter(|part| !part.contains("sequences=")).collect();
                kinds.push((&a.kind, Curve { label: label.join(", "), points: vec![point], line: Line::Solid }));
            }
        }
    }
    let mut curves: Vec<Curve> = kinds.into_iter().map(|(_, curve)| curve).collect();
    curves.iter_mut().for_each(|c| c.points.sort_by(|a, b| a.size.total_cmp(&b.size)));
    if curves.iter().map(|c| c.points.len()).max().unwrap_or(0) < 2 {
        return None;
    }
    let title = format!("{model}: {name}");
    let curves = Curves { title: title.clone(), size: size.into(), log_size: true, quality, curves, front: false };
    let file = format!("{}-{model}", name.split([' ', ':']).next().unwrap_or(name));
    Some(SweepFigure { name: file, title, drawing: Drawing::Curves(curves) })
}

/// All figures of the runs of a sweep; peers are drawn with runs that were measured on the same text.
pub(crate) fn figures(records: &[Record], peers: Option<&Peers>, calibrations: &[Agreement]) -> Vec<SweepFigure> {
    let files: Size = |p| p.bits_per_weight;
    let memory: Size = |p| Some(p.resident_bits_per_weight);
    let (of_files, of_memory) = ("bits per weight of the files", "bits per weight in a runtime's memory");
    let loss = || Quality::Loss("KL(original || compressed), nats per token".into());
    let perplexity: Value = |p| Some((p.perplexity?, None));
    let accuracy: Value = |p| {
        let all = &p.benchmarks.first()?.result.all;
        Some((100.0 * all.accuracy, Some((100.0 * all.interval.0, 100.0 * all.interval.1))))
    };
    let mut found = Vec::new();
    let mut add = |name: String, title: String, size: &str, quality: Quality, curves: Vec<Curve>| {
        if curves.iter().map(|c| c.points.len()).sum::<usize>() > 1 {
            // Files of one model only are better or worse than each other.
            let front = curves.len() > 1 && name != MODELS_NAME;
            let curves = Curves { title: title.clone(), size: size.into(), log_size: false, quality, curves, front };
            found.push(SweepFigure { name, title, drawing: Drawing::Curves(curves) });
        }
    };
    let models = by_model(records);
    let of = |runs: &[&Record], size: Size, value: Value| -> Vec<Curve> {
        runs.iter().flat_map(|r| curves_of(&short(r), &r.output.points, size, value)).collect()
    };
    for (&model, runs) in &models {
        let base = runs.iter().find_map(|r| r.output.base.as_ref());
        let mut curves = of(runs, files, kl);
        curves.extend(peers.into_iter().flat_map(|p| p.curves(|row| row.kl.filter(|kl| *kl > 0.0))));
        add(format!("curves-{model}"), format!("{model}: KL against {of_files}"), of_files, loss(), curves);
        let attempts: Vec<Curve> = runs.iter().flat_map(|r| attempts_of(&short(r), &r.output.points)).collect();
        add(format!("loop-{model}"), format!("{model}: allocations of closed loops"), of_files, loss(), attempts);
        let title = format!("{model}: KL against {of_memory}");
        let mut curves = of(runs, memory, kl);
        // Other quantizers' files are held as they are.
        curves.extend(peers.into_iter().flat_map(|p| p.curves(|row| row.kl.filter(|kl| *kl > 0.0))));
        add(format!("memory-{model}"), title, of_memory, loss(), curves);
        let mut curves = of(runs, files, perplexity);
        curves.extend(peers.into_iter().flat_map(|p| p.curves(|row| row.ppl)));
        let quality = Quality::Low("perplexity".into(), base.map(|b| b.perplexity));
        add(format!("perplexity-{model}"), format!("{model}: perplexity"), of_files, quality, curves);
        let quality = Quality::High("right answers, %".into(), base.and_then(|b| b.accuracy).map(|a| 100.0 * a));
        add(
            format!("accuracy-{model}"),
            format!("{model}: right answers"),
            of_files,
            quality,
            of(runs, files, accuracy),
        );
    }
    if (2..=MODELS).contains(&models.len()) {
        let named =
            |r: &Record| format!("{}: {}", r.output.model, label(r).replace(&format!("{}: ", r.output.model), ""));
        let curves = records.iter().flat_map(|r| curves_of(&named(r), &r.output.points, files, kl)).collect();
        add(MODELS_NAME.into(), format!("KL against {of_files}"), of_files, loss(), curves);
    }
    found.extend(models.iter().filter_map(|(model, runs)| against_first(model, runs)));
    found.extend(models.iter().filter_map(|(model, runs)| predictions(model, runs)));
    let tokens = "tokens of calibration";
    for model in models.keys() {
        let rank = |text: &str| Quality::High(text.into(), None);
        let (own, most) =
            ("rank correlation between folds of a calibration", "rank correlation with the largest calibration");
        found.extend(agreement(
            calibrations,
            model,
            "folds: how alike are sensitivities of tiles",
            tokens,
            rank(own),
            |a| a.folds,
        ));
        found.extend(agreement(calibrations, model, "agreement of sensitivities of tiles", tokens, rank(most), |a| {
            a.with_most.filter(|r| *r < 1.0 - 1e-12)
        }));
        let quality = Quality::Loss("mean change, bits per weight".into());
        let name = "stability: bits of tiles against the largest calibration";
        found.extend(agreement(calibrations, model, name, tokens, quality, |a| a.bits_change.filter(|b| *b > 0.0)));
    }
    let stages = Stages { stages: costs(records) };
    if !stages.stages.is_empty() {
        let (name, title) = ("stages".into(), "Seconds and memory by stage".into());
        found.push(SweepFigure { name, title, drawing: Drawing::Stages(stages) });
    }
    found
}

/// Least, median and greatest of what a run's files have of the bytes of another's at equal KL, and of how many points: the
/// run's on the curve of the other or, where none lies on that, the other's on the run's.
pub(crate) fn bytes_at_kl(run: &Record, first: &Record) -> Option<([f64; 3], usize)> {
    let compared = |a: &Record, b: &Record| -> Vec<f64> {
        compare(&a.output.points, &b.output.points).iter().filter_map(|c| c.at_kl).collect()
    };
    let mut ratios = compared(run, first);
    if ratios.is_empty() {
        ratios = compared(first, run).into_iter().map(f64::recip).collect();
    }
    ratios.sort_by(f64::total_cmp);
    Some(([*ratios.first()?, ratios[ratios.len() / 2], *ratios.last()?], ratios.len()))
}

/// Bytes of runs at the KL of the first.
fn against_first(model: &str, runs: &[&Record]) -> Option<SweepFigure> {
    let (first, others) = runs.split_first()?;
    let bar = |r: &&Record| {
        let (ratios, _) = bytes_at_kl(r, first)?;
        Some(Bar { label: short(r), percent: ratios.map(|ratio| 100.0 * (ratio - 1.0)) })
    };
    let bars: Vec<Bar> = others.iter().filter_map(bar).collect();
    if bars.is_empty() {
        return None;
    }
    let title = format!("{model}: bytes at equal KL");
    let note = format!("more or less than {}: median over points, from the least to the most", short(first));
    let bars = Bars { title: title.clone(), note, bars };
    Some(SweepFigure { name: format!("bytes-{model}"), title, drawing: Drawing::Bars(bars) })
}

/// Predicted against measured loss of runs that predict one.
fn predictions(model: &str, runs: &[&Record]) -> Option<SweepFigure> {
    let one = |r: &&Record| {
        let point = |p: &waterfill_pipeline::PointOutput| {
            Some((p.predicted_kl.filter(|v| *v > 0.0)?, p.kl.filter(|v| *v > 0.0)?, p.kl_se?))
        };
        Predictions { label: short(r), points: r.output.points.iter().filter_map(point).collect() }
    };
    let runs: Vec<Predictions> = runs.iter().map(one).filter(|p| !p.points.is_empty()).collect();
    if runs.is_empty() {
        return None;
    }
    let title = format!("{model}: predicted and measured loss");
    let scatter = Scatter { title: title.clone(), runs, note: "bars: 95 %".into() };
    Some(SweepFigure { name: format!("predicted-{model}"), title, drawing: Drawing::Scatter(scatter) })
}

/// Time and memory of the artifacts of all runs, each artifact once.
pub(crate) fn costs(records: &[Record]) -> Vec<StageCost> {
    let store = |r: &Record| r.config.get("store").and_then(|s| s.as_str()).unwrap_or_default().to_string();
    let all: BTreeSet<PathBuf> =
        records.iter().flat_map(|r| r.artifacts.iter().map(move |a| Path::new(&store(r)).join(a))).collect();
    let mut stages: BTreeMap<String, StageCost> = BTreeMap::new();
    for artifact in all.iter().filter_map(|dir| Artifact::open(dir).ok()) {
        let (timings, name) = (artifact.timings(), artifact.manifest.identity.stage.clone());
        let new = StageCost { stage: name.clone(), artifacts: 0, seconds: 0.0, peak_bytes: 0 };
        let stage = stages.entry(name).or_insert(new);
        stage.artifacts += 1;
        stage.seconds += timings.seconds;
        stage.peak_bytes = stage.peak_bytes.max(timings.peak_memory_bytes);
    }
    stages.into_values().collect()
}
