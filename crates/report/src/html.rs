//! One self-contained page.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::data::{OperatingPoint, Report};

const STYLE: &str = include_str!("../page/page.css");

/// Figures of a page, in this order, with their titles.
const TITLED: [(&str, &str); 7] = [
    ("curve", "Rate and distortion"),
    ("accuracy", "Right answers"),
    ("predicted", "Predicted and measured loss"),
    ("formats", "Formats"),
    ("sensitivity", "Sensitivity"),
    ("tiles", "Inside the matrix that loses most"),
    ("levels", "Its levels, and the table that they are coded under"),
];

/// A whole page: style sheets and the body's content after its title.
pub(crate) fn document(title: &str, more_style: &str, body: Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "waterfill: " (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(more_style)) }
            }
            body {
                h1 { (title) }
                (body)
            }
        }
    };
    page.into_string()
}

/// The page, with all figures inline.
pub(crate) fn page(report: &Report, figures: &[(String, String)]) -> String {
    let figure = |name: &str| figures.iter().find(|(n, _)| n == name).map(|(_, svg)| svg);
    let maps = figures.iter().filter(|(n, _)| n.starts_with("allocation-"));
    let body = html! {
        p { (introduction(report)) }
        p { (findings(report)) }
        (table(report))
        @for (name, title) in TITLED {
            @if let Some(svg) = figure(name) {
                h2 { (title) }
                (PreEscaped(svg))
            }
        }
        h2 { "Where the bits go" }
        @for (point, (_, svg)) in report.points.iter().zip(maps) {
            details open {
                summary { (format!("{:.2} bits per weight, lambda {:.2e}", point.bits_per_weight, point.lambda)) }
                div.wide { (PreEscaped(svg)) }
            }
        }
        h2 { "Configuration" }
        pre { (report.configuration) }
    };
    document(&report.model, "", body)
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
        text += &format!(" Accuracy {:.1} % on {} questions.", accuracy * 100.0, report.questions);
    }
    text + " All figures of compressed checkpoints are measured on their decoded files; ± is a standard error."
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

fn table(report: &Report) -> Markup {
    let questions = report.questions > 0;
    let heads = [
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
    let of_questions = ["accuracy %", "95 %", "change"];
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        @for head in heads { th { (head) } }
                        @if questions { @for head in of_questions { th { (head) } } }
                    }
                }
                tbody {
                    @for point in &report.points {
                        tr { @for cell in cells(point, questions) { td { (cell) } } }
                    }
                }
            }
        }
    }
}

fn cells(p: &OperatingPoint, questions: bool) -> Vec<String> {
    let mut cells = vec![
        format!("{:.2e}", p.lambda),
        p.bytes.to_string(),
        format!("{:.3}", p.bits_per_weight),
        format!("{:.3}", p.linear_bits_per_weight),
        format!("{:.3}", p.resident_bits_per_weight),
        format!("{:.2e} ± {:.0e}", p.kl, p.kl_se),
        format!("{:.2e}", p.predicted_kl),
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

    fn point(bits: f64, kl: f64) -> OperatingPoint {
        let tensor = crate::Tensor {
            name: "model.layers.0.mlp.up_proj.weight".into(),
            weights: 1000,
            bits: bits * 1000.0,
            loss: kl,
            formats: [("int4".to_string(), 600), ("int8".to_string(), 400)].into(),
        };
        OperatingPoint {
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
            predicted_kl: kl * 0.8,
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
