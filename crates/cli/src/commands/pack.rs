//! `waterfill pack` and `waterfill unpack`.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use waterfill_checkpoint::pack::{self, OnBytes, PackSummary};
use waterfill_pipeline::Console;
use waterfill_store::Progress;

use super::show::show;
use crate::arguments::Arguments;

/// Packs a safetensors file without loss.
pub fn execute(arguments: &Arguments, from: &Path, to: &Path, console: &Console) -> Result<()> {
    let PackSummary { original, packed, elements } =
        // Packed, and read back.
        with_progress("pack", 2 * bytes_of(from), console, |on_bytes| Ok(pack::pack(from, to, on_bytes)?))?;
    console.finish("");
    let share = packed as f64 * 100.0 / original.max(1) as f64;
    let bits = packed as f64 * 8.0 / elements.max(1) as f64;
    let text = format!(
        "{}: {packed} of {original} bytes, {share:.2} %, {bits:.3} bits for each of {elements} elements",
        to.display()
    );
    show(arguments, &text, "packed")
}

/// Restores a packed file.
pub fn execute_unpack(arguments: &Arguments, from: &Path, to: &Path, console: &Console) -> Result<()> {
    let summary = with_progress("unpack", bytes_of(from), console, |on_bytes| Ok(pack::unpack(from, to, on_bytes)?))?;
    console.finish("");
    show(arguments, &format!("{}: {} bytes, as before packing", to.display(), summary.original), "unpacked")
}

fn bytes_of(file: &Path) -> u64 {
    file.metadata().map_or(0, |m| m.len())
}

fn with_progress<T>(name: &str, bytes: u64, console: &Console, work: impl FnOnce(OnBytes) -> Result<T>) -> Result<T> {
    console.start(name, bytes);
    let shown = AtomicU64::new(0);
    work(&|done| console.advance(done.saturating_sub(shown.fetch_max(done, Ordering::Relaxed))))
}
