//! Several curves of quality against size in one figure.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::bitmap::text_width;
use crate::error::Result;
use crate::pareto;
use crate::style::{
    COLOURS, DESCRIPTION, Drawn, FONT, Figure, GREY, LABEL, MESH, NOTE, SIZE, TITLE, above_note, decades, legend, note,
    plain, range, round, scientific, shortened, text_error, words,
};

/// Most curves that the legend names, and most that it names inside the figure; more are named to the right of it.
const NAMED: usize = 18;
const INSIDE: usize = 5;
/// Pixels of the legend to the right besides its longest name, and height of its rows.
const SIDE: u32 = 40;
const ROW: i32 = 22;
/// Values of which the largest is more than so many times the least go by their logarithms where less is better.
const WIDE: f64 = 4.0;
/// Greatest relative difference of sizes that count as the same for the Pareto front.
const SAME: f64 = 0.004;
/// Points of a curve whose marks are small.
const MANY: usize = 40;
/// Characters of a label that the legend has room for.
const LABEL_LENGTH: usize = 44;

/// A point of a curve.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// Size, such as bits per weight.
    pub size: f64,
    /// Quality at that size.
    pub value: f64,
    /// 95 % interval of the quality.
    pub interval: Option<(f64, f64)>,
    /// Name written next to the mark.
    pub name: Option<String>,
}

/// The line through the points of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Solid: files of their own, with a free choice of lambda between them.
    Solid,
    /// Dashed: prefixes of one checkpoint.
    Dashed,
    /// No line: files of other quantizers.
    None,
}

/// A curve.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Name in the legend.
    pub label: String,
    /// Points in the order in which the line joins them.
    pub points: Vec<CurvePoint>,
    /// Kind of line.
    pub line: Line,
}

/// The vertical axis.
#[derive(Debug, Clone, PartialEq)]
pub enum Quality {
    /// A loss on a logarithmic axis, such as KL; less is better.
    Loss(String),
    /// Less is better; the axis is logarithmic if values are far apart. The original's value is drawn as a line.
    Low(String, Option<f64>),
    /// More is better. The original's value is drawn as a line.
    High(String, Option<f64>),
}

impl Quality {
    fn description(&self) -> &str {
        let (Self::Loss(text) | Self::Low(text, _) | Self::High(text, _)) = self;
        text
    }

    fn original(&self) -> Option<f64> {
        match self {
            Self::Loss(_) => None,
            Self::Low(_, original) | Self::High(_, original) => *original,
        }
    }
}

/// Curves in one figure.
#[derive(Debug, Clone)]
pub struct Curves {
    /// Title above the figure.
    pub title: String,
    /// Description of the horizontal axis.
    pub size: String,
    /// True for a logarithmic horizontal axis.
    pub log_size: bool,
    /// The vertical axis.
    pub quality: Quality,
    /// The curves.
    pub curves: Vec<Curve>,
    /// True if the Pareto front is drawn.
    pub front: bool,
}

/// The front of curves and points in the units of the axes, which go by logarithms or not: joined curves reach every size
/// between their points, other points their own size and larger ones.
fn front(curves: &[Curve], quality: &Quality, (log_size, log_value): (bool, bool)) -> Vec<(f64, f64)> {
    let sign = if matches!(quality, Quality::High(..)) { -1.0 } else { 1.0 };
    let shown = |p: &&CurvePoint| p.value.is_finite() && (!log_size || p.size > 0.0) && (!log_value || p.value > 0.0);
    let size = same_sizes(curves);
    let place = |p: &CurvePoint| {
        let size = if log_size { size(p.size).ln() } else { size(p.size) };
        (size, sign * if log_value { p.value.ln() } else { p.value })
    };
    let (joined, single): (Vec<&Curve>, Vec<&Curve>) = curves.iter().partition(|c| c.line != Line::None);
    let joined: Vec<Vec<(f64, f64)>> =
        joined.iter().map(|c| c.points.iter().filter(shown).map(place).collect()).collect();
    let single: Vec<(f64, f64)> = single.iter().flat_map(|c| c.points.iter().filter(shown).map(place)).collect();
    let back = |(size, cost): (f64, f64)| {
        let value = sign * cost;
        (if log_size { size.exp() } else { size }, if log_value { value.exp() } else { value })
    };
    pareto::front(&joined, &single).into_iter().map(back).collect()
}

