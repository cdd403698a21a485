//! Figures, drawn once for SVG and PNG alike.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::data::{Point, Report, place};
use crate::{ReportError, Result};

pub(crate) const SIZE: (u32, u32) = (760, 460);
pub(crate) const FONT: &str = "sans-serif";
/// Okabe & Ito's palette, distinguishable without colour vision.
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub(crate) const GREEN: RGBColor = RGBColor(0, 158, 115);
pub(crate) const PURPLE: RGBColor = RGBColor(204, 121, 167);
const FORMATS: [(&str, RGBColor); 4] = [("int4", BLUE), ("int8", ORANGE), ("fp8", GREEN), ("lossless", PURPLE)];
/// Half width of a 95 % interval in standard errors.
pub(crate) const Z: f64 = 1.96;

type Drawn = std::result::Result<(), String>;

pub(crate) fn text_error<E: std::fmt::Display>(e: E) -> String {
    e.to_string()
}

/// The plotting library takes text sizes from a font it is given; browsers use their own.
fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let font = epaint_default_fonts::UBUNTU_LIGHT;
        for style in [FontStyle::Normal, FontStyle::Bold] {
            let _ = plotters::style::register_font(FONT, style, font);
        }
    });
}

/// All figures as SVG text by name.
pub(crate) fn all_svg(report: &Report) -> Result<Vec<(String, String)>> {
    let mut figures = vec![
        ("curve".to_string(), svg("curve", SIZE, |a| curve(a, report))?),
        ("predicted".to_string(), svg("predicted", SIZE, |a| predicted(a, report))?),
        ("formats".to_string(), svg("formats", SIZE, |a| formats(a, report))?),
    ];
    for (i, point) in report.points.iter().enumerate() {
        let name = format!("allocation-{}", i + 1);
        let figure = svg(&name, heat_size(point), |a| heat_map(a, point))?;
        figures.push((name, figure));
    }
    Ok(figures)
}

/// `curve.png` and `predicted.png`.
pub(crate) fn all_png(report: &Report, dir: &Path) -> Result<()> {
    png(&dir.join("curve.png"), |a| curve(a, report))?;
    png(&dir.join("predicted.png"), |a| predicted(a, report))
}

pub(crate) fn png(path: &Path, draw: impl Fn(&DrawingArea<BitMapBackend, Shift>) -> Drawn) -> Result<()> {
    register_fonts();
    let failed = |reason| ReportError::Figure { figure: path.display().to_string(), reason };
    let area = BitMapBackend::new(path, SIZE).into_drawing_area();
    draw(&area).map_err(failed)?;
    area.present().map_err(text_error).map_err(failed)
}

pub(crate) fn svg(
    name: &str,
    size: (u32, u32),
    draw: impl Fn(&DrawingArea<SVGBackend, Shift>) -> Drawn,
) -> Result<String> {
    register_fonts();
    let failed = |reason| ReportError::Figure { figure: name.into(), reason };
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area).map_err(failed)?;
        area.present().map_err(text_error).map_err(failed)?;
    }
    Ok(text)
}

/// Powers of ten around positive values.
pub(crate) fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, 0f64);
    for v in values.filter(|v| *v > 0.0 && v.is_finite()) {
        low = low.min(v);
        high = high.max(v);
    }
    if high == 0.0 {
        return (1e-6, 1.0);
    }
    (10f64.powf((low * 0.8).log10().floor()), 10f64.powf((high * 1.2).log10().ceil()))
}

pub(crate) fn scientific(v: &f64) -> String {
    format!("{v:.0e}")
}

