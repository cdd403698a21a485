//! How much more or less several runs take than one.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use crate::Result;
use crate::style::{BLUE, Drawn, Figure, GREY, LABEL, NOTE, ORANGE, TITLE, text_error, words};

const ROW: i32 = 24;
const TOP: i32 = 74;
const NAMES: i32 = 400;
const WIDTH: i32 = 300;
/// Characters of a name that there is room for.
const LENGTH: usize = 54;

/// A run.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Its name.
    pub label: String,
    /// Percent: the least, the median and the most over its points.
    pub percent: [f64; 3],
}

/// Runs against one that they are compared with.
#[derive(Debug, Clone)]
pub struct Bars {
    /// Above the figure.
    pub title: String,
    /// What the percentages are of.
    pub note: String,
    /// One a row.
    pub bars: Vec<Bar>,
}

impl Bars {
    /// Draws to `NAME.svg` and `NAME.png` in a directory; the path of the latter.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        Figure::write(self, dir, name)
    }

    /// As SVG text.
    ///
    /// # Errors
    /// As the plotting library says.
    pub fn svg(&self) -> Result<String> {
        Figure::svg(self, &self.title)
    }
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
            let label: String = bar.label.chars().take(LENGTH).collect();
            words(area, &label, (NAMES - 10, y), LABEL, &BLACK, HPos::Right)?;
            let colour = if median > 0.0 { ORANGE } else { BLUE };
            let ends = (x(median.min(0.0)), x(median.max(0.0)));
            area.draw(&Rectangle::new([(ends.0, y - 7), (ends.1, y + 7)], colour.filled())).map_err(text_error)?;
            area.draw(&PathElement::new([(x(least), y), (x(most), y)], GREY.stroke_width(2))).map_err(text_error)?;
            let at = (x(most.max(0.0)) + 8, y);
            words(area, &format!("{median:+.2} %"), at, LABEL, &BLACK, HPos::Left)?;
        }
        Ok(())
    }
}
