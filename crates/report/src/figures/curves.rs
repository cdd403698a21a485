//! Several curves of quality against size in one figure.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Result;
use crate::style::{
    COLOURS, DESCRIPTION, Drawn, FONT, Figure, GREY, LABEL, MESH, NOTE, SIZE, TITLE, above_note, decades, legend, note,
    plain, range, round, scientific, text_error, words,
};

/// Curves that the legend names, and how many of them fit into the figure: more stand beside it.
const NAMED: usize = 18;
const INSIDE: usize = 5;
/// Pixels beside the figure, and between two names there.
const SIDE: u32 = 300;
const ROW: i32 = 22;
/// Values of which the largest is more than so many times the least go by their logarithms where less is better.
const WIDE: f64 = 4.0;
/// Points of a curve whose marks are small.
const MANY: usize = 40;
/// Characters of a label that the legend has room for.
const LABEL_LENGTH: usize = 44;

/// A point of a curve.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// Its size, such as bits per weight.
    pub size: f64,
    /// Its quality.
    pub value: f64,
    /// A 95 % interval of that.
    pub interval: Option<(f64, f64)>,
    /// A name to write beside it.
    pub name: Option<String>,
}

/// How points of a curve belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Files of their own.
    Solid,
    /// Prefixes of one checkpoint.
    Dashed,
    /// Not at all: other quantizers.
    None,
}

/// A curve.
#[derive(Debug, Clone)]
pub struct Curve {
    /// In the legend.
    pub label: String,
    /// In the order in which they are joined.
    pub points: Vec<CurvePoint>,
    /// How they are joined.
    pub line: Line,
}

/// What quality is measured in.
#[derive(Debug, Clone, PartialEq)]
pub enum Quality {
    /// Less is better, by its logarithm: KL.
    Loss(String),
    /// Less is better, by its logarithm where values are far apart; the original's value is a line.
    Low(String, Option<f64>),
    /// More is better; the original's value is a line.
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

    fn better(&self, a: f64, b: f64) -> bool {
        if matches!(self, Self::High(..)) { a > b } else { a < b }
    }
}

/// Curves in one figure.
#[derive(Debug, Clone)]
pub struct Curves {
    /// Above the figure.
    pub title: String,
    /// What sizes are.
    pub size: String,
    /// Whether sizes go by their logarithms.
    pub log_size: bool,
    /// What values are.
    pub quality: Quality,
    /// All of them.
    pub curves: Vec<Curve>,
    /// Whether the points that no other is better than are joined.
    pub front: bool,
}

/// Points that none of as small a size is better than, by size (Pareto).
pub(crate) fn front(curves: &[Curve], quality: &Quality) -> Vec<(f64, f64)> {
    let mut all: Vec<(f64, f64)> = curves.iter().flat_map(|c| c.points.iter().map(|p| (p.size, p.value))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best: Vec<(f64, f64)> = Vec::new();
    for point in all {
        if best.last().is_none_or(|last| quality.better(point.1, last.1)) {
            best.push(point);
        }
    }
    best
}

impl Curves {
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

    /// Whether names stand beside the figure.
    fn beside(&self) -> bool {
        self.curves.len() > INSIDE
    }

    fn plot<'a, DB, X, Y>(
        &self,
        mut chart: ChartContext<'a, DB, Cartesian2d<X, Y>>,
        marks: &dyn Fn(&f64) -> String,
        (low, high): (f64, f64),
    ) -> Drawn
    where
        DB: DrawingBackend + 'a,
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let sizes: &dyn Fn(&f64) -> String = if self.log_size { &round } else { &plain };
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
            let line = front(&self.curves, &self.quality);
            chart
                .draw_series(LineSeries::new(line, GREY.mix(0.35).stroke_width(9)))
                .map_err(text_error)?
                .label("best of all (Pareto)")
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
            let label: String = curve.label.chars().take(LABEL_LENGTH).collect();
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
        if self.beside() { (SIZE.0 + SIDE, SIZE.1) } else { SIZE }
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
                let label: String = curve.label.chars().take(LABEL_LENGTH).collect();
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
        let marks: &dyn Fn(&f64) -> String = if loss { &scientific } else { &plain };
        // Whole decades, so that there are marks.
        let decade = |v: f64, up: fn(f64) -> f64| 10f64.powf(up(v.max(f64::MIN_POSITIVE).log10()));
        let sizes = decade(least, f64::floor)..decade(most * 1.01, f64::ceil);
        match (self.log_size, loss) {
            (false, true) => {
                let chart = builder.build_cartesian_2d(whole, (low..high).log_scale()).map_err(text_error)?;
                self.plot(chart, marks, (low, high))?;
            }
            (false, false) => {
                let chart = builder.build_cartesian_2d(whole, low..high).map_err(text_error)?;
                self.plot(chart, marks, (low, high))?;
            }
            (true, true) => {
                let axes = (sizes.log_scale(), (low..high).log_scale());
                self.plot(builder.build_cartesian_2d(axes.0, axes.1).map_err(text_error)?, marks, (low, high))?;
            }
            (true, false) => {
                let chart = builder.build_cartesian_2d(sizes.log_scale(), low..high).map_err(text_error)?;
                self.plot(chart, marks, (low, high))?;
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
    fn the_front_has_what_nothing_smaller_is_better_than() {
        let point = |size: f64, value: f64| CurvePoint { size, value, interval: None, name: None };
        let curve = |points: &[(f64, f64)]| Curve {
            label: String::new(),
            points: points.iter().map(|&(s, v)| point(s, v)).collect(),
            line: Line::Solid,
        };
        let curves = [curve(&[(2.0, 0.5), (4.0, 0.1), (6.0, 0.05)]), curve(&[(3.0, 0.6), (5.0, 0.02)])];
        assert_eq!(front(&curves, &Quality::Loss("KL".into())), [(2.0, 0.5), (4.0, 0.1), (5.0, 0.02)]);
        let most = front(&curves, &Quality::High("accuracy".into(), None));
        assert_eq!(most, [(2.0, 0.5), (3.0, 0.6)]);
    }
}