/// Maps sizes that are the same for a reader, within [`SAME`], to the least of them: files that were made for one size differ by
/// less than that, and the smallest of them is not better for it.
fn same_sizes(curves: &[Curve]) -> impl Fn(f64) -> f64 {
    let mut sizes: Vec<f64> = curves.iter().flat_map(|c| c.points.iter().map(|p| p.size)).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup_by(|next, first| *next <= *first * (1.0 + SAME));
    move |size| sizes[sizes.partition_point(|least| *least <= size).saturating_sub(1)]
}

impl Curves {
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

    /// True if names stand to the right of the figure.
    fn beside(&self) -> bool {
        self.curves.len() > INSIDE
    }

    /// Width of the legend to the right, pixels.
    fn side(&self) -> u32 {
        let width = |c: &Curve| text_width(&shortened(&c.label, LABEL_LENGTH), NOTE);
        SIDE + self.curves.iter().take(NAMED).map(width).max().unwrap_or(0)
    }

    fn plot<'a, DB, X, Y>(
        &self,
        mut chart: ChartContext<'a, DB, Cartesian2d<X, Y>>,
        log_value: bool,
        (low, high): (f64, f64),
    ) -> Drawn
    where
        DB: DrawingBackend + 'a,
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let sizes: &dyn Fn(&f64) -> String = if self.log_size { &round } else { &plain };
        let marks: &dyn Fn(&f64) -> String = if log_value { &scientific } else { &plain };
        chart
            .configure_mesh()
            .x_desc(&self.size)
            .y_desc(self.quality.description())
            .x_label_formatter(&sizes)
            .y_label_formatter(&marks)
            .x_max_light_lines(if self.log_size { 1 } else { 10 })
            .label_style((FONT, LABEL))
            .axis_desc_style((FONT, DESCRIPTION))
            .light_line_style(MESH)
            .draw()
            .map_err(text_error)?;
        if self.front {
            let line = front(&self.curves, &self.quality, (self.log_size, log_value));
            chart
                .draw_series(LineSeries::new(line, GREY.mix(0.35).stroke_width(9)))
                .map_err(text_error)?
                .label("Pareto front")
                .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], GREY.mix(0.35).stroke_width(9)));
        }
        if let Some(original) = self.quality.original() {
            let range = chart.x_range();
            chart
                .draw_series(LineSeries::new([(range.start, original), (range.end, original)], BLACK.stroke_width(1)))
                .map_err(text_error)?
                .label("original")
                .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], BLACK.stroke_width(1)));
        }
        for (n, curve) in self.curves.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let line = || curve.points.iter().map(|p| (p.size, p.value));
            let label = shortened(&curve.label, LABEL_LENGTH);
            let style = colour.stroke_width(if curve.line == Line::Solid { 2 } else { 1 });
            let series = match curve.line {
                Line::Dashed => chart.draw_series(DashedLineSeries::new(line(), 5, 4, style)),
                Line::Solid => chart.draw_series(LineSeries::new(line(), style)),
                Line::None => chart.draw_series(LineSeries::new([], style)),
            };
            let series = series.map_err(text_error)?;
            // Beyond the palette, and of points that are not joined, marks are squares.
            let square = is_square(n, curve);
            match square {
                _ if self.beside() => {}
                true => {
                    let mark = move |at: (i32, i32)| {
                        EmptyElement::at(at) + Rectangle::new([(5, -4), (13, 4)], colour.filled())
                    };
                    series.label(label).legend(mark);
                }
                false => {
                    series.label(label).legend(move |at: (i32, i32)| {
                        EmptyElement::at(at)
                            + PathElement::new(vec![(0, 0), (18, 0)], colour.stroke_width(2))
                            + Circle::new((9, 0), 4, colour.filled())
                    });
                }
            }
            if square {
                let mark = |p| EmptyElement::at(p) + Rectangle::new([(-4, -4), (4, 4)], colour.filled());
                chart.draw_series(line().map(mark)).map_err(text_error)?;
            } else {
                let radius = if curve.points.len() > MANY { 2 } else { 4 };
                chart.draw_series(line().map(|p| Circle::new(p, radius, colour.filled()))).map_err(text_error)?;
            }
            let bars = curve.points.iter().filter_map(|p| {
                let (below, above) = p.interval?;
                let (below, above) = (below.max(low), above.min(high));
                Some(ErrorBar::new_vertical(p.size, below, p.value, above, colour.stroke_width(1), 6))
            });
            chart.draw_series(bars).map_err(text_error)?;
            let style = (FONT, NOTE).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Bottom));
            // Names that would lie over one another are left out.
            let mut taken: Vec<(i32, i32, i32)> = Vec::new();
            let mut named: Vec<(&CurvePoint, &String)> = Vec::new();
            for (p, name) in curve.points.iter().filter_map(|p| Some((p, p.name.as_ref()?))) {
                let (x, y) = chart.plotting_area().map_coordinate(&(p.size, p.value));
                let end = x + name.chars().count() as i32 * NOTE as i32 * 6 / 10;
                let free = |&(left, right, height): &(i32, i32, i32)| {
                    x > right || end < left || (y - height).abs() > NOTE as i32
                };
                if taken.iter().all(free) {
                    taken.push((x, end, y));
                    named.push((p, name));
                }
            }
            let names = named
                .into_iter()
                .map(|(p, name)| EmptyElement::at((p.size, p.value)) + Text::new(name.clone(), (6, -2), style.clone()));
            chart.draw_series(names).map_err(text_error)?;
        }
        let upper = if matches!(self.quality, Quality::High(..)) {
            SeriesLabelPosition::LowerRight
        } else {
            SeriesLabelPosition::UpperRight
        };
        legend(&mut chart, upper)
    }
}

