//! Several rate-distortion curves in one figure.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::figures::{
    BLUE, FONT, GREEN, ORANGE, PURPLE, SIZE, Z, decades, legend, note, png, scientific, svg, text_error,
};
use crate::{Result, save};

/// Okabe & Ito's palette, blue for what others are compared with.
const COLOURS: [RGBColor; 6] = [BLUE, ORANGE, GREEN, PURPLE, RGBColor(213, 94, 0), RGBColor(86, 180, 233)];
/// Characters of a label that the legend has room for.
const LABEL: usize = 44;

/// A curve.
#[derive(Debug, Clone)]
pub struct Curve {
    /// In the legend.
    pub label: String,
    /// Bits per weight, KL and its standard error; drawn in this order.
    pub points: Vec<(f64, f64, f64)>,
    /// Whether its points are prefixes of one checkpoint, whose line is dashed.
    pub layered: bool,
}

/// Draws curves to `name`.svg and `name`.png in `dir`; returns the latter.
///
/// # Errors
/// Files that cannot be written.
pub fn write_curves(title: &str, curves: &[Curve], dir: &Path, name: &str) -> Result<PathBuf> {
    let (image, axis) = (dir.join(format!("{name}.png")), "bits per weight of the files");
    png(&image, |area| draw(area, title, axis, curves))?;
    save(&dir.join(format!("{name}.svg")), &curves_svg(title, axis, curves)?)?;
    Ok(image)
}

/// Curves against what `axis` says, as SVG text.
///
/// # Errors
/// As the plotting library says.
pub fn curves_svg(title: &str, axis: &str, curves: &[Curve]) -> Result<String> {
    svg(title, SIZE, |area| draw(area, title, axis, curves))
}

fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    title: &str,
    axis: &str,
    curves: &[Curve],
) -> std::result::Result<(), String> {
    area.fill(&WHITE).map_err(text_error)?;
    let all = || curves.iter().flat_map(|c| &c.points);
    let (low, high) = decades(all().map(|p| p.1));
    let (least, most) = all().fold((f64::INFINITY, 0.0f64), |(low, high), p| (low.min(p.0), high.max(p.0)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(least.min(most).floor()..most.max(least.min(1.0)).ceil(), (low..high).log_scale())
        .map_err(text_error)?;
    chart
        .configure_mesh()
        .x_desc(axis)
        .y_desc("KL(original || tuned), nats per token")
        .y_label_formatter(&scientific)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(RGBColor(242, 242, 242))
        .draw()
        .map_err(text_error)?;
    for (n, curve) in curves.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let line = || curve.points.iter().map(|p| (p.0, p.1));
        let label: String = curve.label.chars().take(LABEL).collect();
        let style = colour.stroke_width(if curve.layered { 1 } else { 2 });
        let series = match curve.layered {
            true => chart.draw_series(DashedLineSeries::new(line(), 5, 4, style)),
            false => chart.draw_series(LineSeries::new(line(), style)),
        };
        series
            .map_err(text_error)?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(line().map(|p| Circle::new(p, 4, colour.filled()))).map_err(text_error)?;
        let bars = curve.points.iter().map(|&(bits, kl, se)| {
            let (below, above) = ((kl - Z * se).max(low), (kl + Z * se).min(high));
            ErrorBar::new_vertical(bits, below, kl, above, colour.stroke_width(1), 6)
        });
        chart.draw_series(bars).map_err(text_error)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    let prefixes = if curves.iter().any(|c| c.layered) { "dashed: prefixes of one checkpoint; " } else { "" };
    note(area, &format!("{prefixes}bars: 95 %"))
}
