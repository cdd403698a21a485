//! `waterfill bench`: speed and size.

use std::fmt::Write;

use anyhow::{Context as _, Result};
use waterfill_bench as bench;
use waterfill_bench::{CalibrationBench, LoadRow, MomentsBench, QuantizerBench, RotationBench};
use waterfill_pipeline::Console;

use super::show::show_figures;
use crate::arguments::{Arguments, Bench};
use crate::measure::Measured;

/// Measures and prints.
pub fn execute(arguments: &Arguments, what: &Bench, console: &Console) -> Result<()> {
    match what {
        Bench::Difference { side } => {
            show_figures(arguments, &bench::bench_difference((*side).into())?, |rows| render_difference(rows))
        }
        Bench::Codec { side, repeats } => {
            show_figures(arguments, &bench::bench_codec((*side).into(), (*repeats).into())?, render_codec)
        }
        Bench::Quantizer { side, repeats } => {
            show_figures(arguments, &bench::bench_quantizer((*side).into(), (*repeats).into())?, render_quantizer)
        }
        Bench::Calibration { checkpoint, tokens, repeats } => {
            let figures = bench::bench_calibration(checkpoint, (*tokens).into(), (*repeats).into())?;
            show_figures(arguments, &figures, render_calibration)
        }
        Bench::Moments { calibration } => show_figures(arguments, &bench::bench_moments(calibration)?, render_moments),
        Bench::Rotation { checkpoint, calibration, allocation } => {
            let figures = bench::bench_rotation(checkpoint, calibration, allocation)?;
            show_figures(arguments, &figures, render_rotation)
        }
        Bench::Load { checkpoint, prompt, once: Some(source), .. } => {
            let source = serde_json::from_value(source.as_str().into()).context("--once")?;
            println!("{}", serde_json::to_string(&bench::start_once(source, checkpoint, prompt)?)?);
            Ok(())
        }
        Bench::Load { checkpoint, prompt, repeats, once: None } => {
            let measured = Measured::new(arguments.threads)?;
            let rows = measured.load(checkpoint, prompt, (*repeats).into(), console)?;
            console.finish("");
            show_figures(arguments, &rows, |rows| render_load(rows))
        }
        Bench::Pack { checkpoint } => show_figures(arguments, &bench::bench_pack(checkpoint)?, render_packing),
        Bench::Entropy { checkpoint } => show_figures(arguments, &bench::bench_entropy(checkpoint)?, render_entropy),
    }
}

/// Seconds to the first token.
fn render_load(rows: &[LoadRow]) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("writing to a string");
    let heads = ["read alone, ms", "to first token, ms", "files in cache, ms", "of which loading, ms"];
    line(format!("{:14}{:>12}{}{:>10}", "", "bytes", heads.map(|h| format!("{h:>26}")).concat(), "peak MB"));
    for row in rows {
        let cell = |[median, least, most]: [f64; 3]| {
            format!("{:>26}", format!("{:.1} ({:.1} to {:.1})", 1e3 * median, 1e3 * least, 1e3 * most))
        };
        let cells = [row.read, row.cold, row.warm, row.load].map(cell).concat();
        line(format!("{:14}{:>12}{cells}{:>10.0}", row.source.name(), row.bytes, row.peak_bytes as f64 / 1e6));
    }
    text
}

/// Speed and size of the codec.
fn render_codec(b: &waterfill_bench::CodecBench) -> String {
    let row = |what: &str, value: String| format!("{what:<58}{value:>16}\n");
    let ratio = |r: f64| format!("{r:.2} x");
    let megabytes = |r: f64| format!("{:.0} MB/s", r / 1e6);
    let weights = |r: f64| format!("{:.2} M/s", r / 1e6);
    let mut text = String::new();
    text += &row("lossless, Gaussian bf16, bits per weight", format!("{:.4}", b.lossless_gaussian_bits_per_weight));
    text += &row("  zstd -3 on the same bytes", format!("{:.4}", b.zstd3_bits_per_weight));
    text += &row("lossless decode, bf16", megabytes(b.lossless_decode_bytes_per_second));
    text += &row("  over zstd -3", ratio(b.lossless_decode_vs_zstd3));
    text += &row("lossless encode, bf16", megabytes(b.lossless_encode_bytes_per_second));
    text += &row("  over zstd -3", ratio(b.lossless_encode_vs_zstd3));
    text += &row("levels of about four bits to bf16, weights", weights(b.level_decode_weights_per_second));
    text += &row("  every tile transformed", weights(b.transform_decode_weights_per_second));
    text += &row("full search encode, weights", weights(b.search_encode_weights_per_second));
    text += &row("decode with two threads over one", ratio(b.two_thread_speedup));
    text += &row("one slice alone over its share of the whole", ratio(b.random_access_overhead));
    text += "medians; slowest and fastest over the median:\n";
    for (name, [slowest, fastest]) in &b.spread {
        text += &row(&format!("  {name}"), format!("{slowest:.3} {fastest:.3}"));
    }
    text
}

/// Ways of coding levels.
fn render_entropy(b: &waterfill_bench::EntropyBench) -> String {
    let mut text = format!("{} levels\n{:<28}{:>16}{:>16}\n", b.levels, "", "bits a level", "decoded, M/s");
    for c in &b.codings {
        text += &format!("{:<28}{:>16.4}{:>16.1}\n", c.name, c.bits_per_level, c.levels_per_second / 1e6);
    }
    text
}