/// Marks beyond the palette, and of points that are not joined, are squares.
fn is_square(n: usize, curve: &Curve) -> bool {
    curve.line == Line::None || n / COLOURS.len() % 2 == 1
}

impl Figure for Curves {
    fn size(&self) -> (u32, u32) {
        if self.beside() { (SIZE.0 + self.side(), SIZE.1) } else { SIZE }
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        let (area, side) = area.split_horizontally(SIZE.0);
        let area = &area;
        if self.beside() {
            for (n, curve) in self.curves.iter().enumerate().take(NAMED) {
                let (y, colour) = (40 + ROW * n as i32, COLOURS[n % COLOURS.len()]);
                match is_square(n, curve) {
                    true => side.draw(&Rectangle::new([(5, y - 5), (15, y + 5)], colour.filled())),
                    false => side.draw(&Circle::new((10, y), 5, colour.filled())),
                }
                .map_err(text_error)?;
                let label = shortened(&curve.label, LABEL_LENGTH);
                words(&side, &label, (22, y), NOTE, &BLACK, HPos::Left)?;
            }
        }
        let all = || self.curves.iter().flat_map(|c| &c.points);
        let (least, most) = all().fold((f64::INFINITY, 0.0f64), |(low, high), p| (low.min(p.size), high.max(p.size)));
        let whole = least.min(most).floor()..most.max(least.min(1.0)).ceil();
        let above = above_note(area);
        let mut builder = ChartBuilder::on(&above);
        builder
            .caption(&self.title, (FONT, TITLE))
            .margin(12)
            .margin_right(28)
            .x_label_area_size(52)
            .y_label_area_size(72);
        let ends = |p: &CurvePoint| [p.value, p.interval.map_or(p.value, |i| i.0), p.interval.map_or(p.value, |i| i.1)];
        let values = || all().map(|p| p.value).chain(self.quality.original());
        let (worst, best) = values().fold((0f64, f64::INFINITY), |(most, least), v| (most.max(v), least.min(v)));
        let loss = match self.quality {
            Quality::Loss(_) => true,
            // One bad file would flatten all others.
            Quality::Low(..) => best > 0.0 && worst > WIDE * best,
            Quality::High(..) => false,
        };
        let (low, high) = match loss {
            true => decades(values()),
            false => range(all().flat_map(ends).chain(self.quality.original())),
        };
        // Whole decades, so that there are marks.
        let decade = |v: f64, up: fn(f64) -> f64| 10f64.powf(up(v.max(f64::MIN_POSITIVE).log10()));
        let sizes = decade(least, f64::floor)..decade(most * 1.01, f64::ceil);
        match (self.log_size, loss) {
            (false, true) => {
                let chart = builder.build_cartesian_2d(whole, (low..high).log_scale()).map_err(text_error)?;
                self.plot(chart, loss, (low, high))?;
            }
            (false, false) => {
                let chart = builder.build_cartesian_2d(whole, low..high).map_err(text_error)?;
                self.plot(chart, loss, (low, high))?;
            }
            (true, true) => {
                let axes = (sizes.log_scale(), (low..high).log_scale());
                self.plot(builder.build_cartesian_2d(axes.0, axes.1).map_err(text_error)?, loss, (low, high))?;
            }
            (true, false) => {
                let chart = builder.build_cartesian_2d(sizes.log_scale(), low..high).map_err(text_error)?;
                self.plot(chart, loss, (low, high))?;
            }
        }
        let prefixes = if self.curves.iter().any(|c| c.line == Line::Dashed) {
            "dashed: prefixes of one checkpoint; "
        } else {
            ""
        };
        let bars = if all().any(|p| p.interval.is_some()) { "bars: 95 %" } else { "" };
        let more = match self.curves.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("{more} more are not named; "),
        };
        note(area, format!("{more}{prefixes}{bars}").trim_end_matches("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_does_not_flatten_the_others() {
        let marks = |worst: f64| {
            let point = |size: f64, value: f64| CurvePoint { size, value, interval: None, name: None };
            let points = vec![point(2.0, worst), point(3.0, 42.0), point(4.0, 41.7)];
            let curves = Curves {
                title: "t".into(),
                size: "bits".into(),
                log_size: false,
                quality: Quality::Low("perplexity".into(), Some(41.6)),
                curves: vec![Curve { label: "a".into(), points, line: Line::Solid }],
                front: false,
            };
            curves.svg().unwrap()
        };
        assert!(marks(2300.0).contains("1e3") && !marks(50.0).contains("1e1"));
    }

    #[test]
    fn the_front_follows_the_lines_that_are_drawn() {
        let curve = |points: &[(f64, f64)], line: Line| Curve {
            label: String::new(),
            points: points
                .iter()
                .map(|&(size, value)| CurvePoint { size, value, interval: None, name: None })
                .collect(),
            line,
        };
        let near = |a: &[(f64, f64)], b: &[(f64, f64)]| {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| (a.0 - b.0).abs() < 1e-9 && (a.1 / b.1 - 1.0).abs() < 1e-9)
        };
        // The second curve's point is better than the smaller file of the first, and above the line between its two.
        let better = curve(&[(2.0, 0.1), (4.0, 0.001)], Line::Solid);
        let worse = curve(&[(3.0, 0.05), (5.0, 0.005)], Line::Solid);
        let loss = Quality::Loss("KL".into());
        let curves = [better.clone(), worse];
        assert!(near(&front(&curves, &loss, (false, true)), &[(2.0, 0.1), (4.0, 0.001)]));
        // By the values themselves the same line runs above that point.
        assert_eq!(front(&curves, &loss, (false, false)).len(), 5);
        // Other quantizers' files are not joined: a step.
        let peers = curve(&[(3.0, 0.002), (6.0, 0.5)], Line::None);
        let steps = front(&[better, peers], &loss, (false, true));
        assert!(near(&steps[1..3], &[(3.0, 0.01), (3.0, 0.002)]), "{steps:?}");
        // A file that is smaller by less than a reader can see is not better for it.
        let nearly = [curve(&[(2.0, 0.5), (4.0, 0.4)], Line::Solid), curve(&[(2.001, 0.1), (4.0, 0.01)], Line::Solid)];
        assert!(near(&front(&nearly, &loss, (false, true)), &[(2.0, 0.1), (4.0, 0.01)]));
        let high = Quality::High("accuracy".into(), None);
        let curves = [curve(&[(2.0, 50.0), (4.0, 90.0)], Line::Solid), curve(&[(3.0, 60.0), (5.0, 95.0)], Line::None)];
        let most = front(&curves, &high, (false, false));
        assert!(near(&most, &[(2.0, 50.0), (4.0, 90.0), (5.0, 90.0), (5.0, 95.0)]), "{most:?}");
    }
}
