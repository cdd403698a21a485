//! `waterfill delta` and `waterfill apply`.

use std::path::Path;

use anyhow::Result;
use waterfill_checkpoint::delta::{self, Coders, DeltaSummary, LeftOut};
use waterfill_checkpoint::pack::OnBytes;
use waterfill_pipeline::{Console, Context, DeltaOutput, Mode, lossy_delta};
use waterfill_quantize::find_factors;
use waterfill_store::{Progress, Store};

use super::show::{load, show, show_figures};
use crate::arguments::Arguments;

/// Writes a delta without loss.
pub fn execute(arguments: &Arguments, base: &Path, fine_tune: &Path, out: &Path, console: &Console) -> Result<()> {
    let s = write_delta(base, fine_tune, out, console)?;
    console.finish("");
    let share = s.delta as f64 * 100.0 / s.fine_tune.max(1) as f64;
    let bits = s.delta as f64 * 8.0 / s.elements.max(1) as f64;
    let (out, delta, whole, elements, tensors) = (out.display(), s.delta, s.fine_tune, s.elements, s.tensors);
    let text = format!(
        "{out}: {delta} of {whole} bytes, {share:.2} %, {bits:.3} bits for each of {elements} elements; {tensors}"
    );
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::json!({"delta": text, "left_out": s.left_out})),
        _ => show(arguments, &(text + &left_out(&s.left_out)), "delta")?,
    }
    Ok(())
}

/// A line for each thing that is not kept.
pub(super) fn left_out(all: &[LeftOut]) -> String {
    all.iter().map(|LeftOut { name, reason }| format!("\nleft out: {name}, {reason}")).collect()
}

/// Writes a delta with loss, at the one goal of a configuration.
pub fn execute_lossy(
    arguments: &Arguments,
    base: &Path,
    fine_tune: &Path,
    out: &Path,
    (file, console): (&Path, &Console),
) -> Result<()> {
    let mut config = load(file, console)?;
    config.model = format!("path:{}", fine_tune.display());
    let context = Context::open(&config, &Store::new(&config.store), "cpu", console)?;
    let found = lossy_delta(&context, base, out)?;
    console.finish("");
    show_figures(arguments, &found, render_lossy)
}

/// Restores a fine-tune.
pub fn execute_apply(arguments: &Arguments, base: &Path, dir: &Path, out: &Path, console: &Console) -> Result<()> {
    // A fine-tune is about as large as its base.
    let s = in_parts("apply", delta::bytes_of(base)?, console, |on_bytes| Ok(delta::apply(base, dir, out, on_bytes)?))?;
    console.finish("");
    show(arguments, &format!("{}: {} bytes, digests match", out.display(), s.fine_tune), "applied")
}

/// Writes the changes of the directory `fine_tune` from `base` into `out`.
pub fn write_delta(base: &Path, fine_tune: &Path, out: &Path, console: &Console) -> Result<DeltaSummary> {
    let coders = Coders { factors: Some(&find_factors), ..Coders::default() };
    // Coded, and read back.
    let bytes = 2 * delta::bytes_of(fine_tune)?;
    in_parts("delta", bytes, console, |on_bytes| Ok(delta::delta_with(base, fine_tune, out, &coders, on_bytes)?))
}

/// Progress over bytes.
fn in_parts<T>(name: &str, bytes: u64, console: &Console, work: impl FnOnce(OnBytes) -> Result<T>) -> Result<T> {
    console.start(name, bytes);
    work(&|bytes| console.advance(bytes))
}

/// A delta with loss.
fn render_lossy(d: &DeltaOutput) -> String {
    format!(
        "{} bytes, {:.3} bits for each weight; {}\n\
         KL(fine-tune || restored) {:.2e} ± {:.2e}, of the base {:.2e}; perplexity {:.3} for {:.3}{}\n",
        d.bytes,
        d.bits_per_weight,
        d.tensors,
        d.kl,
        d.kl_se,
        d.base_kl,
        d.perplexity[1],
        d.perplexity[0],
        left_out(&d.left_out)
    )
}
