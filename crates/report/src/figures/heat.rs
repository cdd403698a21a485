//! A value for every matrix of a model, by layer and kind.

use std::collections::BTreeMap;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use crate::data::place;
use crate::style::{Drawn, Figure, LABEL, TITLE, shade, words};

const CELL: (i32, i32) = (84, 26);
const MARGIN: (i32, i32) = (124, 84);

/// Rows (layers, then what is outside them) and columns (kinds) of a heat map.
pub(crate) struct Heat {
    title: String,
    rows: Vec<Option<usize>>,
    columns: Vec<String>,
    cells: BTreeMap<(usize, usize), f64>,
    /// True if colours follow the logarithms of the values.
    log: bool,
}

impl Heat {
    /// Values of matrices by name.
    pub fn new<'a>(title: String, values: impl Iterator<Item = (&'a str, f64)> + Clone, log: bool) -> Self {
        let (mut rows, mut columns): (Vec<Option<usize>>, Vec<String>) = (Vec::new(), Vec::new());
        for (name, _) in values.clone() {
            let (layer, kind) = place(name);
            if !rows.contains(&layer) {
                rows.push(layer);
            }
            if !columns.iter().any(|c| c == kind) {
                columns.push(kind.to_string());
            }
        }
        rows.sort_by_key(|r| r.unwrap_or(usize::MAX));
        let mut cells = BTreeMap::new();
        for (name, value) in values {
            let (layer, kind) = place(name);
            let row = rows.iter().position(|r| *r == layer).expect("collected above");
            let column = columns.iter().position(|c| c == kind).expect("collected above");
            cells.insert((row, column), value);
        }
        Self { title, rows, columns, cells, log }
    }
}

impl Figure for Heat {
    fn size(&self) -> (u32, u32) {
        let width = MARGIN.0 + CELL.0 * self.columns.len() as i32 + 20;
        let height = MARGIN.1 + CELL.1 * self.rows.len() as i32 + 16;
        (width.max(560) as u32, height as u32)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        let scaled = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let low = self.cells.values().map(|&v| scaled(v)).fold(f64::INFINITY, f64::min);
        let high = self.cells.values().map(|&v| scaled(v)).fold(f64::NEG_INFINITY, f64::max);
        words(area, &self.title, (14, 24), TITLE, &BLACK, HPos::Left)?;
        for (c, kind) in self.columns.iter().enumerate() {
            let at = (MARGIN.0 + CELL.0 * c as i32 + CELL.0 / 2, MARGIN.1 - 14);
            words(area, &kind.replace("embed_tokens", "embedding"), at, LABEL, &BLACK, HPos::Center)?;
        }
        for (r, layer) in self.rows.iter().enumerate() {
            let y = MARGIN.1 + CELL.1 * r as i32;
            let label = layer.map_or("outside blocks".to_string(), |l| format!("layer {l}"));
            words(area, &label, (MARGIN.0 - 8, y + CELL.1 / 2), LABEL, &BLACK, HPos::Right)?;
            for c in 0..self.columns.len() {
                let Some(&value) = self.cells.get(&(r, c)) else { continue };
                let x = MARGIN.0 + CELL.0 * c as i32;
                let (fill, ink) = shade((scaled(value) - low) / (high - low).max(1e-9));
                let corners = [(x + 1, y + 1), (x + CELL.0 - 1, y + CELL.1 - 1)];
                area.draw(&Rectangle::new(corners, fill.filled())).map_err(|e| e.to_string())?;
                let text = if self.log { format!("{value:.1e}") } else { format!("{value:.2}") };
                words(area, &text, (x + CELL.0 / 2, y + CELL.1 / 2), LABEL, &ink, HPos::Center)?;
            }
        }
        Ok(())
    }
}