/// Sizes of a file in several packings.
fn render_packing(b: &waterfill_bench::PackBench) -> String {
    let row = |what: &str, bytes: f64| {
        let (share, bits) = (bytes * 100.0 / b.original as f64, bytes * 8.0 / b.elements.max(1) as f64);
        format!("{what:<34}{bytes:>14.0}{share:>9.2} %{bits:>9.3} bits an element\n")
    };
    row("original", b.original as f64)
        + &row("waterfill pack", b.packed as f64)
        + &row("entropy of exponents and the rest", b.entropy)
        + &row("zstd -19", b.zstd19 as f64)
        + &row("split by byte, zstd -19", b.byte_split_zstd19 as f64)
        + "\nmatrices of linear layers treated, other tensors as they are:\n"
        + &b.structures.iter().map(|s| format!("{:<58}{:>9.3} bits an element\n", s.name, s.bits)).collect::<String>()
}

/// Gradients of a block.
fn render_calibration(b: &CalibrationBench) -> String {
    let spread = |[slow, fast]: [f64; 2]| format!("{:+.0} % {:+.0} %", 100.0 * (slow - 1.0), 100.0 * (fast - 1.0));
    format!(
        "vector-Jacobian product of a block of {} weights, {} contexts of {} tokens side by side:\n\
         ours    {:8.1} tokens/s ({}), {:.0} GFLOP/s\ncandle  {:8.1} tokens/s ({})\nratio   {:8.2}\n",
        b.block_weights,
        b.batches,
        b.tokens,
        b.tokens_per_second,
        spread(b.spread[0]),
        b.flops / 1e9,
        b.candle_tokens_per_second,
        spread(b.spread[1]),
        b.ratio
    )
}

/// Gaps to the Shannon bound, and speed.
fn render_quantizer(b: &QuantizerBench) -> String {
    let name = |states: usize| if states == 0 { "scalar".to_string() } else { format!("{states} states") };
    let mut text = format!("independent Gaussians, {0} x {0}, everything counted\n", b.side);
    for point in &b.gaussian {
        text.push_str(&format!(
            "{:10} {:6.3} bits per weight, {:.3} dB above the Shannon bound\n",
            name(point.states),
            point.bits_per_weight,
            point.gap_db
        ));
    }
    text.push_str(&format!(
        "error feedback on two cores {:.0} GFLOP/s ({:+.0} % {:+.0} %), matrix products alone {:.0}\n",
        b.feedback_gflops,
        100.0 * (b.feedback_spread[0] - 1.0),
        100.0 * (b.feedback_spread[1] - 1.0),
        b.product_gflops
    ));
    for speed in &b.speed {
        text.push_str(&format!(
            "{:10} over {:16} {:6.3} M weights a second on one core ({:+.0} % {:+.0} %), {:.2} times that on two\n",
            name(speed.states),
            if speed.rows { "columns and rows" } else { "columns" },
            speed.weights_per_second / 1e6,
            100.0 * (1.0 / speed.spread[1] - 1.0),
            100.0 * (1.0 / speed.spread[0] - 1.0),
            speed.two_thread_speedup
        ));
    }
    text
}

/// The value of second moments to error feedback.
fn render_moments(b: &MomentsBench) -> String {
    let mut text = format!(
        "error feedback is worth, in bits per weight, over {} second moments:\nall correlations        {:.4}\n\
         moved by half a step    {:.4} (at most {:.5} in one matrix)\n",
        b.matrices, b.full, b.moved, b.moved_most
    );
    for (side, worth) in b.blocks.iter().rev() {
        text.push_str(&format!("diagonal blocks of {side:4} {worth:.4}\n"));
    }
    for (name, worth) in &b.outputs {
        text.push_str(&format!("outputs: {name:40} {worth:.4}\n"));
    }
    text.push_str(&format!("{} bytes, as f32 matrices {}\n", b.bytes[0], b.bytes[1]));
    text
}

/// The cost of rotations and orders.
fn render_rotation(b: &RotationBench) -> String {
    let mut text = format!(
        "bits per weight that rotations and orders cost at equal loss (negative: save), {} matrices, {:.3} bits as they are\n\
         {:12} {:>8} {:>8} {:>8} {:>12} {:>14} {:>15}\n",
        b.matrices,
        b.bits_per_weight,
        "",
        "inputs",
        "outputs",
        "both",
        "rows strided",
        "largest inputs",
        "smallest inputs"
    );
    for (name, cost) in &b.cost {
        text.push_str(&format!(
            "{name:12} {:8.4} {:8.4} {:8.4} {:12.4} {:14.4} {:15.4}\n",
            cost.inputs, cost.outputs, cost.both, cost.reordered, cost.largest_first, cost.smallest_first
        ));
    }
    text.push_str(&format!("{} matrices would be smaller than reordered\n", b.savings.len()));
    b.savings.iter().for_each(|(name, bits)| text.push_str(&format!("  {name} {bits:.4}\n")));
    text
}

/// Coded differences.
fn render_difference(rows: &[waterfill_bench::DifferenceRow]) -> String {
    let mut text = format!(
        "{:<28}{:>10}{:>10}{:>10}{:>16}{:>18}\n",
        "change", "changed", "coded", "entropy", "XOR, zstd -19", "M weights/s, core"
    );
    for r in rows {
        let speed = format!("{:.0} and {:.0}", r.speed[0], r.speed[1]);
        writeln!(
            text,
            "{:<28}{:>9.2}%{:>10.4}{:>10.4}{:>16.3}{:>18}",
            r.change,
            100.0 * r.changed,
            r.coded,
            r.entropy,
            r.xor_zstd19,
            speed
        )
        .expect("writing to a string");
    }
    text
}
