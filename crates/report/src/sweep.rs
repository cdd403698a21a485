//! One self-contained page of a sweep.

use std::path::Path;

use maud::{Markup, PreEscaped, html};

use crate::error::{Result, save};
use crate::html::document;

const SORT: &str = include_str!("../page/sort.js");
const STYLE: &str = include_str!("../page/sweep.css");

/// A cell of a table.
#[derive(Debug, Clone)]
pub enum Cell {
    /// Text.
    Text(String),
    /// A number as it is shown, and its value for sorting; a missing value is shown as `-` and sorted last.
    Figure(String, Option<f64>),
}

/// A table that a click on a column's head sorts.
#[derive(Debug, Clone)]
pub struct PageTable {
    /// The heading above it.
    pub caption: String,
    /// Heads of columns.
    pub heads: Vec<&'static str>,
    /// Cells by row.
    pub rows: Vec<Vec<Cell>>,
    /// True if it comes before the figures.
    pub first: bool,
}

/// The content of a sweep's page.
#[derive(Debug, Clone, Default)]
pub struct SweepPage {
    /// The sweep's name.
    pub title: String,
    /// Sentences that sum up the data.
    pub findings: Vec<String>,
    /// Tables.
    pub tables: Vec<PageTable>,
    /// Titles and SVG text.
    pub figures: Vec<(String, String)>,
    /// Provenance: names such as program, seeds and digests, with their values.
    pub provenance: Vec<(String, String)>,
    /// Labels and whole configurations of runs.
    pub configurations: Vec<(String, String)>,
}

impl SweepPage {
    /// Writes the page, which refers to no other file.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        save(path, &self.html())
    }

    fn html(&self) -> String {
        let (first, later): (Vec<&PageTable>, Vec<&PageTable>) = self.tables.iter().partition(|t| t.first);
        let body = html! {
            @for finding in &self.findings { p { (finding) } }
            @for t in first { (table(t)) }
            h2 { "Figures" }
            div.figures {
                @for (name, svg) in &self.figures { figure aria-label=(name) { (PreEscaped(svg)) } }
            }
            @for t in later { (table(t)) }
            h2 { "Where it comes from" }
            table {
                @for (name, value) in &self.provenance { tr { th.text { (name) } td.text { (value) } } }
            }
            h2 { "Configurations" }
            @for (label, text) in &self.configurations { details { summary { (label) } pre { (text) } } }
            script { (PreEscaped(SORT)) }
        };
        document(&self.title, STYLE, body)
    }
}

fn table(t: &PageTable) -> Markup {
    let text = |column: usize| t.rows.iter().any(|r| matches!(r.get(column), Some(Cell::Text(_))));
    html! {
        h2 { (t.caption) }
        div.wide {
            table.sortable {
                thead { tr { @for (n, head) in t.heads.iter().enumerate() { th.text[text(n)] { (head) } } } }
                tbody { @for row in &t.rows { tr { @for cell in row { (self::cell(cell)) } } } }
            }
        }
    }
}

fn cell(cell: &Cell) -> Markup {
    html! {
        @match cell {
            Cell::Text(text) => td.text { (text) },
            Cell::Figure(text, Some(value)) => td data-v=(value) { (text) },
            Cell::Figure(_, None) => td { "-" },
        }
    }
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
