//! Figures. Those of one run are drawn from its report here.

pub(crate) mod bars;
pub(crate) mod curves;
mod formats;
mod heat;
pub(crate) mod levels;
pub(crate) mod scatter;
pub(crate) mod stages;
pub(crate) mod tiles;

use std::path::Path;

use curves::{Curve, CurvePoint, Curves, Line, Quality};
use formats::Formats;
use heat::Heat;
use scatter::{Predictions, Scatter};

use crate::data::{OperatingPoint, Report};
use crate::error::{Result, save};
use crate::style::{Figure, Z};

/// Writes all figures of a run as `NAME.svg` and `NAME.png`; names and SVG text, for a page.
pub(crate) fn write(report: &Report, dir: &Path) -> Result<Vec<(String, String)>> {
    let mut figures = Figures { dir, svg: Vec::new() };
    figures.add("curve", &curve(report))?;
    figures.add("predicted", &predicted(report))?;
    figures.add("formats", &Formats(report))?;
    if let Some(accuracy) = accuracy(report) {
        figures.add("accuracy", &accuracy)?;
    }
    for (i, point) in report.points.iter().enumerate() {
        figures.add(&format!("allocation-{}", i + 1), &allocation(point))?;
    }
    if !report.sensitivities.is_empty() {
        figures.add("sensitivity", &sensitivity(report))?;
    }
    report.map.iter().try_for_each(|map| figures.add("tiles", map))?;
    report.levels.iter().try_for_each(|levels| figures.add("levels", levels))?;
    Ok(figures.svg)
}

struct Figures<'a> {
    dir: &'a Path,
    svg: Vec<(String, String)>,
}

impl Figures<'_> {
    fn add(&mut self, name: &str, figure: &impl Figure) -> Result<()> {
        figure.png(&self.dir.join(format!("{name}.png")))?;
        let svg = figure.svg(name)?;
        save(&self.dir.join(format!("{name}.svg")), &svg)?;
        self.svg.push((name.into(), svg));
        Ok(())
    }
}

fn curve(report: &Report) -> Curves {
    let series = |label: &str, size: fn(&OperatingPoint) -> f64| {
        let point = |p: &OperatingPoint| CurvePoint {
            size: size(p),
            value: p.kl,
            interval: Some((p.kl - Z * p.kl_se, p.kl + Z * p.kl_se)),
            name: None,
        };
        let mut points: Vec<CurvePoint> = report.points.iter().filter(|p| p.kl > 0.0).map(point).collect();
        points.sort_by(|a, b| a.size.total_cmp(&b.size));
        Curve { label: label.into(), points, line: Line::Solid }
    };
    Curves {
        title: format!("{}: rate and distortion", report.model),
        size: "bits per weight".into(),
        log_size: false,
        quality: Quality::Loss("KL(original || compressed), nats per token".into()),
        curves: vec![series("file", |p| p.bits_per_weight), series("in memory", |p| p.resident_bits_per_weight)],
        front: false,
    }
}

/// Accuracy against size, where there were questions.
fn accuracy(report: &Report) -> Option<Curves> {
    let base = report.base_accuracy?;
    let point = |p: &OperatingPoint| {
        Some(CurvePoint {
            size: p.bits_per_weight,
            value: 100.0 * p.accuracy?,
            interval: p.accuracy_low.zip(p.accuracy_high).map(|(low, high)| (100.0 * low, 100.0 * high)),
            name: None,
        })
    };
    let points = report.points.iter().filter_map(point).collect();
    Some(Curves {
        title: format!("{}: right answers of {} questions", report.model, report.questions),
        size: "bits per weight of the files".into(),
        log_size: false,
        quality: Quality::High("right answers, %".into(), Some(100.0 * base)),
        curves: vec![Curve { label: "compressed checkpoints".into(), points, line: Line::Solid }],
        front: false,
    })
}

fn predicted(report: &Report) -> Scatter {
    let points = report.points.iter().map(|p| (p.predicted_kl, p.kl, p.kl_se)).collect();
    Scatter {
        title: format!("{}: predicted and measured loss", report.model),
        runs: vec![Predictions { label: "compressed checkpoints".into(), points }],
        note: format!("bars: 95 % over {} sequences of {} tokens", report.sequences, report.context),
    }
}

fn allocation(point: &OperatingPoint) -> Heat {
    let values = point.tensors.iter().map(|t| (t.name.as_str(), t.bits / t.weights.max(1) as f64));
    Heat::new(format!("bits per weight by layer and tensor, file at {:.2}", point.bits_per_weight), values, false)
}

fn sensitivity(report: &Report) -> Heat {
    let values = report.sensitivities.iter().map(|s| (s.name.as_str(), s.fisher / s.weights.max(1) as f64));
    Heat::new("Fisher information by weight, mean over each matrix".into(), values, true)
}
