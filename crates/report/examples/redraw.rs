//! Draws the figures in `results/reference` again from the tables that are committed beside them, after a change of how figures
//! are drawn. Figures whose data are not in these tables (maps, closed loops, prefixes) stay as they are.
//!
//! ```sh
//! cargo run --release -p waterfill-report --example redraw -- results/reference [PEERS.json]
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use waterfill_report::{Bar, Bars, Curve, CurvePoint, Curves, Line, Predictions, Quality, Scatter};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Questions of the milestones' accuracies.
const QUESTIONS: f64 = 5257.0;

/// Perplexity and accuracy of the originals on the texts and questions of these folders' tables.
const ORIGINALS: [(&str, f64, Option<f64>); 4] = [
    ("comparison-books-7m", 41.618596, None),
    ("lambda-tiny", 2.0543787, None),
    ("m1", 2.0543787, Some(0.9962)),
    ("m2", 2.0543787, Some(0.9962)),
];

const FILES: &str = "bits per weight of the files";
const MEMORY: &str = "bits per weight in a runtime's memory";

/// A row of a table: values by column, empty ones left out.
type Row = BTreeMap<String, String>;

fn rows(path: &Path) -> Result<Vec<Row>> {
    let options = CsvReadOptions::default().with_infer_schema_length(Some(0));
    let frame = options.try_into_reader_with_file_path(Some(path.into()))?.finish()?;
    let mut rows = vec![Row::new(); frame.height()];
    for column in frame.columns() {
        for (row, value) in rows.iter_mut().zip(column.str()?.iter()) {
            if let Some(value) = value.filter(|v| !v.is_empty()) {
                row.insert(column.name().to_string(), value.to_string());
            }
        }
    }
    Ok(rows)
}

fn number(row: &Row, column: &str) -> Option<f64> {
    row.get(column)?.parse().ok()
}

/// The run's label without the model's name.
fn label(row: &Row) -> String {
    let label = row.get("label").cloned().unwrap_or_default();
    let model = row.get("pipeline").map(|m| format!("{m}: ")).unwrap_or_default();
    label.strip_prefix(&model).map(String::from).unwrap_or(label)
}

/// Rows of the ablation of coding tools in the form of a sweep's: settings become the label.
fn labelled(mut rows: Vec<Row>) -> Vec<Row> {
    for row in &mut rows {
        let (Some(preset), Some(model)) = (row.get("preset").cloned(), row.get("model").cloned()) else { continue };
        let with = row.get("with").map_or(String::new(), |tools| format!(" + {}", tools.replace(' ', ", ")));
        let label = match (row.get("without"), preset.as_str()) {
            (Some(tool), "best") => format!("all but {tool}"),
            (Some(tool), preset) => format!("{preset}{with} - {tool}"),
            (None, preset) => format!("{preset}{with}"),
        };
        row.insert("pipeline".into(), model);
        row.insert("label".into(), label);
    }
    rows
}

