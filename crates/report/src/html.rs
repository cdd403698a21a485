//! One self-contained page.

use std::fmt::Write;

use crate::data::{Point, Report};

pub(crate) const STYLE: &str = "body{font:16px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#222}\
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #ddd}td{white-space:nowrap}\
.wide{overflow-x:auto}svg{max-width:100%;height:auto}pre{background:#f6f6f6;padding:1rem;overflow-x:auto}";

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The page, with all figures inline.
pub(crate) fn page(report: &Report, figures: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut add = |text: String| writeln!(out, "{text}").expect("writing to a string");
    let model = escape(&report.model);
    add(format!("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>waterfill: {model}</title>"));
    add(format!("<style>{STYLE}</style></head><body><h1>{model}</h1>"));
    add(format!("<p>{}</p>", escape(&introduction(report))));
    add(format!("<p>{}</p>", escape(&findings(report))));
    add(table(report));
    let titled = [
        ("curve", "Rate and distortion"),
        ("accuracy", "Right answers"),
        ("predicted", "Predicted and measured loss"),
        ("formats", "Formats"),
        ("sensitivity", "Sensitivity"),
        ("tiles", "Inside the matrix that loses most"),
        ("levels", "Its levels, and the table that they are coded under"),
    ];
    for (name, title) in titled {
        if let Some((_, svg)) = figures.iter().find(|(n, _)| n == name) {
            add(format!("<h2>{title}</h2>{svg}"));
        }
    }
    add("<h2>Where the bits go</h2>".into());
    let maps = figures.iter().filter(|(n, _)| n.starts_with("allocation-"));
    for (point, (_, svg)) in report.points.iter().zip(maps) {
        let summary = format!("{:.2} bits per weight, lambda {:.2e}", point.bits_per_weight, point.lambda);
        add(format!("<details open><summary>{summary}</summary><div class=\"wide\">{svg}</div></details>"));
    }
    add(format!("<h2>Configuration</h2><pre>{}</pre></body></html>", escape(&report.configuration)));
    out
}

fn introduction(report: &Report) -> String {
    let mut text = format!(
        "{} weights, {} bytes as given ({:.3} bits per weight). Original: {:.4} ± {:.4} nats per token, perplexity {:.3}, \
         over {} sequences of {} tokens.",
        report.weights,
        report.original_bytes,
        report.original_bytes as f64 * 8.0 / report.weights.max(1) as f64,
        report.base_nll,
        report.base_nll_se,
        report.base_perplexity,
        report.sequences,
        report.context,
    );
    if let Some(accuracy) = report.base_accuracy {
        write!(text, " Accuracy {:.1} % on {} questions.", accuracy * 100.0, report.questions).expect("a string");
    }
    text + " All figures of tuned checkpoints are measured from their decoded files; ± is a standard error."
}

/// The smallest file that costs at most half a percent of perplexity.
fn findings(report: &Report) -> String {
    let limit = report.base_perplexity * 1.005;
    let good = report.points.iter().filter(|p| p.perplexity <= limit);
    match good.min_by_key(|p| p.bytes) {
        Some(p) => format!(
            "The smallest file within 0.5 % of the original's perplexity has {} bytes: {:.2} bits per weight, {:.1} % of \
             the original file, KL {:.2e}.",
            p.bytes,
            p.bits_per_weight,
            p.bytes as f64 * 100.0 / report.original_bytes as f64,
            p.kl
        ),
        None => "No file of this run stays within 0.5 % of the original's perplexity.".into(),
    }
}

fn table(report: &Report) -> String {
    let questions = report.questions > 0;
    let mut out = String::from("<div class=\"wide\"><table><thead><tr>");
    let mut heads = vec![
        "lambda",
        "bytes",
        "bits/weight",
        "linear layers",
        "in memory",
        "KL",
        "predicted",
        "nll change",
        "perplexity",
        "top-1 %",
    ];
    if questions {
        heads.extend(["accuracy %", "95 %", "change"]);
    }
    heads.iter().for_each(|h| write!(out, "<th>{h}</th>").expect("a string"));
    out += "</tr></thead><tbody>";
    for point in &report.points {
        let cells = cells(point, questions);
        write!(out, "<tr>{}</tr>", cells.iter().map(|c| format!("<td>{c}</td>")).collect::<String>())
            .expect("a string");
    }
    out + "</tbody></table></div>"
}

