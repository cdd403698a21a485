//! `waterfill pack` and `waterfill unpack`.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use waterfill_checkpoint::delta;
use waterfill_checkpoint::pack::{self, OnBytes, PackSummary};
use waterfill_pipeline::{Console, Mode};
use waterfill_store::Progress;

use super::delta::left_out;
use super::show::show;
use crate::arguments::Arguments;

/// Packs a safetensors file or a directory without loss.
pub fn execute(arguments: &Arguments, from: &Path, to: &Path, console: &Console) -> Result<()> {
    // Packed, and read back.
    let summary = with_progress("pack", 2 * bytes_of(from), console, |on_bytes| Ok(pack::pack(from, to, on_bytes)?))?;
    let PackSummary { original, packed, elements, .. } = summary;
    console.finish("");
    let share = packed as f64 * 100.0 / original.max(1) as f64;
    let bits = packed as f64 * 8.0 / elements.max(1) as f64;
    let text = format!(
        "{}: {packed} of {original} bytes, {share:.2} %, {bits:.3} bits for each of {elements} elements",
        to.display()
    );
    let equal = match summary.equal {
        0 => String::new(),
        equal => format!("; {equal} bytes are equal to others"),
    };
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::json!({"packed": text + &equal, "left_out": summary.left_out})),
        _ => show(arguments, &(text + &equal + &left_out(&summary.left_out)), "packed")?,
    }
    Ok(())
}

/// Restores what was packed.
pub fn execute_unpack(arguments: &Arguments, from: &Path, to: &Path, console: &Console) -> Result<()> {
    let summary = with_progress("unpack", bytes_of(from), console, |on_bytes| Ok(pack::unpack(from, to, on_bytes)?))?;
    console.finish("");
    let files = summary.files.map_or(String::new(), |files| format!(" in {files} files"));
    show(arguments, &format!("{}: {} bytes{files}, as before packing", to.display(), summary.original), "unpacked")
}

/// Bytes of a file, or of all files of a directory.
fn bytes_of(path: &Path) -> u64 {
    match path.is_dir() {
        true => delta::bytes_of(path).unwrap_or(0),
        false => path.metadata().map_or(0, |m| m.len()),
    }
}

fn with_progress<T>(name: &str, bytes: u64, console: &Console, work: impl FnOnce(OnBytes) -> Result<T>) -> Result<T> {
    console.start(name, bytes);
    let shown = AtomicU64::new(0);
    work(&|done| console.advance(done.saturating_sub(shown.fetch_max(done, Ordering::Relaxed))))
}
