//! Bytes of several runs relative to one run, as bars.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use crate::error::Result;
use crate::style::{BLUE, Drawn, Figure, GREY, LABEL, NOTE, ORANGE, TITLE, shortened, text_error, words};

const ROW: i32 = 24;
const TOP: i32 = 74;
const NAMES: i32 = 400;
const WIDTH: i32 = 300;
/// Characters of a name that there is room for.
const LENGTH: usize = 54;

/// A run.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Name of the run.
    pub label: String,
    /// Least, median and greatest over the run's points, percent.
    pub percent: [f64; 3],
}

/// Runs compared with one run.
#[derive(Debug, Clone)]
pub struct Bars {
    /// Title above the figure.
    pub title: String,
    /// Explanation under the title.
    pub note: String,
    /// One a row.
    pub bars: Vec<Bar>,
}

impl Bars {
    /// Writes `NAME.svg` and `NAME.png` into a directory, and returns the path of the latter.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        Figure::write(self, dir, name)
    }

    /// Returns the figure as SVG text.
    ///
    /// # Errors
    /// Fails if the plotting library does.
    pub fn svg(&self) -> Result<String> {
        Figure::svg(self, &self.title)
    }
}

/// A percentage with its sign; zero has none.
fn percent(value: f64) -> String {
    let text = format!("{value:+.2} %");
    if text[1..].starts_with("0.00 ") { text[1..].into() } else { text }
}

impl Figure for Bars {
    fn size(&self) -> (u32, u32) {
        ((NAMES + WIDTH + 100) as u32, (TOP + ROW * self.bars.len() as i32 + 18) as u32)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        words(area, &self.title, (14, 22), TITLE, &BLACK, HPos::Left)?;
        words(area, &self.note, (14, 46), NOTE, &BLACK, HPos::Left)?;
        let low = self.bars.iter().map(|b| b.percent[0]).fold(0.0, f64::min);
        let high = self.bars.iter().map(|b| b.percent[2]).fold(0.0, f64::max);
        let x = |percent: f64| NAMES + ((percent - low) / (high - low).max(1e-9) * f64::from(WIDTH)).round() as i32;
        let bottom = TOP + ROW * self.bars.len() as i32;
        area.draw(&PathElement::new([(x(0.0), TOP - 6), (x(0.0), bottom)], BLACK.stroke_width(1)))
            .map_err(text_error)?;
        for (n, bar) in self.bars.iter().enumerate() {
            let y = TOP + ROW * n as i32 + ROW / 2;
            let [least, median, most] = bar.percent;
            words(area, &shortened(&bar.label, LENGTH), (NAMES - 10, y), LABEL, &BLACK, HPos::Right)?;
            let colour = if median > 0.0 { ORANGE } else { BLUE };
            let ends = (x(median.min(0.0)), x(median.max(0.0)));
            area.draw(&Rectangle::new([(ends.0, y - 7), (ends.1, y + 7)], colour.filled())).map_err(text_error)?;
            area.draw(&PathElement::new([(x(least), y), (x(most), y)], GREY.stroke_width(2))).map_err(text_error)?;
            let at = (x(most.max(0.0)) + 8, y);
            words(area, &percent(median), at, LABEL, &BLACK, HPos::Left)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_sign() {
        assert_eq!(
            [-0.001, 0.0, 0.004, -0.006, 1.5].map(percent),
            ["0.00 %", "0.00 %", "0.00 %", "-0.01 %", "+1.50 %"]
        );
    }
}
