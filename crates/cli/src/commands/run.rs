//! `waterfill run`, and the commands that stop at one of its stages.

use std::fmt::Write;

use anyhow::Result;
use waterfill_config::Config;
use waterfill_experiments::{SweepSlot, run};
use waterfill_pipeline::{Console, Context, Mode, OriginalOutput, RunOutput, Until, evaluate_original};
use waterfill_store::Store;

use super::points::{HEADS, benchmarks, by_position, cells, closed_loop, floors, predictions, row, tells_more};
use super::show::{load, show_figures};
use crate::arguments::{Arguments, RunArguments, RunOptions};

/// The configuration with the options, and its store.
pub fn configured(path: &std::path::Path, options: &RunOptions, console: &Console) -> Result<(Config, Store)> {
    let mut config = load(path, console)?;
    options.apply(&mut config);
    let store = Store::new(&config.store).repairing(options.repair);
    Ok((config, store))
}

/// Runs the stages up to `until`.
pub fn execute(arguments: &Arguments, asked: &RunArguments, until: Until, console: &Console) -> Result<()> {
    let (config, store) = configured(&asked.config, &asked.options, console)?;
    let context = Context::open(&config, &store, &asked.options.device, console)?;
    let output = run(&context, &SweepSlot::default(), until)?;
    console.finish("");
    match arguments.mode() {
        Mode::Json => println!("{}", output.to_json()),
        _ => print!("{}", render(&output)),
    }
    Ok(())
}

/// Evaluates the original alone.
pub fn execute_original(arguments: &Arguments, asked: &RunArguments, console: &Console) -> Result<()> {
    let (config, store) = configured(&asked.config, &asked.options, console)?;
    let output = evaluate_original(&config, &store, &asked.options.device, console)?;
    console.finish("");
    show_figures(arguments, &output, render_original)
}

/// Aligned columns, then the directories.
fn render(output: &RunOutput) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{}", s.trim_end()).expect("writing to a string");
    if let Some(base) = &output.base {
        let accuracy = base.accuracy.map_or(String::new(), |a| format!(", accuracy {:.1} %", a * 100.0));
        line(format!(
            "{}: original {:.4} nats per token, perplexity {:.3}{accuracy}",
            output.model, base.nll, base.perplexity
        ));
    }
    if !output.points.is_empty() {
        line(row(&HEADS.map(String::from)));
        output.points.iter().for_each(|p| line(row(&cells(p))));
    }
    output.points.iter().flat_map(predictions).for_each(&mut line);
    output.points.iter().filter_map(floors).for_each(&mut line);
    output.points.iter().flat_map(closed_loop).for_each(&mut line);
    let base = output.base.iter().map(|b| ("original".to_string(), &b.benchmarks, &b.by_position));
    let compressed = output.points.iter().map(|p| (format!("{:.2e}", p.lambda), &p.benchmarks, &p.by_position));
    for (name, answered, bands) in base.chain(compressed) {
        by_position(&name, bands).into_iter().for_each(&mut line);
        if tells_more(answered) {
            benchmarks(&name, answered).into_iter().for_each(&mut line);
        }
    }
    for (stage, dir) in &output.artifacts {
        line(format!("{stage}: {}", dir.display()));
    }
    if let Some(dir) = output.artifacts.get("report") {
        line(format!("plot: {}", dir.join("curve.png").display()));
        line(format!("page: {}", dir.join("report.html").display()));
    }
    for (bits, checkpoint) in output.points.iter().filter_map(|p| Some((p.bits_per_weight?, p.checkpoint.as_ref()?))) {
        line(format!("compressed checkpoint, {bits:.2} bits per weight: {}", checkpoint.display()));
    }
    text
}

/// The original alone.
fn render_original(output: &OriginalOutput) -> String {
    let (tokens, context) = (output.sequences * output.context, output.context);
    let mut text = format!(
        "{}: perplexity {:.4}, nll {:.5} (+/- {:.5}) nats per token, {tokens} tokens in contexts of {context}\n",
        output.model, output.perplexity, output.nll, output.nll_se
    );
    by_position("original", &output.by_position).iter().for_each(|line| text.push_str(&format!("{line}\n")));
    benchmarks("original", &output.benchmarks).iter().for_each(|line| text.push_str(&format!("{line}\n")));
    text.push_str(&format!("results: {}\n", output.artifact.display()));
    text
}
