//! Predicted against measured loss.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::error::Result;
use crate::style::{
    COLOURS, DESCRIPTION, Drawn, FONT, Figure, GREY, LABEL, MESH, TITLE, Z, above_note, decades, legend, note,
    scientific, text_error,
};

/// Points of one run.
#[derive(Debug, Clone)]
pub struct Predictions {
    /// Name in the legend.
    pub label: String,
    /// Predicted loss, measured loss and its standard error, nats per token.
    pub points: Vec<(f64, f64, f64)>,
}

/// Predicted against measured losses of several runs.
#[derive(Debug, Clone)]
pub struct Scatter {
    /// Title above the figure.
    pub title: String,
    /// All runs.
    pub runs: Vec<Predictions>,
    /// Small print: the text and its size.
    pub note: String,
}

impl Scatter {
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

impl Figure for Scatter {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        let (low, high) = decades(self.runs.iter().flat_map(|r| &r.points).flat_map(|p| [p.0, p.1]));
        let above = above_note(area);
        let mut chart = ChartBuilder::on(&above)
            .caption(&self.title, (FONT, TITLE))
            .margin(12)
            .x_label_area_size(52)
            .y_label_area_size(72)
            .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())
            .map_err(text_error)?;
        chart
            .configure_mesh()
            .x_desc("predicted loss, nats per token")
            .y_desc("measured KL, nats per token")
            .x_label_formatter(&scientific)
            .y_label_formatter(&scientific)
            .label_style((FONT, LABEL))
            .axis_desc_style((FONT, DESCRIPTION))
            .light_line_style(MESH)
            .draw()
            .map_err(text_error)?;
        chart
            .draw_series(LineSeries::new([(low, low), (high, high)], GREY.stroke_width(1)))
            .map_err(text_error)?
            .label("equal")
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], GREY.stroke_width(1)));
        for (n, run) in self.runs.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let points = || run.points.iter().filter(|p| p.0 > 0.0 && p.1 > 0.0);
            let bars = points().map(|&(predicted, measured, se)| {
                let (below, above) = ((measured - Z * se).max(low), (measured + Z * se).min(high));
                ErrorBar::new_vertical(predicted, below, measured, above, colour.stroke_width(1), 8)
            });
            chart.draw_series(bars).map_err(text_error)?;
            chart
                .draw_series(points().map(|p| Circle::new((p.0, p.1), 4, colour.filled())))
                .map_err(text_error)?
                .label(run.label.as_str())
                .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
        }
        legend(&mut chart, SeriesLabelPosition::LowerRight)?;
        note(area, &self.note)
    }
}
