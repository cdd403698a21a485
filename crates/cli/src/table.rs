//! Results for people.

use std::fmt::Write;

use waterfill_pipeline::{PointOutput, RunOutput};

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
        let heads =
            ["lambda", "bytes", "bits/w", "linear", "memory", "KL", "± se", "predicted", "ppl", "top-1 %", "acc %"];
        line(row(&heads.map(String::from)));
        output.points.iter().for_each(|p| line(row(&cells(p))));
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

fn row(cells: &[String; 11]) -> String {
    cells.iter().map(|c| format!("{c:>10}")).collect()
}

fn cells(p: &PointOutput) -> [String; 11] {
    let fixed = |v: Option<f64>, digits: usize| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
    let small = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.2e}"));
    [
        format!("{:.2e}", p.lambda),
        p.bytes.map_or("-".into(), |b| b.to_string()),
        fixed(p.bits_per_weight, 3),
        fixed(p.linear_bits_per_weight, 3),
        fixed(Some(p.resident_bits_per_weight), 3),
        small(p.kl),
        small(p.kl_se),
        small(Some(p.predicted_loss)),
        fixed(p.perplexity, 3),
        fixed(p.top1.map(|v| v * 100.0), 2),
        fixed(p.accuracy.map(|v| v * 100.0), 1),
    ]
}
