//! One self-contained page of a sweep.

use std::fmt::Write;
use std::path::Path;

use crate::html::{STYLE, escape};
use crate::{Result, save};

const SORT: &str = include_str!("../page/sort.js");
const MORE: &str = "table.sortable th{cursor:pointer;user-select:none}th[aria-sort=ascending]::after{content:' \\2191'}\
th[aria-sort=descending]::after{content:' \\2193'}td.text,th.text{text-align:left}td.text{white-space:normal}\
body{max-width:84rem}p{max-width:62rem}figure{margin:0}\
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(28rem,1fr));gap:1rem}";

/// A cell of a table.
#[derive(Debug, Clone)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A figure as it is shown, and its value; missing ones are shown as `-` and come last.
    Figure(String, Option<f64>),
}

/// A table that can be sorted by its heads.
#[derive(Debug, Clone)]
pub struct PageTable {
    /// What it shows.
    pub caption: String,
    /// Heads of columns.
    pub heads: Vec<&'static str>,
    /// Cells by row.
    pub rows: Vec<Vec<Cell>>,
    /// Whether it stands before the figures.
    pub first: bool,
}

/// What a page has.
#[derive(Debug, Clone, Default)]
pub struct SweepPage {
    /// The sweep's name.
    pub title: String,
    /// Sentences of what the data say.
    pub findings: Vec<String>,
    /// Tables.
    pub tables: Vec<PageTable>,
    /// Titles and SVG text.
    pub figures: Vec<(String, String)>,
    /// What the results come from: names and values.
    pub provenance: Vec<(String, String)>,
    /// Labels and whole configurations of runs.
    pub configurations: Vec<(String, String)>,
}

impl SweepPage {
    /// Writes the page, which needs nothing from outside.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        save(path, &self.html())
    }

    fn html(&self) -> String {
        let mut out = String::new();
        let mut add = |text: &str| writeln!(out, "{text}").expect("writing to a string");
        let title = escape(&self.title);
        add(&format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>waterfill: {title}</title>\
             <style>{STYLE}{MORE}</style></head><body><h1>{title}</h1>"
        ));
        self.findings.iter().for_each(|f| add(&format!("<p>{}</p>", escape(f))));
        self.tables.iter().filter(|t| t.first).for_each(|t| add(&table(t)));
        add("<h2>Figures</h2><div class=\"figures\">");
        for (name, svg) in &self.figures {
            add(&format!("<figure aria-label=\"{}\">{svg}</figure>", escape(name).replace('"', "&quot;")));
        }
        add("</div>");
        self.tables.iter().filter(|t| !t.first).for_each(|t| add(&table(t)));
        add("<h2>Where it comes from</h2><table>");
        for (name, value) in &self.provenance {
            add(&format!("<tr><th class=\"text\">{}</th><td class=\"text\">{}</td></tr>", escape(name), escape(value)));
        }
        add("</table><h2>Configurations</h2>");
        for (label, text) in &self.configurations {
            add(&format!("<details><summary>{}</summary><pre>{}</pre></details>", escape(label), escape(text)));
        }
        add(&format!("<script>\n{SORT}</script></body></html>"));
        out
    }
}

fn table(t: &PageTable) -> String {
    let text = |column: usize| t.rows.iter().any(|r| matches!(r.get(column), Some(Cell::Text(_))));
    let class = |column: usize| if text(column) { " class=\"text\"" } else { "" };
    let head = |(n, h): (usize, &&str)| format!("<th{}>{}</th>", class(n), escape(h));
    let heads: String = t.heads.iter().enumerate().map(head).collect();
    let cell = |c: &Cell| match c {
        Cell::Text(text) => format!("<td class=\"text\">{}</td>", escape(text)),
        Cell::Figure(text, Some(value)) => format!("<td data-v=\"{value}\">{}</td>", escape(text)),
        Cell::Figure(..) => "<td>-</td>".to_string(),
    };
    let row = |r: &Vec<Cell>| format!("<tr>{}</tr>", r.iter().map(cell).collect::<String>());
    let rows: String = t.rows.iter().map(row).collect();
    format!(
        "<h2>{}</h2><div class=\"wide\"><table class=\"sortable\"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>",
        escape(&t.caption)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_need_nothing_from_outside_and_escape_what_they_show() {
        let cells =
            vec![Cell::Text("<b>".into()), Cell::Figure("1.5".into(), Some(1.5)), Cell::Figure(String::new(), None)];
        let table = PageTable {
            caption: "points & runs".into(),
            heads: vec!["run", "bits", "KL"],
            rows: vec![cells],
            first: false,
        };
        let page = SweepPage {
            title: "a<b".into(),
            findings: vec!["less & less".into()],
            tables: vec![table],
            figures: vec![("curve".into(), "<svg></svg>".into())],
            provenance: vec![("program".into(), "0.1 <x>".into())],
            configurations: vec![("base".into(), "{\"a\": \"<\"}".into())],
        };
        let html = page.html();
        assert!(html.contains("a&lt;b") && html.contains("&lt;b&gt;") && html.contains("less &amp; less"));
        assert!(html.contains("<td data-v=\"1.5\">1.5</td><td>-</td>") && html.contains("<svg></svg>"));
        assert!(!html.contains("src=") && !html.contains("href=") && !html.contains("http"));
        assert_eq!(html.matches("<th class=\"text\">").count(), 2);
    }
}
