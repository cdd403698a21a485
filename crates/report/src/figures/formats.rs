//! Shares of number formats by size.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::data::Report;
use crate::style::{
    BLUE, DESCRIPTION, Drawn, FONT, Figure, GREEN, LABEL, MESH, ORANGE, PURPLE, TITLE, legend, text_error,
};

const FORMATS: [(&str, RGBColor); 4] = [("int4", BLUE), ("int8", ORANGE), ("fp8", GREEN), ("lossless", PURPLE)];

/// Shares of the compressed checkpoints of a run.
pub(crate) struct Formats<'a>(pub &'a Report);

impl Figure for Formats<'_> {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        let report = self.0;
        let count = report.points.len().max(1);
        // Room for the legend right of the bars.
        let width = count as f64 * 1.25;
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{}: share of each format", report.model), (FONT, TITLE))
            .margin(12)
            .x_label_area_size(52)
            .y_label_area_size(72)
            .build_cartesian_2d(0f64..width, 0f64..100f64)
            .map_err(text_error)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_desc("% of coded weights")
            .y_label_formatter(&|v| format!("{v:.0}"))
            .label_style((FONT, LABEL))
            .axis_desc_style((FONT, DESCRIPTION))
            .light_line_style(MESH)
            .draw()
            .map_err(text_error)?;
        let mut base = vec![0.0; report.points.len()];
        for (format, colour) in FORMATS {
            let bars = report.points.iter().enumerate().map(|(i, point)| {
                let total: u64 = point.tensors.iter().map(|t| t.weights).sum();
                let inside: u64 = point.tensors.iter().filter_map(|t| t.formats.get(format)).sum();
                let top = base[i] + inside as f64 * 100.0 / total.max(1) as f64;
                let corners = [(i as f64 + 0.12, base[i]), (i as f64 + 0.88, top)];
                base[i] = top;
                Rectangle::new(corners, colour.filled())
            });
            let bars: Vec<_> = bars.collect();
            chart
                .draw_series(bars)
                .map_err(text_error)?
                .label(format)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
        }
        let centred = |size: u32| (FONT, size).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
        let (left, pixels) = (chart.plotting_area().get_pixel_range().0.start, chart.plotting_area().dim_in_pixel().0);
        let bottom = chart.plotting_area().get_pixel_range().1.end;
        for (i, point) in report.points.iter().enumerate() {
            let x = left + (f64::from(pixels) * (i as f64 + 0.5) / width) as i32;
            let text = format!("{:.2}", point.bits_per_weight);
            area.draw(&Text::new(text, (x, bottom + 6), centred(LABEL - 2))).map_err(text_error)?;
        }
        let x = left + (f64::from(pixels) * count as f64 / width / 2.0) as i32;
        let text = "bits per weight of the file";
        area.draw(&Text::new(text, (x, bottom + 26), centred(DESCRIPTION))).map_err(text_error)?;
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    }
}
