//! The page of a sweep: figures, tables, findings, and where they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use waterfill_artifacts::Artifact;
use waterfill_report::{Cell, Curve, PageTable, SweepPage, curves_svg};

use super::Record;
use crate::compare::compare;
use crate::curves::{Bits, curves_of};
use crate::error::Result;
use crate::run::PointOutput;

/// Most by which perplexity may grow in files that count as good.
const GOOD: f64 = 1.005;

/// Curves of all runs by model.
fn curves(records: &[Record], bits: Bits) -> BTreeMap<String, Vec<Curve>> {
    let mut models: BTreeMap<String, Vec<Curve>> = BTreeMap::new();
    for r in records {
        models.entry(r.output.model.clone()).or_default().extend(curves_of(&label(r), &r.output.points, bits));
    }
    models.retain(|_, curves| !curves.is_empty());
    models
}

fn label(r: &Record) -> String {
    r.label.clone().unwrap_or_else(|| r.id.clone())
}

/// Writes the page of a sweep's runs to `path`.
///
/// # Errors
/// Figures that cannot be drawn, files that cannot be written.
pub fn write_page(name: &str, records: &[Record], path: &Path) -> Result<PathBuf> {
    let mut figures = Vec::new();
    for (axis, bits) in [
        ("bits per weight of the files", (|p| p.bits_per_weight) as Bits),
        ("bits per weight in a runtime's memory", |p| Some(p.resident_bits_per_weight)),
    ] {
        for (model, curves) in curves(records, bits) {
            let title = format!("{model}: KL against {axis}");
            figures.push((title.clone(), curves_svg(&title, axis, &curves)?));
        }
    }
    let page = SweepPage {
        title: name.into(),
        findings: findings(records),
        tables: vec![points(records), stages(records)],
        figures,
        provenance: provenance(records),
        configurations: records
            .iter()
            .map(|r| (label(r), serde_json::to_string_pretty(&r.config).expect("plain data")))
            .collect(),
    };
    page.write(path)?;
    Ok(path.into())
}

fn points(records: &[Record]) -> PageTable {
    let figure = |value: Option<f64>, form: fn(f64) -> String| Cell::Figure(value.map_or(String::new(), form), value);
    let three: fn(f64) -> String = |v| format!("{v:.3}");
    let small: fn(f64) -> String = |v| format!("{v:.2e}");
    let percent: fn(f64) -> String = |v| format!("{:.2}", 100.0 * v);
    let rows = records.iter().flat_map(|r| r.output.points.iter().map(move |p| (r, p)));
    let row = |(r, p): (&Record, &PointOutput)| {
        vec![
            Cell::Text(r.output.model.clone()),
            Cell::Text(label(r)),
            figure(Some(p.lambda), small),
            figure(p.bytes.map(|b| b as f64), |v| format!("{v:.0}")),
            figure(p.bits_per_weight, three),
            figure(Some(p.resident_bits_per_weight), three),
            figure(p.kl, small),
            figure(p.kl_se, |v| format!("{v:.0e}")),
            figure(p.predicted_kl, small),
            figure(p.perplexity, three),
            figure(p.top1, percent),
            figure(p.accuracy, percent),
        ]
    };
    let heads = vec![
        "model",
        "run",
        "lambda",
        "bytes",
        "bits/weight",
        "in memory",
        "KL",
        "± se",
        "predicted",
        "perplexity",
        "top-1 %",
        "accuracy %",
    ];
    PageTable { caption: "All points (a click on a head sorts)".into(), heads, rows: rows.map(row).collect() }
}

