//! Packing files without loss, with progress.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use waterfill_artifacts::Progress;
use waterfill_checkpoint::pack::{self, OnBytes, PackSummary};

use crate::console::Console;
use crate::error::Result;

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

fn with_progress<T>(name: &str, from: &Path, console: &Console, work: impl FnOnce(OnBytes) -> Result<T>) -> Result<T> {
    console.start(name, from.metadata().map_or(0, |m| m.len()));
    let shown = AtomicU64::new(0);
    work(&|done| console.advance(done.saturating_sub(shown.fetch_max(done, Ordering::Relaxed))))
}
