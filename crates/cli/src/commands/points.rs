//! Points of runs as aligned columns.

use waterfill_evaluate::{Band, Share};
use waterfill_pipeline::{Attempt, BenchmarkOutput, PointOutput, PredictedKl};

/// Heads of the columns of [`cells`].
pub const HEADS: [&str; 11] =
    ["lambda", "bytes", "bits/w", "linear", "memory", "KL", "± se", "predicted", "ppl", "top-1 %", "acc %"];

/// One row.
pub fn row(cells: &[String; 11]) -> String {
    let (first, others) = (&cells[0], &cells[1..]);
    format!("{first:>14}") + &others.iter().map(|c| format!("{c:>10}")).collect::<String>()
}

/// The figures of a point.
pub fn cells(p: &PointOutput) -> [String; 11] {
    let fixed = |v: Option<f64>, digits: usize| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
    let small = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.2e}"));
    [
        match p.quality_layers {
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

/// KL that is predicted on each text, and a warning where predictions mean little.
pub fn predictions(point: &PointOutput) -> Vec<String> {
    let one = |p: &PredictedKl| {
        let [low, high] = p.interval;
        format!("{:.2e} ({low:.1e} to {high:.1e}) on text like {}", p.kl, p.text)
    };
    let texts: Vec<String> = point.predicted.iter().map(one).collect();
    let predicted = format!("lambda {:.2e}: predicted KL, 95 % intervals: {}", point.lambda, texts.join(", "));
    let beyond = point.beyond_quadratic.map(|block| {
        format!(
            "lambda {:.2e}: errors of this size leave the quadratic model in layer {block}; trust the measured KL",
            point.lambda
        )
    });
    (!texts.is_empty()).then_some(predicted).into_iter().chain(beyond).collect()
}

/// What floors cost.
pub fn floors(point: &PointOutput) -> Option<String> {
    let f = point.floors?;
    Some(format!(
        "lambda {:.2e}: floors give {} matrices {:.2} bits a weight more, which cost {:.1} times what they are worth (theory: {:.1})",
        point.lambda, f.matrices, f.bits, f.price_over_worth, f.expected
    ))
}

/// All allocations of a closed loop.
pub fn closed_loop(point: &PointOutput) -> Vec<String> {
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

/// Whether benchmarks have more than the accuracy in the columns.
pub fn tells_more(benchmarks: &[BenchmarkOutput]) -> bool {
    benchmarks.len() > 1 || benchmarks.iter().any(|b| b.result.other_way.is_some() || !b.result.groups.is_empty())
}

/// Figures by position; for a compressed checkpoint, compared with the original.
pub fn by_position(name: &str, bands: &[Band]) -> Vec<String> {
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

/// Accuracies with their 95 % intervals; for a compressed checkpoint with their changes.
pub fn benchmarks(name: &str, benchmarks: &[BenchmarkOutput]) -> Vec<String> {
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