fn curve<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, report: &Report) -> Drawn {
    area.fill(&WHITE).map_err(text_error)?;
    let points: Vec<&Point> = report.points.iter().filter(|p| p.kl > 0.0).collect();
    let (low, high) = decades(points.iter().map(|p| p.kl));
    let widest = points.iter().map(|p| p.bits_per_weight.max(p.resident_bits_per_weight)).fold(4.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: rate and distortion", report.model), (FONT, 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(0f64..widest.ceil(), (low..high).log_scale())
        .map_err(text_error)?;
    chart
        .configure_mesh()
        .x_desc("bits per weight")
        .y_desc("KL(original || tuned), nats per token")
        .y_label_formatter(&scientific)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(RGBColor(242, 242, 242))
        .draw()
        .map_err(text_error)?;
    type Axis = fn(&Point) -> f64;
    let series: [(&str, RGBColor, Axis); 2] =
        [("file", BLUE, |p| p.bits_per_weight), ("in memory", ORANGE, |p| p.resident_bits_per_weight)];
    for (label, colour, x) in series {
        let mut line: Vec<(f64, f64)> = points.iter().map(|p| (x(p), p.kl)).collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart
            .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))
            .map_err(text_error)?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(line.iter().map(|&p| Circle::new(p, 4, colour.filled()))).map_err(text_error)?;
        chart
            .draw_series(points.iter().map(|p| {
                let (below, above) = ((p.kl - Z * p.kl_se).max(low), (p.kl + Z * p.kl_se).min(high));
                ErrorBar::new_vertical(x(p), below, p.kl, above, colour.stroke_width(1), 8)
            }))
            .map_err(text_error)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    note(area, &format!("bars: 95 % over {} sequences of {} tokens", report.sequences, report.context))
}

pub(crate) fn legend<'a, DB: DrawingBackend + 'a, CT: CoordTranslate>(
    chart: &mut ChartContext<'a, DB, CT>,
    position: SeriesLabelPosition,
) -> Drawn {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(190, 190, 190))
        .label_font((FONT, 14))
        .draw()
        .map_err(text_error)
}

pub(crate) fn note<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, text: &str) -> Drawn {
    let style = (FONT, 12).into_font().color(&RGBColor(90, 90, 90)).pos(Pos::new(HPos::Right, VPos::Bottom));
    let (width, height) = area.dim_in_pixel();
    area.draw(&Text::new(text.to_string(), (width as i32 - 14, height as i32 - 4), style)).map_err(text_error)
}

fn predicted<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, report: &Report) -> Drawn {
    area.fill(&WHITE).map_err(text_error)?;
    let points: Vec<&Point> = report.points.iter().filter(|p| p.kl > 0.0 && p.predicted_loss > 0.0).collect();
    let (low, high) = decades(points.iter().flat_map(|p| [p.kl, p.predicted_loss]));
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: predicted and measured loss", report.model), (FONT, 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())
        .map_err(text_error)?;
    chart
        .configure_mesh()
        .x_desc("predicted loss, nats per token")
        .y_desc("measured KL, nats per token")
        .x_label_formatter(&scientific)
        .y_label_formatter(&scientific)
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(RGBColor(242, 242, 242))
        .draw()
        .map_err(text_error)?;
    let grey = RGBColor(130, 130, 130);
    chart
        .draw_series(LineSeries::new([(low, low), (high, high)], grey.stroke_width(1)))
        .map_err(text_error)?
        .label("equal")
        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], grey.stroke_width(1)));
    chart
        .draw_series(points.iter().map(|p| {
            let (below, above) = ((p.kl - Z * p.kl_se).max(low), (p.kl + Z * p.kl_se).min(high));
            ErrorBar::new_vertical(p.predicted_loss, below, p.kl, above, BLUE.stroke_width(1), 8)
        }))
        .map_err(text_error)?;
    chart
        .draw_series(points.iter().map(|p| Circle::new((p.predicted_loss, p.kl), 4, BLUE.filled())))
        .map_err(text_error)?
        .label("tuned checkpoints")
        .legend(|(x, y)| Circle::new((x + 9, y), 4, BLUE.filled()));
    legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
    note(area, &format!("bars: 95 % over {} sequences of {} tokens", report.sequences, report.context))
}

