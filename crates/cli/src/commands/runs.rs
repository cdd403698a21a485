//! `waterfill runs`, `compare`, `map`, `tables`, `export-notebook` and `gc`.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write as _};
use std::path::Path;

use anyhow::{Result, bail};
use waterfill_experiments::{
    Differences, Filter, Garbage, Record, collect, differences, draw_matrix, export_notebook, list, write_tables,
    write_tile_table,
};
use waterfill_pipeline::Mode;

use super::show::{show, show_figures};
use crate::arguments::{Arguments, RunsArguments};

/// Half width of a 95 % interval in standard errors.
const Z: f64 = 1.96;
/// Tensors that a comparison shows.
const TENSORS: usize = 12;

fn found(asked: &RunsArguments) -> Result<Vec<Record>> {
    let RunsArguments { store, model, sweep, tag, since, points } = asked.clone();
    Ok(list(&store, &Filter { model, sweep, tag, since, points })?)
}

pub fn execute_runs(arguments: &Arguments, asked: &RunsArguments) -> Result<()> {
    let records = found(asked)?;
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::Value::Array(records.iter().map(Record::to_json).collect())),
        _ => print!("{}", render_runs(&records)),
    }
    Ok(())
}

pub fn execute_tables(arguments: &Arguments, asked: &RunsArguments, out: &Path) -> Result<()> {
    let records = found(asked)?;
    write_tables(&records, out)?;
    let tiles = write_tile_table(&records, out)?;
    let points: usize = records.iter().map(|r| r.output.points.len()).sum();
    let (runs, out) = (records.len(), out.display());
    show(arguments, &format!("{out}: {runs} runs, {points} points, {tiles} tiles"), "tables")
}

pub fn execute_notebook(arguments: &Arguments, sweep: &str, out: &Path, store: &Path) -> Result<()> {
    let records = list(store, &Filter { sweep: Some(sweep.into()), ..Filter::default() })?;
    let path = export_notebook(&records, sweep, out)?;
    show(arguments, &path.display().to_string(), "notebook")
}

pub fn execute_map(
    arguments: &Arguments,
    (store, run): (&Path, &str),
    (point, tensor): (Option<usize>, &str),
    out: &Path,
) -> Result<()> {
    let (_, record) = Record::find(store, run)?;
    let images = draw_matrix(&record, point, tensor, out)?;
    let images: Vec<String> = images.iter().map(|path| path.display().to_string()).collect();
    show(arguments, &images.join("\n"), "map")
}

pub fn execute_compare(arguments: &Arguments, store: &Path, names: [&str; 2]) -> Result<()> {
    show_figures(arguments, &differences(store, names)?, render_differences)
}

pub fn execute_gc(arguments: &Arguments, store: &Path, forget: &[String], yes: bool, dry_run: bool) -> Result<()> {
    let garbage = collect(store, forget)?;
    show_figures(arguments, &garbage, render_garbage)?;
    if dry_run || garbage.artifacts.is_empty() && garbage.records.is_empty() {
        return Ok(());
    }
    if !yes {
        if arguments.mode() == Mode::Json || !std::io::stdin().is_terminal() {
            bail!("nothing was removed: --yes removes without asking, --dry-run only shows");
        }
        eprint!("remove? [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was removed");
        }
    }
    Ok(garbage.remove()?)
}

fn range(values: impl Iterator<Item = f64>, form: fn(f64) -> String) -> String {
    let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), v| (l.min(v), m.max(v)));
    match least <= most {
        true if least == most => form(least),
        true => format!("{} to {}", form(least), form(most)),
        false => "-".into(),
    }
}

