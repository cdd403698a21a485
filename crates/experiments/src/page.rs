//! The page of a sweep: figures, tables, findings, and where they come from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use waterfill_pipeline::{Allocated, Attempt, PointOutput};
use waterfill_report::{Cell, PageTable, StageCost, SweepPage};

use crate::agreement::Agreement;
use crate::claims::Reached;
use crate::error::Result;
use crate::figures::{SweepFigure, bytes_at_kl, costs};
use crate::record::{Record, by_model, label};

/// Most by which perplexity may grow in files that count as good.
const GOOD: f64 = 1.005;

/// Writes the page of a sweep's runs to `path`.
///
/// # Errors
/// Figures that cannot be drawn, files that cannot be written.
pub(crate) fn write_page(
    name: &str,
    (records, calibrations, claims): (&[Record], &[Agreement], &[Reached]),
    figures: &[SweepFigure],
    path: &Path,
) -> Result<PathBuf> {
    let figures = figures.iter().map(|f| Ok((f.title.clone(), f.svg()?))).collect::<Result<Vec<_>>>()?;
    let page = SweepPage {
        title: name.into(),
        findings: findings(records),
        tables: [
            reached(claims),
            Some(points(records)),
            closed_loops(records),
            agreement(calibrations),
            Some(stages(records)),
        ]
        .into_iter()
        .flatten()
        .collect(),
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
    PageTable {
        caption: "All points (a click on a head sorts)".into(),
        heads,
        rows: rows.map(row).collect(),
        first: false,
    }
}

/// Claims with their outcome, where there are some.
fn reached(all: &[Reached]) -> Option<PageTable> {
    let row = |r: &Reached| {
        vec![
            Cell::Text(r.name.clone()),
            Cell::Figure(r.value.map_or(String::new(), |v| format!("{v:.4}")), r.value),
            Cell::Text(r.limits()),
            Cell::Text(r.outcome().into()),
            Cell::Text(r.detail.clone()),
        ]
    };
    let heads = vec!["claim", "found", "limit", "", "files"];
    (!all.is_empty()).then(|| PageTable {
        caption: "Claims".into(),
        heads,
        rows: all.iter().map(row).collect(),
        first: true,
    })
}

/// How calibrations agree, where there are several.
fn agreement(all: &[Agreement]) -> Option<PageTable> {
    let three = |v: Option<f64>| Cell::Figure(v.map_or(String::new(), |v| format!("{v:.3}")), v);
    let row = |a: &Agreement| {
        vec![
            Cell::Text(a.model.clone()),
            Cell::Text(a.label.clone()),
            Cell::Figure(a.tokens.to_string(), Some(a.tokens as f64)),
            three(a.folds),
            three(a.with_most),
            three(a.with_first),
            three(a.bits_change),
        ]
    };
    let heads = vec![
        "model",
        "run",
        "tokens",
        "own folds",
        "largest of its kind",
        "largest of the first kind",
        "bits/weight from the largest",
    ];
    let caption = "Calibrations: rank correlation of tile sensitivities, and change of tiles' bits".into();
    (!all.is_empty()).then(|| PageTable { caption, heads, rows: all.iter().map(row).collect(), first: false })
}

/// All allocations of closed loops, where there are some.
fn closed_loops(records: &[Record]) -> Option<PageTable> {
    let all = records.iter().flat_map(|r| r.output.points.iter().map(move |p| (r, p)));
    let attempts = all.flat_map(|(r, p)| p.closed_loop.iter().map(move |a| (r, a)));
    let small = |v: f64| Cell::Figure(format!("{v:.2e}"), Some(v));
    let missing = || Cell::Figure(String::new(), None);
    let row = |(r, a): (&Record, &Attempt)| {
        vec![
            Cell::Text(r.output.model.clone()),
            Cell::Text(label(r)),
            Cell::Text(a.allocated.name().into()),
            Cell::Figure(a.bytes.to_string(), Some(a.bytes as f64)),
            small(a.held_out.mean),
            small(a.held_out.se),
            a.kl.map_or_else(missing, |kl| small(kl.mean)),
            a.kl.map_or_else(missing, |kl| small(kl.se)),
            Cell::Text(if a.kept { "kept" } else { "" }.into()),
        ]
    };
    let rows: Vec<Vec<Cell>> = attempts.map(row).collect();
    let heads = vec!["model", "run", "allocation", "bytes", "KL, held out", "± se", "KL, evaluated", "± se", ""];
    (!rows.is_empty()).then(|| PageTable { caption: "Closed loops".into(), heads, rows, first: false })
}

/// Time and memory of all stages.
fn stages(records: &[Record]) -> PageTable {
    let row = |s: StageCost| {
        let (count, megabytes) = (s.artifacts as f64, s.peak_bytes as f64 / 1e6);
        vec![
            Cell::Text(s.stage),
            Cell::Figure(format!("{count}"), Some(count)),
            Cell::Figure(format!("{:.1}", s.seconds), Some(s.seconds)),
            Cell::Figure(format!("{megabytes:.0}"), Some(megabytes)),
        ]
    };
    let heads = vec!["stage", "artifacts", "seconds in all", "most memory of the process, MB"];
    PageTable {
        caption: "Seconds and memory by stage".into(),
        heads,
        rows: costs(records).into_iter().map(row).collect(),
        first: false,
    }
}

/// Findings in words.
fn findings(records: &[Record]) -> Vec<String> {
    let mut found = Vec::new();
    for (model, own) in by_model(records) {
        let Some((first, others)) = own.split_first() else { continue };
        for other in others {
            let Some(([least, median, most], count)) = bytes_at_kl(other, first) else { continue };
            let more = (median - 1.0) * 100.0;
            let way = if more < 0.0 { "smaller" } else { "larger" };
            found.push(format!(
                "{model}: at equal KL files of {} are {:.1} % {way} than those of {} (median of {count} {}, {:+.1} to {:+.1} %).",
                label(other),
                more.abs(),
                label(first),
                if count == 1 { "point" } else { "points" },
                (least - 1.0) * 100.0,
                (most - 1.0) * 100.0,
            ));
        }
        found.extend(own.iter().filter_map(|r| loop_finding(model, r)));
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

/// Loss of the second and the uniform allocations of a run's closed loops, relative to the first.
fn loop_finding(model: &str, r: &Record) -> Option<String> {
    let loops = r.output.points.iter().filter(|p| !p.closed_loop.is_empty());
    let ratio = |p: &&PointOutput, allocated: Allocated| {
        let kl = |a: Allocated| p.closed_loop.iter().find(|x| x.allocated == a).and_then(|x| x.kl).map(|kl| kl.mean);
        Some(kl(allocated)? / kl(Allocated::First)?)
    };
    let median = |allocated: Allocated| {
        let mut ratios: Vec<f64> = loops.clone().filter_map(|p| ratio(&p, allocated)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied()
    };
    let (second, uniform) = (median(Allocated::Second)?, median(Allocated::Uniform)?);
    let kept = |a: Allocated| loops.clone().flat_map(|p| &p.closed_loop).filter(|x| x.kept && x.allocated == a).count();
    Some(format!(
        "{model}, {}: with the bytes of the first allocation, the second has {second:.2} of its KL and the uniform one {uniform:.2} \
         (medians); kept were {} first, {} second and {} uniform ones.",
        label(r),
        kept(Allocated::First),
        kept(Allocated::Second),
        kept(Allocated::Uniform),
    ))
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
