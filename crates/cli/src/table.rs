//! Results for people.

use std::fmt::Write;

use waterfill_bench::{CalibrationBench, LoadRow, MomentsBench, QuantizerBench, RotationBench};
use waterfill_pipeline::{
    Attempt, Band, BenchmarkOutput, DryRun, ExportOutput, Exported, LossyDelta, OriginalOutput, PlannedStage,
    PointOutput, RunOutput, Share, SweepOutput, TrainOutput,
};
use waterfill_runtime::{Checked, Runtime, Written};

const HEADS: [&str; 11] =
    ["lambda", "bytes", "bits/w", "linear", "memory", "KL", "± se", "predicted", "ppl", "top-1 %", "acc %"];

/// Aligned columns, then the directories.
pub fn render(output: &RunOutput) -> String {
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
    output.points.iter().flat_map(closed_loop).for_each(&mut line);
    let base = output.base.iter().map(|b| ("original".to_string(), &b.benchmarks, &b.by_position));
    let tuned = output.points.iter().map(|p| (format!("{:.2e}", p.lambda), &p.benchmarks, &p.by_position));
    for (name, answered, bands) in base.chain(tuned) {
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
        line(format!("tuned checkpoint, {bits:.2} bits per weight: {}", checkpoint.display()));
    }
    text
}

/// All allocations of a closed loop.
fn closed_loop(point: &PointOutput) -> Vec<String> {
    let one = |a: &Attempt| {
        let kl = a.kl.map_or(String::new(), |kl| format!(", evaluated {:.2e} ± {:.0e}", kl.mean, kl.se));
        format!(
            "closed loop, {:7} allocation: {} bytes, KL on held-out text {:.2e} ± {:.0e}{kl}{}",
            a.allocated.name(),
            a.bytes,
            a.held_out.mean,
            a.held_out.se,
            if a.kept { ", kept" } else { "" }
        )
    };
    point.closed_loop.iter().map(one).collect()
}

/// Whether there is more than the accuracy that tables have.
fn tells_more(benchmarks: &[BenchmarkOutput]) -> bool {
    benchmarks.len() > 1 || benchmarks.iter().any(|b| b.result.other_way.is_some() || !b.result.groups.is_empty())
}

/// Figures by position; of a tuned checkpoint, beside the original's.
fn by_position(name: &str, bands: &[Band]) -> Vec<String> {
    let band = |b: &Band| {
        let t = &b.text;
        let changed = match name {
            "original" => String::new(),
            _ => format!(
                ", KL {:.5} ± {:.5}, nll {:+.4} ± {:.4}",
                t.kl.mean, t.kl.se, t.nll_change.mean, t.nll_change.se
            ),
        };
        format!("{name}: positions {:>5} to {:>5}: perplexity {:.3}{changed}", b.from, b.to, t.perplexity)
    };
    bands.iter().map(band).collect()
}

/// Accuracies with their 95 % intervals; of a tuned checkpoint, changes too.
fn benchmarks(name: &str, benchmarks: &[BenchmarkOutput]) -> Vec<String> {
    let percent = |s: &Share| {
        format!("{:5.1} % ({:.1} to {:.1})", 100.0 * s.accuracy, 100.0 * s.interval.0, 100.0 * s.interval.1)
    };
    let mut lines = Vec::new();
    for b in benchmarks {
        let r = &b.result;
        let mut line = format!("{name}: {:12}{} of {} questions", b.task.name(), percent(&r.all), r.all.questions);
        if let (Some(way), Some(share)) = (b.task.other_way(), &r.other_way) {
            line += &format!(", {way} {}", percent(share));
        }
        if name != "original" {
            line += &format!(", change {:+.2} ± {:.2} points", 100.0 * b.change.mean, 100.0 * b.change.se);
        }
        if r.truncated > 0 {
            line += &format!(", {} lost their beginning", r.truncated);
        }
        if r.skipped > 0 {
            line += &format!(", {} longer than the context left out", r.skipped);
        }
        lines.push(line);
        lines
            .extend(r.groups.iter().map(|(group, s)| format!("{name}:   {group:15}{} of {}", percent(s), s.questions)));
    }
    lines
}

fn row(cells: &[String; 11]) -> String {
    let (first, others) = (&cells[0], &cells[1..]);
    format!("{first:>14}") + &others.iter().map(|c| format!("{c:>10}")).collect::<String>()
}

fn cells(p: &PointOutput) -> [String; 11] {
    let fixed = |v: Option<f64>, digits: usize| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
    let small = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.2e}"));
    [
        match p.layers {
            Some(l) => format!("{}{}/{} {:.1e}", if l.whole { "" } else { "<" }, l.used, l.of, p.lambda),
            None => format!("{:.2e}", p.lambda),
        },
        p.bytes.map_or("-".into(), |b| b.to_string()),
        fixed(p.bits_per_weight, 3),
        fixed(p.linear_bits_per_weight, 3),
        fixed(Some(p.resident_bits_per_weight), 3),
        small(p.kl),
        small(p.kl_se),
        small(p.predicted_kl.or(Some(p.predicted_loss))),
        fixed(p.perplexity, 3),
        fixed(p.top1.map(|v| v * 100.0), 2),
        fixed(p.accuracy.map(|v| v * 100.0), 1),
    ]
}