fn render_runs(records: &[Record]) -> String {
    if records.is_empty() {
        return "no runs; --store names another folder of artifacts\n".into();
    }
    let row = |r: &Record| {
        let points = &r.output.points;
        let of = [r.sweep.as_deref(), r.label.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let tags = if r.tags.is_empty() { String::new() } else { format!(" [{}]", r.tags.join(", ")) };
        [
            r.id.clone(),
            r.date.trim_end_matches('Z').replace('T', " "),
            points.len().to_string(),
            range(points.iter().filter_map(|p| p.bits_per_weight), |v| format!("{v:.2}")),
            range(points.iter().filter_map(|p| p.kl), |v| format!("{v:.2e}")),
            range(points.iter().filter_map(|p| p.perplexity), |v| format!("{v:.3}")),
            of + &tags,
        ]
    };
    let heads = ["run", "date", "points", "bits/w", "KL", "perplexity", "sweep: label [tags]"].map(String::from);
    let rows: Vec<[String; 7]> = std::iter::once(heads).chain(records.iter().map(row)).collect();
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for [id, date, points, bits, kl, perplexity, of] in &rows {
        let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(width);
        let line = format!("{id:a$}  {date:b$}  {points:>c$}  {bits:>d$}  {kl:>e$}  {perplexity:>f$}  {of}");
        writeln!(text, "{}", line.trim_end()).expect("writing to a string");
    }
    text
}

fn render_differences(d: &Differences) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{}", s.trim_end()).expect("writing to a string");
    for (name, (run, date)) in ["A", "B"].iter().zip(d.runs.iter().zip(&d.dates)) {
        line(format!("{name}  {run}, {date}"));
    }
    line(String::new());
    for (key, [a, b]) in &d.settings {
        line(format!("{key}: {a} -> {b}"));
    }
    if d.settings.is_empty() {
        line("the same settings".into());
    }
    line(String::new());
    let heads = ["bits/w A", "bits/w B", "KL A", "KL B"];
    let heads = heads.map(|h| format!("{h:>10}")).concat();
    let columns = ["KL B - A, 95 %", "nll B - A, 95 %", "accuracy B - A, 95 %"].map(|h| format!("{h:>26}")).concat();
    line(format!("{heads}{columns}{:>14}", "bytes at KL"));
    for p in &d.points {
        let bits = p.bits_per_weight.map(|v| v.map_or("-".into(), |v| format!("{v:.3}")));
        let kl = p.kl.map(|v| v.map_or("-".into(), |v| format!("{v:.2e}")));
        let changes = [(p.kl_change, 1.0, ""), (p.nll_change, 1.0, ""), (p.accuracy_change, 100.0, " %")];
        let changes = changes.map(|(change, unit, sign)| match change {
            None => "-".to_string(),
            Some(c) if unit == 1.0 => format!("{:+.2e} ± {:.1e}", c.mean, Z * c.se),
            Some(c) => format!("{:+.2} ± {:.2}{sign}", unit * c.mean, unit * Z * c.se),
        });
        let ratio = p.bytes.at_kl.map_or("-".into(), |r| format!("{:+.2} %", (r - 1.0) * 100.0));
        let cells = bits.iter().chain(&kl).map(|c| format!("{c:>10}")).collect::<String>();
        line(format!("{cells}{}{ratio:>14}", changes.map(|c| format!("{c:>26}")).concat()));
    }
    if !d.tensors.is_empty() {
        line(String::new());
        line(format!("{:44}{:>10}{:>10}{:>12}{:>12}", "tensor", "bits/w A", "bits/w B", "loss A", "loss B"));
        for t in d.tensors.iter().take(TENSORS) {
            let [a, b] = t.bits_per_weight;
            line(format!("{:44}{a:>10.3}{b:>10.3}{:>12.2e}{:>12.2e}", t.name, t.loss[0], t.loss[1]));
        }
        if d.tensors.len() > TENSORS {
            line(format!("and {} more that differ less (--json has all)", d.tensors.len() - TENSORS));
        }
    }
    text
}

fn render_garbage(g: &Garbage) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("writing to a string");
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    for (stage, (count, bytes)) in &g.stages {
        line(format!("{stage:16}{count:>6} artifacts{:>14}", megabytes(*bytes)));
    }
    let records = if g.records.is_empty() { String::new() } else { format!(" and {} records", g.records.len()) };
    let (count, bytes) = (g.artifacts.len(), megabytes(g.bytes));
    line(format!("{count} artifacts{records}, {bytes}, that none of {} runs needs", g.kept));
    text
}
