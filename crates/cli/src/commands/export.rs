//! `waterfill export` and `waterfill decode`: files for other runtimes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context as _, Result};
use waterfill_checkpoint::{Checkpoint, QualityPrefix};
use waterfill_codec::Dtype;
use waterfill_pipeline::{
    Console, Context, ExportOutput, Exported, export_compressed, export_exact, export_gguf, write_recipes,
};
use waterfill_quantize::write_dense;

use super::run::configured;
use super::show::{show, show_figures};
use crate::arguments::{Arguments, ExportTarget, RunOptions};

/// Exports a checkpoint, or files at every goal of a configuration.
pub fn execute(
    arguments: &Arguments,
    path: &Path,
    to: ExportTarget,
    out: Option<&Path>,
    options: &RunOptions,
    console: &Console,
) -> Result<()> {
    if let ExportTarget::HfBf16 = to {
        let out = out.context("--to hf-bf16 needs --out, a directory to create")?;
        anyhow::ensure!(path.is_dir(), "{}: a file; --to hf-bf16 takes a compressed checkpoint", path.display());
        write_dense(&Checkpoint::open(path)?, out, Some(Dtype::Bf16), console)?;
        console.finish("");
        return show(arguments, &format!("dense checkpoint in {}", out.display()), "exported");
    }
    if let (ExportTarget::CompressedTensors, true) = (to, path.is_dir()) {
        let out = out.context("a compressed checkpoint --to compressed-tensors needs --out, a directory to create")?;
        let exported = export_exact(path, out, console)?;
        console.finish("");
        return show_figures(arguments, &exported, render_exported);
    }
    if path.is_dir() {
        anyhow::bail!("{}: a directory; types are chosen from a calibration: give a configuration", path.display());
    }
    let (config, store) = configured(path, options, console)?;
    let context = Context::open(&config, &store, &options.device, console)?;
    if let ExportTarget::LlamaQuantizeRecipe = to {
        let files =
            write_recipes(&context, out.context("--to llama-quantize-recipe needs --out, a directory for files")?)?;
        console.finish("");
        let lines: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
        return show(arguments, &lines.join("\n"), "exported");
    }
    let output = match to {
        ExportTarget::CompressedTensors => export_compressed(&context, out)?,
        _ => export_gguf(&context, out)?,
    };
    console.finish("");
    show_figures(arguments, &output, render)
}

/// Decodes a compressed checkpoint, or a prefix of it, to a dense directory.
pub fn execute_decode(
    arguments: &Arguments,
    (checkpoint, prefix): (&Path, QualityPrefix),
    out: &Path,
    dtype: Option<Dtype>,
    console: &Console,
) -> Result<()> {
    let source = Checkpoint::open_prefix(checkpoint, prefix)?;
    write_dense(&source, out, dtype, console)?;
    console.finish("");
    let (used, read) = (source.quality_layers(), source.bytes());
    let layers = if used > 1 { format!(" of {used} quality layers") } else { String::new() };
    show(arguments, &format!("dense checkpoint in {}, from {read} bytes{layers}", out.display()), "decoded")
}

/// Exported files with their loss, and weights by type.
fn render(output: &ExportOutput) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("writing to a string");
    let base = &output.base;
    line(format!("{}: original {:.4} nats per token, perplexity {:.3}", output.model, base.nll, base.perplexity));
    let heads = ["lambda", "bytes", "bits/w", "KL", "± se", "predicted", "ppl", "top-1 %"];
    line(heads.map(|h| format!("{h:>10}")).concat());
    for p in &output.points {
        let cells = [
            format!("{:.2e}", p.lambda),
            p.bytes.to_string(),
            format!("{:.3}", p.bits_per_weight),
            format!("{:.2e}", p.kl),
            format!("{:.2e}", p.kl_se),
            format!("{:.2e}", p.predicted_loss),
            format!("{:.3}", p.perplexity),
            format!("{:.2}", p.top1 * 100.0),
        ];
        line(cells.map(|c| format!("{c:>10}")).concat() + "  " + &shares(&p.types));
    }
    for path in output.points.iter().flat_map(|p| std::iter::once(&p.file).chain(&p.recipe)) {
        line(path.display().to_string());
    }
    text
}

/// The export of one compressed checkpoint.
fn render_exported(exported: &Exported) -> String {
    format!("{} bytes, {:.3} bits/w  {}\n", exported.bytes, exported.bits_per_weight, shares(&exported.types))
}

/// Shares of weights by type.
fn shares(types: &BTreeMap<String, u64>) -> String {
    let total: u64 = types.values().sum();
    let share = |(name, &n): (&String, &u64)| format!("{name} {:.0} %", n as f64 * 100.0 / total.max(1) as f64);
    types.iter().map(share).collect::<Vec<_>>().join(", ")
}