/// Rows of each value, in the order in which values come first.
fn grouped<'a>(rows: &[&'a Row], key: impl Fn(&Row) -> String) -> Vec<(String, Vec<&'a Row>)> {
    let mut groups: Vec<(String, Vec<&Row>)> = Vec::new();
    for &row in rows {
        let key = key(row);
        match groups.iter_mut().find(|g| g.0 == key) {
            Some(group) => group.1.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    groups
}

/// A 95 % interval of a value with a standard error.
fn interval(value: f64, se: Option<f64>) -> Option<(f64, f64)> {
    se.map(|se| (value - 1.96 * se, value + 1.96 * se))
}

/// 95 % interval of a share of `count` (Wilson 1927).
fn wilson(share: f64, count: f64) -> (f64, f64) {
    let z2 = 1.96 * 1.96 / count;
    let middle = (share + z2 / 2.0) / (1.0 + z2);
    let half = (z2 * share * (1.0 - share) + z2 * z2 / 4.0).sqrt() / (1.0 + z2);
    (middle - half, middle + half)
}

type Value = fn(&Row) -> Option<(f64, Option<(f64, f64)>)>;

/// Curves of a model's runs; prefixes of a checkpoint, whose layers are counted, are a curve of their own.
fn curves(runs: &[(String, Vec<&Row>)], size: &str, value: Value) -> Vec<Curve> {
    let mut curves = Vec::new();
    for (label, rows) in runs {
        for layered in [false, true] {
            let rows = rows.iter().filter(|r| r.contains_key("layers") == layered);
            let mut points: Vec<CurvePoint> = rows
                .filter_map(|row| {
                    let (value, interval) = value(row)?;
                    Some(CurvePoint { size: number(row, size)?, value, interval, name: None })
                })
                .collect();
            points.sort_by(|a, b| a.size.total_cmp(&b.size));
            if !points.is_empty() {
                let line = if layered { Line::Dashed } else { Line::Solid };
                curves.push(Curve { label: label.clone(), points, line });
            }
        }
    }
    curves
}

/// llama.cpp's files, of a table of peers.
fn peers(path: &Path, value: &str) -> Result<Curve> {
    let table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let point = |row: &serde_json::Value| {
        let name = row["method"].as_str()?.strip_prefix("llama.cpp ")?.to_string();
        let (size, value) = (row["bits_per_weight_all"].as_f64()?, row[value].as_f64()?);
        Some(CurvePoint { size, value, interval: None, name: Some(name) })
    };
    let points = table["rows"].as_array().into_iter().flatten().filter_map(point).collect();
    Ok(Curve { label: "llama.cpp".into(), points, line: Line::None })
}

/// Ratios of bytes to those of `first` at equal KL, logarithms linear between its points.
fn ratios(rows: &[&Row], first: &[&Row]) -> Vec<f64> {
    let place = |row: &&Row| Some((number(row, "kl").filter(|kl| *kl > 0.0)?.ln(), number(row, "bytes")?.ln()));
    let mut curve: Vec<(f64, f64)> = first.iter().filter_map(place).collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = |(kl, bytes): (f64, f64)| {
        let pair = curve.windows(2).find(|w| (w[0].0..=w[1].0).contains(&kl))?;
        let share = (kl - pair[0].0) / (pair[1].0 - pair[0].0);
        Some((bytes - pair[0].1 - share * (pair[1].1 - pair[0].1)).exp())
    };
    rows.iter().filter_map(place).filter_map(at).collect()
}

fn bars(model: &str, runs: &[(String, Vec<&Row>)]) -> Option<Bars> {
    let ((first, reference), others) = runs.split_first()?;
    let bar = |(label, rows): &(String, Vec<&Row>)| {
        let mut found = ratios(rows, reference);
        if found.is_empty() {
            found = ratios(reference, rows).into_iter().map(f64::recip).collect();
        }
        found.sort_by(f64::total_cmp);
        let percent = [*found.first()?, found[found.len() / 2], *found.last()?].map(|ratio| 100.0 * (ratio - 1.0));
        Some(Bar { label: label.clone(), percent })
    };
    let bars: Vec<Bar> = others.iter().filter_map(bar).collect();
    let note = format!("more or less than {first}: median over points, from the least to the most");
    (!bars.is_empty()).then(|| Bars { title: format!("{model}: bytes at equal KL"), note, bars })
}

/// How calibrations agree, by their tokens.
fn agreement(rows: &[Row], dir: &Path) -> Result<()> {
    let all: Vec<&Row> = rows.iter().collect();
    for (model, rows) in grouped(&all, |r| r.get("pipeline").cloned().unwrap_or_default()) {
        let without_sequences =
            |r: &Row| label(r).split(", ").filter(|part| !part.contains("sequences=")).collect::<Vec<_>>().join(", ");
        let rank = |text: &str| Quality::High(text.into(), None);
        let draw = |name: &str, title: &str, quality: Quality, column: &str, keep: fn(f64) -> bool| -> Result<()> {
            let curve = |(label, rows): (String, Vec<&Row>)| {
                let point = |r: &&Row| {
                    let value = number(r, column).filter(|v| keep(*v))?;
                    Some(CurvePoint { size: number(r, "tokens")?, value, interval: None, name: None })
                };
                let mut points: Vec<CurvePoint> = rows.iter().filter_map(point).collect();
                points.sort_by(|a, b| a.size.total_cmp(&b.size));
                Curve { label, points, line: Line::Solid }
            };
            let curves: Vec<Curve> = grouped(&rows, without_sequences).into_iter().map(curve).collect();
            let size = "tokens of calibration".to_string();
            let title = format!("{model}: {title}");
            let figure = Curves { title, size, log_size: true, quality, curves, front: false };
            replace(dir, &format!("{name}-{model}"), |at, name| figure.write(at, name))
        };
        let own = rank("rank correlation between folds of a calibration");
        draw("folds", "how alike are sensitivities of tiles", own, "folds", |_| true)?;
        let most = rank("rank correlation with the largest calibration");
        draw("agreement", "agreement of sensitivities of tiles", most, "with_most", |r| r < 1.0 - 1e-12)?;
        let change = Quality::Loss("mean change, bits per weight".into());
        draw("stability", "bits of tiles against the largest calibration", change, "bits_change", |b| b > 0.0)?;
    }
    Ok(())
}

/// Draws a figure whose PNG is committed, and keeps the PNG only.
fn replace(dir: &Path, name: &str, draw: impl FnOnce(&Path, &str) -> waterfill_report::Result<PathBuf>) -> Result<()> {
    if dir.join(format!("{name}.png")).exists() {
        println!("{}", draw(dir, name)?.display());
        std::fs::remove_file(dir.join(format!("{name}.svg")))?;
    }
    Ok(())
}

fn sweep(dir: &Path, table: &[Row], peer_file: Option<&Path>) -> Result<()> {
    let folder = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let original = ORIGINALS.iter().find(|o| o.0 == folder);
    let all: Vec<&Row> = table.iter().collect();
    for (model, rows) in grouped(&all, |r| r.get("pipeline").cloned().unwrap_or_default()) {
        let runs = grouped(&rows, label);
        let kl: Value = |r| {
            let kl = number(r, "kl").filter(|kl| *kl > 0.0)?;
            Some((kl, interval(kl, number(r, "kl_se"))))
        };
        let perplexity: Value = |r| Some((number(r, "perplexity")?, None));
        let accuracy: Value = |r| {
            let accuracy = number(r, "accuracy")?;
            let (low, high) = wilson(accuracy, QUESTIONS);
            Some((100.0 * accuracy, Some((100.0 * low, 100.0 * high))))
        };
        let loss = || Quality::Loss("KL(original || compressed), nats per token".into());
        let with_peers = |mut curves: Vec<Curve>, value: &str| -> Result<Vec<Curve>> {
            if let Some(file) = peer_file.filter(|_| folder.starts_with("comparison")) {
                let mut curve = peers(file, value)?;
                curve.points.retain(|p| p.value > 0.0);
                curves.push(curve);
            }
            Ok(curves)
        };
        let draw = |name: &str, title: String, size: &str, quality: Quality, curves: Vec<Curve>| {
            let front = curves.len() > 1;
            let figure = Curves { title, size: size.into(), log_size: false, quality, curves, front };
            replace(dir, &format!("{name}-{model}"), |at, name| figure.write(at, name))
        };
        let of_files = with_peers(curves(&runs, "bits_per_weight", kl), "kl")?;
        draw("curves", format!("{model}: KL against {FILES}"), FILES, loss(), of_files)?;
        let of_memory = curves(&runs, "resident_bits_per_weight", kl);
        draw("memory", format!("{model}: KL against {MEMORY}"), MEMORY, loss(), of_memory)?;
        let quality = Quality::Low("perplexity".into(), original.map(|o| o.1));
        let of_files = with_peers(curves(&runs, "bits_per_weight", perplexity), "ppl")?;
        draw("perplexity", format!("{model}: perplexity"), FILES, quality, of_files)?;
        let quality = Quality::High("right answers, %".into(), original.and_then(|o| o.2).map(|a| 100.0 * a));
        let of_files = curves(&runs, "bits_per_weight", accuracy);
        draw("accuracy", format!("{model}: right answers"), FILES, quality, of_files)?;
        if let Some(figure) = bars(&model, &runs) {
            replace(dir, &format!("bytes-{model}"), |at, name| figure.write(at, name))?;
        }
        let predictions = |(label, rows): &(String, Vec<&Row>)| {
            let point = |r: &&Row| {
                Some((number(r, "predicted_kl").filter(|v| *v > 0.0)?, number(r, "kl")?, number(r, "kl_se")?))
            };
            Predictions { label: label.clone(), points: rows.iter().filter_map(point).collect() }
        };
        let title = format!("{model}: predicted and measured loss");
        let figure = Scatter { title, runs: runs.iter().map(predictions).collect(), note: "bars: 95 %".into() };
        replace(dir, &format!("predicted-{model}"), |at, name| figure.write(at, name))?;
    }
    Ok(())
}

/// The figures of one run, `curve` and `predicted`.
fn single(dir: &Path, table: &[Row]) -> Result<()> {
    // Of files at the same lambda the best.
    let mut all: Vec<&Row> = table.iter().collect();
    all.sort_by(|a, b| number(a, "kl").unwrap_or(0.0).total_cmp(&number(b, "kl").unwrap_or(0.0)));
    let mut lambdas = Vec::new();
    all.retain(|row| {
        let lambda = number(row, "lambda").unwrap_or(0.0);
        let new = !lambdas.contains(&lambda);
        lambdas.push(lambda);
        new
    });
    let Some(model) = table.first().and_then(|r| r.get("model")) else { return Ok(()) };
    let kl: Value = |r| number(r, "kl").map(|kl| (kl, interval(kl, number(r, "kl_se"))));
    let named = |label: &str| vec![(label.to_string(), all.clone())];
    let mut both = curves(&named("file"), "bits_per_weight", kl);
    both.extend(curves(&named("in memory"), "resident_bits_per_weight", kl));
    let figure = Curves {
        title: format!("{model}: rate and distortion"),
        size: "bits per weight".into(),
        log_size: false,
        quality: Quality::Loss("KL(original || compressed), nats per token".into()),
        curves: both,
        front: false,
    };
    replace(dir, "curve", |at, name| figure.write(at, name))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let root = arguments.next().ok_or("the folder of reference results is missing")?;
    let peer_file = arguments.next();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    folders.sort();
    for dir in folders {
        let points = dir.join("points.csv");
        if points.exists() {
            let table = labelled(rows(&points)?);
            match table.first().is_some_and(|r| r.contains_key("pipeline")) {
                true => sweep(&dir, &table, peer_file.as_deref())?,
                false => single(&dir, &table)?,
            }
        }
        let calibrations = dir.join("calibrations.csv");
        if calibrations.exists() {
            agreement(&rows(&calibrations)?, &dir)?;
        }
    }
    Ok(())
}