/// A delta with loss.
pub fn render_lossy_delta(d: &LossyDelta) -> String {
    format!(
        "{} bytes, {:.3} bits for each weight; {}\n\
         KL(fine-tune || restored) {:.2e} ± {:.2e}, of the base {:.2e}; perplexity {:.3} for {:.3}\n",
        d.bytes, d.bits_per_weight, d.tensors, d.kl, d.kl_se, d.base_kl, d.perplexity[1], d.perplexity[0]
    )
}

/// Seconds to the first token.
pub fn render_load(rows: &[LoadRow]) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("writing to a string");
    let heads = ["read alone, ms", "to first token, ms", "files in cache, ms", "of it loading, ms"];
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

/// Exported files with what they lose, and weights by type.
pub fn render_export(output: &ExportOutput) -> String {
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

/// What an export of one tuned checkpoint has become.
pub fn render_exported(exported: &Exported) -> String {
    format!("{} bytes, {:.3} bits/w  {}\n", exported.bytes, exported.bits_per_weight, shares(&exported.types))
}

/// Shares of weights by type.
fn shares(types: &std::collections::BTreeMap<String, u64>) -> String {
    let total: u64 = types.values().sum();
    let share = |(name, &n): (&String, &u64)| format!("{name} {:.0} %", n as f64 * 100.0 / total.max(1) as f64);
    types.iter().map(share).collect::<Vec<_>>().join(", ")
}

/// All points of all runs, then where things are and what failed.
pub fn render_sweep(output: &SweepOutput) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{}", s.trim_end()).expect("writing to a string");
    let width = output.runs.iter().map(|r| r.label.chars().count()).max().unwrap_or(0).max(3);
    line(format!("{:width$}{}{:>10}{:>10}", "run", row(&HEADS.map(String::from)), "at KL %", "at loss %"));
    let percent = |ratio: Option<f64>| ratio.map_or("-".to_string(), |r| format!("{:+.2}", (r - 1.0) * 100.0));
    for one in &output.runs {
        let points = one.output.iter().flat_map(|o| &o.points).enumerate();
        for (n, point) in points {
            let against = one.against_first.get(n);
            let [kl, loss] = [against.and_then(|a| a.at_kl), against.and_then(|a| a.at_loss)].map(percent);
            line(format!("{:width$}{}{kl:>10}{loss:>10}", one.label, row(&cells(point))));
        }
    }
    if output.runs.iter().any(|r| !r.against_first.is_empty()) {
        line(
            "at KL, at loss: bytes more or less than the first run of the model takes for the same KL or decoded loss"
                .into(),
        );
    }
    for one in &output.runs {
        if let Some(dir) = one.output.as_ref().and_then(|o| o.artifacts.get("report")) {
            line(format!("{}: {}", one.label, dir.join("report.html").display()));
        }
    }
    output.figures.iter().for_each(|figure| line(format!("figure: {}", figure.display())));
    output.page.iter().for_each(|page| line(format!("page: {}", page.display())));
    if !output.reach.is_empty() {
        line(format!("{:24}{:>12}{:>12}{:>12}{:>8}", "peer", "KL", "its bytes", "ours", "ratio"));
    }
    for reach in &output.reach {
        let ours = reach.our_bytes.map_or("-".to_string(), |b| b.to_string());
        let ratio = reach.ratio.map_or("-".to_string(), |r| format!("{r:.3}"));
        line(format!("{:24}{:>12.6}{:>12}{ours:>12}{ratio:>8}", reach.peer, reach.peer_kl, reach.peer_bytes));
    }
    for t in &output.targets {
        let value = t.value.map_or("nothing".to_string(), |v| format!("{v:.4}"));
        let limits = if t.limits().is_empty() { String::new() } else { format!(", {}", t.limits()) };
        line(format!("{:8} {}: {value}{limits} ({})", t.outcome(), t.name, t.detail));
    }
    let failed: Vec<_> = output.runs.iter().filter_map(|r| Some((&r.label, r.error.as_ref()?))).collect();
    if !failed.is_empty() {
        line(format!("{} of {} runs failed:", failed.len(), output.runs.len()));
        failed.iter().for_each(|(label, error)| line(format!("  {label}: {error}")));
    }
    text
}