fn formats<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, report: &Report) -> Drawn {
    area.fill(&WHITE).map_err(text_error)?;
    let count = report.points.len().max(1);
    // Room for the legend right of the bars.
    let width = count as f64 * 1.2;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: share of each format", report.model), (FONT, 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(0f64..width, 0f64..100f64)
        .map_err(text_error)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc("% of coded weights")
        .y_label_formatter(&|v| format!("{v:.0}"))
        .label_style((FONT, 14))
        .axis_desc_style((FONT, 15))
        .light_line_style(RGBColor(242, 242, 242))
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
    let centred = (FONT, 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    let (left, pixels) = (chart.plotting_area().get_pixel_range().0.start, chart.plotting_area().dim_in_pixel().0);
    let bottom = chart.plotting_area().get_pixel_range().1.end;
    for (i, point) in report.points.iter().enumerate() {
        let x = left + (f64::from(pixels) * (i as f64 + 0.5) / width) as i32;
        let text = format!("{:.2}", point.bits_per_weight);
        area.draw(&Text::new(text, (x, bottom + 6), centred.clone())).map_err(text_error)?;
    }
    let middle = (FONT, 15).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    let x = left + (f64::from(pixels) * count as f64 / width / 2.0) as i32;
    area.draw(&Text::new("bits per weight of the file", (x, bottom + 24), middle)).map_err(text_error)?;
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

const CELL: (i32, i32) = (82, 24);
const MARGIN: (i32, i32) = (110, 78);

/// Rows (layers, then what is outside them) and columns (kinds) of a heat map.
struct Grid {
    rows: Vec<Option<usize>>,
    columns: Vec<String>,
    /// Bits per weight by row and column.
    cells: BTreeMap<(usize, usize), f64>,
}

fn grid(point: &Point) -> Grid {
    let (mut rows, mut columns): (Vec<Option<usize>>, Vec<String>) = (Vec::new(), Vec::new());
    for tensor in &point.tensors {
        let (layer, kind) = place(&tensor.name);
        if !rows.contains(&layer) {
            rows.push(layer);
        }
        if !columns.iter().any(|c| c == kind) {
            columns.push(kind.to_string());
        }
    }
    rows.sort_by_key(|r| r.unwrap_or(usize::MAX));
    let mut cells = BTreeMap::new();
    for tensor in &point.tensors {
        let (layer, kind) = place(&tensor.name);
        let row = rows.iter().position(|r| *r == layer).expect("collected above");
        let column = columns.iter().position(|c| c == kind).expect("collected above");
        cells.insert((row, column), tensor.bits / tensor.weights.max(1) as f64);
    }
    Grid { rows, columns, cells }
}

fn heat_size(point: &Point) -> (u32, u32) {
    let Grid { rows, columns, .. } = grid(point);
    let width = MARGIN.0 + CELL.0 * columns.len() as i32 + 20;
    let height = MARGIN.1 + CELL.1 * rows.len() as i32 + 16;
    (width.max(420) as u32, height as u32)
}

/// From pale to blue, light enough for black text below and dark enough for white above.
fn shade(share: f64) -> (RGBColor, RGBColor) {
    let mix = |from: f64, to: f64| (from + (to - from) * share) as u8;
    let text = if share > 0.55 { WHITE } else { BLACK };
    (RGBColor(mix(240.0, 0.0), mix(246.0, 80.0), mix(252.0, 140.0)), text)
}

fn heat_map<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, point: &Point) -> Drawn {
    area.fill(&WHITE).map_err(text_error)?;
    let Grid { rows, columns, cells } = grid(point);
    let low = cells.values().copied().fold(f64::INFINITY, f64::min);
    let high = cells.values().copied().fold(0.0, f64::max);
    let draw = |text: String, at: (i32, i32), size: u32, colour: RGBColor, pos: HPos| {
        let style = (FONT, size).into_font().color(&colour).pos(Pos::new(pos, VPos::Center));
        area.draw(&Text::new(text, at, style)).map_err(text_error)
    };
    let title = format!("bits per weight by layer and tensor, file at {:.2}", point.bits_per_weight);
    draw(title, (14, 22), 18, BLACK, HPos::Left)?;
    for (c, kind) in columns.iter().enumerate() {
        let x = MARGIN.0 + CELL.0 * c as i32 + CELL.0 / 2;
        draw(kind.replace("embed_tokens", "embedding"), (x, MARGIN.1 - 14), 13, BLACK, HPos::Center)?;
    }
    for (r, layer) in rows.iter().enumerate() {
        let y = MARGIN.1 + CELL.1 * r as i32;
        let label = layer.map_or("outside blocks".to_string(), |l| format!("layer {l}"));
        draw(label, (MARGIN.0 - 8, y + CELL.1 / 2), 13, BLACK, HPos::Right)?;
        for c in 0..columns.len() {
            let Some(&bits) = cells.get(&(r, c)) else { continue };
            let x = MARGIN.0 + CELL.0 * c as i32;
            let (fill, ink) = shade((bits - low) / (high - low).max(1e-9));
            let corners = [(x + 1, y + 1), (x + CELL.0 - 1, y + CELL.1 - 1)];
            area.draw(&Rectangle::new(corners, fill.filled())).map_err(text_error)?;
            draw(format!("{bits:.2}"), (x + CELL.0 / 2, y + CELL.1 / 2), 13, ink, HPos::Center)?;
        }
    }
    Ok(())
}
