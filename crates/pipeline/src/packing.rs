//! Packing files without loss, with progress.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use waterfill_checkpoint::delta::{self as deltas, Coders, DeltaSummary};
use waterfill_checkpoint::pack::{self, OnBytes, PackSummary};
use waterfill_store::Progress;

use crate::console::Console;
use crate::error::Result;
use waterfill_quantize::find_factors;

/// Packs the safetensors file `from` into `to`; returns sizes in words.
///
/// # Errors
/// Files that cannot be read or written, files that are not safetensors.
pub fn pack(from: &Path, to: &Path, console: &Console) -> Result<String> {
    let summary = with_progress("pack", from, console, |on_bytes| Ok(pack::pack(from, to, on_bytes)?))?;
    let PackSummary { original, packed, elements } = summary;
    let share = packed as f64 * 100.0 / original.max(1) as f64;
    let bits = packed as f64 * 8.0 / elements.max(1) as f64;
    Ok(format!(
        "{}: {packed} of {original} bytes, {share:.2} %, {bits:.3} bits for each of {elements} elements",
        to.display()
    ))
}

/// Restores what [`pack`] packed.
///
/// # Errors
/// Damage, files that cannot be read or written.
pub fn unpack(from: &Path, to: &Path, console: &Console) -> Result<String> {
    let summary = with_progress("unpack", from, console, |on_bytes| Ok(pack::unpack(from, to, on_bytes)?))?;
    Ok(format!("{}: {} bytes, as before packing", to.display(), summary.original))
}

/// Writes what the directory `tuned` has changed from `base` into `out`; returns sizes.
///
/// # Errors
/// Files that cannot be read or written.
pub fn write_delta(base: &Path, tuned: &Path, out: &Path, console: &Console) -> Result<DeltaSummary> {
    let coders = Coders { factors: Some(&find_factors), ..Coders::default() };
    in_parts("delta", tuned, console, |on_bytes| Ok(deltas::delta_with(base, tuned, out, &coders, on_bytes)?))
}

/// As [`write_delta`], with sizes in words.
///
/// # Errors
/// Files that cannot be read or written.
pub fn delta(base: &Path, tuned: &Path, out: &Path, console: &Console) -> Result<String> {
    let s = write_delta(base, tuned, out, console)?;
    let share = s.delta as f64 * 100.0 / s.fine_tune.max(1) as f64;
    let bits = s.delta as f64 * 8.0 / s.elements.max(1) as f64;
    let (out, delta, tuned, elements, tensors) = (out.display(), s.delta, s.fine_tune, s.elements, s.tensors);
    Ok(format!(
        "{out}: {delta} of {tuned} bytes, {share:.2} %, {bits:.3} bits for each of {elements} elements; {tensors}"
    ))
}

/// Restores what [`delta`] was made from.
///
/// # Errors
/// Another base, damage, files that cannot be read or written.
pub fn apply(base: &Path, dir: &Path, out: &Path, console: &Console) -> Result<String> {
    let s = in_parts("apply", dir, console, |on_bytes| Ok(deltas::apply(base, dir, out, on_bytes)?))?;
    Ok(format!("{}: {} bytes, digests match", out.display(), s.fine_tune))
}

/// Progress of a directory, told in bytes of its parts.
fn in_parts<T>(name: &str, dir: &Path, console: &Console, work: impl FnOnce(OnBytes) -> Result<T>) -> Result<T> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    console.start(name, files.filter_map(|f| Some(f.metadata().ok()?.len())).sum());
    work(&|bytes| console.advance(bytes))
}

fn with_progress<T>(name: &str, from: &Path, console: &Console, work: impl FnOnce(OnBytes) -> Result<T>) -> Result<T> {
    console.start(name, from.metadata().map_or(0, |m| m.len()));
    let shown = AtomicU64::new(0);
    work(&|done| console.advance(done.saturating_sub(shown.fetch_max(done, Ordering::Relaxed))))
}