fn cells(p: &Point, questions: bool) -> Vec<String> {
    let mut cells = vec![
        format!("{:.2e}", p.lambda),
        p.bytes.to_string(),
        format!("{:.3}", p.bits_per_weight),
        format!("{:.3}", p.linear_bits_per_weight),
        format!("{:.3}", p.resident_bits_per_weight),
        format!("{:.2e} ± {:.0e}", p.kl, p.kl_se),
        format!("{:.2e}", p.predicted_loss),
        format!("{:+.4} ± {:.4}", p.nll_change, p.nll_change_se),
        format!("{:.3}", p.perplexity),
        format!("{:.2} ± {:.2}", p.top1 * 100.0, p.top1_se * 100.0),
    ];
    if questions {
        let percent = |v: Option<f64>| v.map_or("-".into(), |v| format!("{:.1}", v * 100.0));
        cells.push(percent(p.accuracy));
        cells.push(format!("{} to {}", percent(p.accuracy_low), percent(p.accuracy_high)));
        let change = p.accuracy_change.zip(p.accuracy_change_se);
        cells.push(change.map_or("-".into(), |(c, se)| format!("{:+.1} ± {:.1}", c * 100.0, se * 100.0)));
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(bits: f64, kl: f64) -> Point {
        let tensor = crate::Tensor {
            name: "model.layers.0.mlp.up_proj.weight".into(),
            weights: 1000,
            bits: bits * 1000.0,
            loss: kl,
            formats: [("int4".to_string(), 600), ("int8".to_string(), 400)].into(),
        };
        Point {
            lambda: 1e-8,
            bytes: (bits * 125.0) as u64,
            bits_per_weight: bits,
            linear_bits_per_weight: bits,
            resident_bits_per_weight: bits + 2.0,
            nll: 3.0 + kl,
            nll_se: 0.01,
            nll_change: kl,
            nll_change_se: 0.001,
            perplexity: (3.0 + kl).exp(),
            kl,
            kl_se: kl / 50.0,
            top1: 0.9,
            top1_se: 0.01,
            accuracy: None,
            accuracy_low: None,
            accuracy_high: None,
            accuracy_change: None,
            accuracy_change_se: None,
            predicted_loss: kl * 0.8,
            tensors: vec![tensor],
        }
    }

    #[test]
    fn the_report_is_complete_and_self_contained() {
        let report = Report {
            model: "a<b".into(),
            weights: 1000,
            original_bytes: 2000,
            base_nll: 3.0,
            base_nll_se: 0.1,
            base_perplexity: 3f64.exp(),
            base_accuracy: None,
            sequences: 4,
            context: 16,
            questions: 0,
            configuration: "name: <x>".into(),
            points: vec![point(2.0, 0.1), point(3.0, 0.02), point(4.0, 0.004)],
            sensitivities: vec![],
            map: None,
            levels: None,
        };
        let dir = tempfile::tempdir().unwrap();
        crate::write(&report, dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(page.contains("a&lt;b") && page.contains("&lt;x&gt;"));
        assert_eq!(page.matches("<svg").count(), 3 + 3);
        assert!(!page.contains("src=") && !page.contains("href="), "needs nothing from outside");
        assert!(page.contains("The smallest file within 0.5 % of the original's perplexity has 500 bytes"));
        let csv = std::fs::read_to_string(dir.path().join("points.csv")).unwrap();
        assert_eq!(csv.lines().count(), 4);
        for file in ["points.parquet", "tensors.csv", "tensors.parquet", "curve.svg", "curve.png", "predicted.svg"] {
            assert!(dir.path().join(file).metadata().unwrap().len() > 300, "{file}");
        }
    }
}