/// What every run would do.
pub fn render_plan(planned: &DryRun) -> String {
    let mut text = String::new();
    let mut line = |s: String| writeln!(text, "{s}").expect("writing to a string");
    for one in &planned.runs {
        line(format!("{} (about {:.1} GB)", one.label, one.memory_bytes as f64 / 1e9));
        if let Some(error) = &one.error {
            line(format!("  cannot run: {error}"));
        }
        let state = |s: &PlannedStage| match (s.cached, s.shared) {
            (true, _) => "in the store".to_string(),
            (_, true) => "computed by an earlier run".to_string(),
            _ => format!("to compute, about {:.1} s", s.seconds),
        };
        one.stages.iter().for_each(|s| line(format!("  {:32}{}", s.stage, state(s))));
    }
    let count = |f: fn(&PlannedStage) -> bool| planned.runs.iter().flat_map(|r| &r.stages).filter(|s| f(s)).count();
    let basis = if planned.rough { "a guess: nothing like it was measured yet" } else { "from earlier runs" };
    line(format!(
        "{} runs: {} stages in the store, {} shared, {} to compute; about {:.0} s ({basis})",
        planned.runs.len(),
        count(|s| s.cached),
        count(|s| s.shared),
        count(|s| !s.cached && !s.shared),
        planned.seconds
    ));
    text
}

/// A trained model in words.
pub fn render_training(output: &TrainOutput) -> String {
    let s = &output.summary;
    format!(
        "{} weights, {} tokens: perplexity {:.3} on held-out text (unigram {:.1}, bigram {:.2}), answers {:.1} %\n\
         model: {}\ntexts and questions: {}\n",
        s.weights,
        s.tokens,
        s.perplexity,
        s.unigram_perplexity,
        s.bigram_perplexity,
        s.answers * 100.0,
        output.model.display(),
        output.data.display()
    )
}

/// Speed and size of the codec.
pub fn render_bench(b: &waterfill_bench::CodecBench) -> String {
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
pub fn render_entropy(b: &waterfill_bench::EntropyBench) -> String {
    let mut text = format!("{} levels\n{:<28}{:>16}{:>16}\n", b.levels, "", "bits a level", "decoded, M/s");
    for c in &b.codings {
        text += &format!("{:<28}{:>16.4}{:>16.1}\n", c.name, c.bits_per_level, c.levels_per_second / 1e6);
    }
    text
}

/// Sizes of a file in several packings.
pub fn render_packing(b: &waterfill_bench::PackBench) -> String {
    let row = |what: &str, bytes: f64| {
        let (share, bits) = (bytes * 100.0 / b.original as f64, bytes * 8.0 / b.elements.max(1) as f64);
        format!("{what:<34}{bytes:>14.0}{share:>9.2} %{bits:>9.3} bits an element\n")
    };
    row("original", b.original as f64)
        + &row("waterfill pack", b.packed as f64)
        + &row("entropy of exponents and the rest", b.entropy)
        + &row("zstd -19", b.zstd19 as f64)
        + &row("split by byte, zstd -19", b.byte_split_zstd19 as f64)
}

/// The original alone.
pub fn render_original(output: &OriginalOutput) -> String {
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

/// Gradients of a block.
pub fn render_calibration(b: &CalibrationBench) -> String {
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
pub fn render_quantizer(b: &QuantizerBench) -> String {
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

/// What second moments are worth.
pub fn render_moments(b: &MomentsBench) -> String {
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

pub fn render_rotation(b: &RotationBench) -> String {
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

/// What a text took.
pub fn render_generated(runtime: &Runtime, written: &Written) -> String {
    format!(
        "{} tokens at {:.1} a second, {} of the prompt at {:.0} a second; linear layers {:.2} MB, {:.2} bits a weight; \
         loaded in {:.1} s",
        written.tokens,
        written.rate,
        written.prompt_tokens,
        written.prompt_rate,
        runtime.linear_bytes as f64 / 1e6,
        runtime.linear_bytes as f64 * 8.0 / runtime.linear_weights.max(1) as f64,
        runtime.load_seconds
    )
}

/// The same as an object.
pub fn generated(runtime: &Runtime, written: &Written) -> serde_json::Value {
    let mut object = serde_json::to_value(written).expect("plain data");
    object["linear_bytes"] = runtime.linear_bytes.into();
    object["linear_weights"] = runtime.linear_weights.into();
    object["load_seconds"] = runtime.load_seconds.into();
    object
}

/// Products and texts of both forms.
pub fn render_checked(c: &Checked) -> String {
    let worst = c.layers.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    let weights: u64 = c.layers.iter().map(|l| l.weights).sum();
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
    let bytes = [c.linear_bytes[0], 2 * c.linear_bytes[1]];
    for (n, form) in ["packed", "dense f32"].into_iter().enumerate() {
        line(format!(
            "{form:<10}{:>12.2}{:>14.2}{:>12.2}{:>16.0}{:>12.1}",
            bytes[n] as f64 / 1e6,
            bytes[n] as f64 * 8.0 / weights.max(1) as f64,
            c.load_seconds[n],
            c.written[n].prompt_rate,
            c.written[n].rate
        ));
    }
    line(format!("same text: {}", if c.written[0].text == c.written[1].text { "yes" } else { "no" }));
    text
}

/// Coded differences.
pub fn render_difference(rows: &[waterfill_bench::DifferenceRow]) -> String {
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