/// What was computed for all runs, each artifact once.
fn stages(records: &[Record]) -> PageTable {
    let store = |r: &Record| r.config.get("store").and_then(|s| s.as_str()).unwrap_or_default().to_string();
    let all: BTreeSet<PathBuf> =
        records.iter().flat_map(|r| r.artifacts.iter().map(move |a| Path::new(&store(r)).join(a))).collect();
    let mut stages: BTreeMap<String, (usize, f64, u64)> = BTreeMap::new();
    for artifact in all.iter().filter_map(|dir| Artifact::open(dir).ok()) {
        let timings = artifact.timings();
        let stage = stages.entry(artifact.manifest.identity.stage.clone()).or_default();
        *stage = (stage.0 + 1, stage.1 + timings.seconds, stage.2.max(timings.peak_memory_bytes));
    }
    let row = |(stage, (count, seconds, peak)): (String, (usize, f64, u64))| {
        let (count, megabytes) = (count as f64, peak as f64 / 1e6);
        vec![
            Cell::Text(stage),
            Cell::Figure(format!("{count}"), Some(count)),
            Cell::Figure(format!("{seconds:.1}"), Some(seconds)),
            Cell::Figure(format!("{megabytes:.0}"), Some(megabytes)),
        ]
    };
    let heads = vec!["stage", "artifacts", "seconds in all", "most memory of the process, MB"];
    PageTable { caption: "Seconds and memory by stage".into(), heads, rows: stages.into_iter().map(row).collect() }
}

/// What the data say, in words.
fn findings(records: &[Record]) -> Vec<String> {
    let mut found = Vec::new();
    let models: BTreeSet<&str> = records.iter().map(|r| r.output.model.as_str()).collect();
    for model in models {
        let own: Vec<&Record> = records.iter().filter(|r| r.output.model == model).collect();
        let Some((first, others)) = own.split_first() else { continue };
        for other in others {
            let mut ratios: Vec<f64> =
                compare(&other.output.points, &first.output.points).iter().filter_map(|c| c.at_kl).collect();
            ratios.sort_by(f64::total_cmp);
            let Some(&median) = ratios.get(ratios.len() / 2) else { continue };
            let (more, count) = ((median - 1.0) * 100.0, ratios.len());
            let way = if more < 0.0 { "smaller" } else { "larger" };
            found.push(format!(
                "{model}: at equal KL files of {} are {:.1} % {way} than those of {} (median of {count} {}, {:+.1} to {:+.1} %).",
                label(other),
                more.abs(),
                label(first),
                if count == 1 { "point" } else { "points" },
                (ratios[0] - 1.0) * 100.0,
                (ratios[count - 1] - 1.0) * 100.0,
            ));
        }
        let base = own.iter().find_map(|r| r.output.base.as_ref());
        let all = own.iter().flat_map(|r| r.output.points.iter().map(move |p| (r, p)));
        let good = |p: &PointOutput| p.perplexity.zip(base).is_some_and(|(ppl, b)| ppl <= b.perplexity * GOOD);
        match all.filter(|(_, p)| good(p)).min_by_key(|(_, p)| p.bytes) {
            Some((r, p)) => found.push(format!(
                "{model}: the smallest file within 0.5 % of the original's perplexity is of {}: {} bytes, {:.2} bits per weight, \
                 KL {:.2e}.",
                label(r),
                p.bytes.unwrap_or(0),
                p.bits_per_weight.unwrap_or(0.0),
                p.kl.unwrap_or(0.0),
            )),
            None if base.is_some() => {
                found.push(format!("{model}: no file stays within 0.5 % of the original's perplexity."));
            }
            None => {}
        }
    }
    found
}

/// Program, models, seeds, dates: each with the values that occur.
fn provenance(records: &[Record]) -> Vec<(String, String)> {
    let values = |f: &dyn Fn(&Record) -> String| {
        let all: BTreeSet<String> = records.iter().map(f).filter(|v| !v.is_empty()).collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    };
    let seed = |r: &Record| r.config.pointer("/calibrate/seed").map_or(String::new(), ToString::to_string);
    [
        ("waterfill", values(&|r| r.program.clone())),
        ("models (BLAKE3)", values(&|r| format!("{} {}", r.output.model, &r.model[..r.model.len().min(16)]))),
        ("seeds of sampled labels", values(&seed)),
        ("devices", values(&|r| r.device.clone())),
        ("dates", values(&|r| r.date.clone())),
        ("runs", values(&|r| r.id.clone())),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into()
}
