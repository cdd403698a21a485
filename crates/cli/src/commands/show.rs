//! Output that every command shares: one object for programs, text or a table for people.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use waterfill_config::Config;
use waterfill_pipeline::{Console, Mode};
use waterfill_store::Progress;

use crate::arguments::Arguments;

/// Reads a configuration; old names are reported on the console.
pub fn load(path: &Path, console: &Console) -> Result<Config> {
    Ok(waterfill_config::load(path, &|note| console.note(note))?)
}

/// A table for people, or one object with all figures.
pub fn show_figures<T: Serialize + ?Sized>(arguments: &Arguments, figures: &T, render: fn(&T) -> String) -> Result<()> {
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::to_string(figures)?),
        _ => print!("{}", render(figures)),
    }
    Ok(())
}

/// Text for people, or one object with the same text.
pub fn show(arguments: &Arguments, text: &str, key: &str) -> Result<()> {
    match arguments.mode() {
        Mode::Json => println!("{}", serde_json::json!({ key: text })),
        Mode::Quiet if key != "text" => {}
        _ => println!("{text}"),
    }
    Ok(())
}
