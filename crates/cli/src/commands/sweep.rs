//! `waterfill sweep`.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use waterfill_config::load_sweep;
use waterfill_experiments::{DryRun, SweepOutput, dry_run, run_sweep};
use waterfill_pipeline::{Console, Mode, PlannedStage};
use waterfill_store::Progress;

use super::points::{HEADS, cells, row};
use crate::arguments::{Arguments, RunOptions};
use crate::measure::Measured;

/// Runs a sweep, or prints its plan.
pub fn execute(arguments: &Arguments, file: &Path, dry: bool, options: &RunOptions, console: &Console) -> Result<()> {
    let mut sweep = load_sweep(file, &|note| console.note(note))?;
    sweep.runs.iter_mut().for_each(|run| options.apply(&mut run.config));
    if dry {
        let planned = dry_run(&sweep, &options.device, console);
        console.finish("");
        match arguments.mode() {
            Mode::Json => println!("{}", serde_json::to_string(&planned)?),
            _ => print!("{}", render_plan(&planned)),
        }
        return Ok(());
    }
    let measured = Measured::new(arguments.threads)?;
    let output = run_sweep(&sweep, options.repair, &options.device, &measured, console)?;
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::to_string(&output)?),
        _ => print!("{}", render(&output)),
    }
    match output.failures() {
        0 => Ok(()),
        failed => anyhow::bail!("{failed} of {} runs failed", output.runs.len()),
    }
}

/// All points of all runs, then paths and failures.
fn render(output: &SweepOutput) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{}", s.trim_end()).expect("writing to a string");
    let width = output.runs.iter().map(|r| r.label.chars().count()).max().unwrap_or(0).max(3);
    line(format!("{:width$}{}{:>10}{:>10}", "run", row(&HEADS.map(String::from)), "at KL %", "at loss %"));
    let percent = |ratio: Option<f64>| ratio.map_or("-".to_string(), |r| format!("{:+.2}", (r - 1.0) * 100.0));
    for one in &output.runs {
        let points = one.output.iter().flat_map(|o| &o.points).enumerate();
        for (n, point) in points {
            let against = one.against_first.get(n);
            let [kl, loss] = [against.and_then(|a| a.at_kl), against.and_then(|a| a.at_loss)].map(percent);
            line(format!("{:width$}{}{kl:>10}{loss:>10}", one.label, row(&cells(point))));
        }
    }
    if output.runs.iter().any(|r| !r.against_first.is_empty()) {
        line(
            "at KL, at loss: bytes more or less than the first run of the model takes for the same KL or decoded loss"
                .into(),
        );
    }
    for one in &output.runs {
        if let Some(dir) = one.output.as_ref().and_then(|o| o.artifacts.get("report")) {
            line(format!("{}: {}", one.label, dir.join("report.html").display()));
        }
    }
    output.figures.iter().for_each(|figure| line(format!("figure: {}", figure.display())));
    output.page.iter().for_each(|page| line(format!("page: {}", page.display())));
    if !output.reach.is_empty() {
        line(format!("{:24}{:>12}{:>12}{:>12}{:>8}", "peer", "KL", "its bytes", "ours", "ratio"));
    }
    for reach in &output.reach {
        let ours = reach.our_bytes.map_or("-".to_string(), |b| b.to_string());
        let ratio = reach.ratio.map_or("-".to_string(), |r| format!("{r:.3}"));
        line(format!("{:24}{:>12.6}{:>12}{ours:>12}{ratio:>8}", reach.peer, reach.peer_kl, reach.peer_bytes));
    }
    for t in &output.claims {
        let value = t.value.map_or("no figure".to_string(), |v| format!("{v:.4}"));
        let limits = if t.limits().is_empty() { String::new() } else { format!(", {}", t.limits()) };
        line(format!("{:8} {}: {value}{limits} ({})", t.outcome(), t.name, t.detail));
    }
    let failed: Vec<_> = output.runs.iter().filter_map(|r| Some((&r.label, r.error.as_ref()?))).collect();
    if !failed.is_empty() {
        line(format!("{} of {} runs failed:", failed.len(), output.runs.len()));
        failed.iter().for_each(|(label, error)| line(format!("  {label}: {error}")));
    }
    text
}

/// The stages of every run.
fn render_plan(planned: &DryRun) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("writing to a string");
    for one in &planned.runs {
        line(format!("{} (about {:.1} GB)", one.label, one.memory_bytes as f64 / 1e9));
        if let Some(error) = &one.error {
            line(format!("  cannot run: {error}"));
        }
        let state = |s: &PlannedStage| match (s.cached, s.shared) {
            (true, _) => "in the store".to_string(),
            (_, true) => "computed by an earlier run".to_string(),
            _ if s.units_done > 0 => {
                format!("to finish, {} of {} units done, about {:.1} s", s.units_done, s.units, s.seconds)
            }
            _ => format!("to compute, about {:.1} s", s.seconds),
        };
        one.stages.iter().for_each(|s| line(format!("  {:32}{}", s.stage, state(s))));
    }
    let count = |f: fn(&PlannedStage) -> bool| planned.runs.iter().flat_map(|r| &r.stages).filter(|s| f(s)).count();
    let basis = if planned.rough { "a guess: nothing like it was measured yet" } else { "from earlier runs" };
    line(format!(
        "{} runs: {} stages in the store, {} shared, {} to compute; about {:.0} s ({basis})",
        planned.runs.len(),
        count(|s| s.cached),
        count(|s| s.shared),
        count(|s| !s.cached && !s.shared),
        planned.seconds
    ));
    text
}
