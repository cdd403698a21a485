//! Levels of a coded matrix against the table they are coded under.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use serde::Serialize;

use crate::error::Result;
use crate::style::{
    BLUE, DESCRIPTION, Drawn, FONT, Figure, LABEL, MESH, ORANGE, TITLE, above_note, decades, legend, note, scientific,
    text_error,
};

/// Frequencies of levels, and their probabilities in the entropy coder's table.
#[derive(Debug, Clone, Serialize)]
pub struct Levels {
    /// Name of the matrix.
    pub tensor: String,
    /// Standard deviation of the table's distribution, in levels.
    pub spread: f64,
    /// Levels with the share of samples, and the table's probability.
    pub levels: Vec<(i32, f64, f64)>,
    /// Numbers of samples under this table and in the whole matrix.
    pub samples: (u64, u64),
    /// Bits per sample under the table, and the entropy of the samples in bits.
    pub bits: (f64, f64),
}

impl Levels {
    /// Writes `NAME.svg` and `NAME.png` into a directory, and returns the path of the latter.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        Figure::write(self, dir, name)
    }
}

impl Figure for Levels {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        let shown = self.levels.iter().filter(|l| l.1 > 0.0);
        let most = shown.clone().map(|l| l.0.abs()).max().unwrap_or(1).max(1);
        let (low, high) = decades(shown.map(|l| l.1));
        let above = above_note(area);
        let mut chart = ChartBuilder::on(&above)
            .caption(format!("levels of {}", self.tensor), (FONT, TITLE))
            .margin(12)
            .x_label_area_size(52)
            .y_label_area_size(72)
            // A decade more than there are shares, for the legend.
            .build_cartesian_2d(-f64::from(most) - 0.7..f64::from(most) + 0.7, (low..10.0 * high.min(1.0)).log_scale())
            .map_err(text_error)?;
        chart
            .configure_mesh()
            .x_desc("level")
            .y_desc("share of samples")
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&|v| if *v > 1.0 { String::new() } else { scientific(v) })
            .label_style((FONT, LABEL))
            .axis_desc_style((FONT, DESCRIPTION))
            .light_line_style(MESH)
            .draw()
            .map_err(text_error)?;
        let bars = self.levels.iter().filter(|l| l.1 > 0.0).map(|&(level, share, _)| {
            let level = f64::from(level);
            Rectangle::new([(level - 0.42, low), (level + 0.42, share)], BLUE.mix(0.55).filled())
        });
        chart
            .draw_series(bars)
            .map_err(text_error)?
            .label("as coded")
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], BLUE.mix(0.55).filled()));
        let table = self.levels.iter().filter(|l| l.2 >= low).map(|&(level, _, p)| (f64::from(level), p));
        chart
            .draw_series(LineSeries::new(table, ORANGE.stroke_width(3)))
            .map_err(text_error)?
            .label(format!("table, deviation of {:.2} levels", self.spread))
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], ORANGE.stroke_width(3)));
        legend(&mut chart, SeriesLabelPosition::UpperRight)?;
        let share = 100.0 * self.samples.0 as f64 / self.samples.1.max(1) as f64;
        let (coded, entropy) = self.bits;
        note(
            area,
            &format!("commonest table, {share:.0} % of the samples; {coded:.3} bits a sample, entropy {entropy:.3}"),
        )
    }
}
