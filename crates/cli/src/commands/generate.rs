//! `waterfill generate` and `waterfill serve-check`.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use waterfill_pipeline::Mode;
use waterfill_runtime::{Checked, Form, Runtime, Written};

use super::show::show_figures;
use crate::arguments::Arguments;

/// Continues a text.
pub fn execute(arguments: &Arguments, checkpoint: &Path, prompt: &str, tokens: usize, form: Form) -> Result<()> {
    let runtime = Runtime::open(checkpoint, form)?;
    let written = runtime.write(prompt, tokens)?;
    match arguments.mode() {
        Mode::Json => println!("{}", object(&runtime, &written)),
        mode => {
            println!("{prompt}{}", written.text);
            if mode != Mode::Quiet {
                eprintln!("{}", render(&runtime, &written));
            }
        }
    }
    Ok(())
}

/// Compares products from packed tiles with dense ones.
pub fn execute_check(arguments: &Arguments, checkpoint: &Path, prompt: &str, tokens: usize) -> Result<()> {
    show_figures(arguments, &waterfill_runtime::check(checkpoint, prompt, tokens)?, render_checked)
}

/// Time and memory of a text.
fn render(runtime: &Runtime, written: &Written) -> String {
    format!(
        "{} tokens at {:.1} a second, {} of the prompt at {:.0} a second; weights {:.2} MB, {:.2} bits a weight, \
         linear layers {:.2} bits; loaded in {:.1} s",
        written.tokens,
        written.rate,
        written.prompt_tokens,
        written.prompt_rate,
        runtime.resident_bytes as f64 / 1e6,
        runtime.resident_bytes as f64 * 8.0 / runtime.weights.max(1) as f64,
        runtime.linear_bytes as f64 * 8.0 / runtime.linear_weights.max(1) as f64,
        runtime.load_seconds
    )
}

/// The same as an object.
fn object(runtime: &Runtime, written: &Written) -> serde_json::Value {
    let mut object = serde_json::to_value(written).expect("plain data");
    object["linear_bytes"] = runtime.linear_bytes.into();
    object["resident_bytes"] = runtime.resident_bytes.into();
    object["weights"] = runtime.weights.into();
    object["linear_weights"] = runtime.linear_weights.into();
    object["load_seconds"] = runtime.load_seconds.into();
    object
}

/// Products, and texts of every form.
fn render_checked(c: &Checked) -> String {
    let worst = c.layers.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("writing to a string");
    if let Some(worst) = worst {
        line(format!(
            "{} linear layers: products from tiles are off by at most {:.1e} of their size ({})",
            c.layers.len(),
            worst.error,
            worst.name
        ));
    }
    line(format!("KL of the token after the prompt, dense || packed: {:.2e} nats", c.kl));
    line(format!(
        "{:<10}{:>12}{:>14}{:>12}{:>16}{:>12}",
        "form", "MB", "bits/weight", "loaded, s", "prompt tok/s", "tok/s"
    ));
    for (n, form) in ["packed", "dense f32", "coded"].into_iter().enumerate() {
        line(format!(
            "{form:<10}{:>12.2}{:>14.2}{:>12.2}{:>16.0}{:>12.1}",
            c.resident_bytes[n] as f64 / 1e6,
            c.resident_bytes[n] as f64 * 8.0 / c.weights.max(1) as f64,
            c.load_seconds[n],
            c.written[n].prompt_rate,
            c.written[n].rate
        ));
    }
    let same = c.written.iter().all(|written| written.text == c.written[0].text);
    line(format!("same text: {}", if same { "yes" } else { "no" }));
    text
}
