//! Size, type and colours of all figures, and one drawing for both SVG and PNG.

use std::path::Path;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::bitmap::{Fine, SCALE, font_bytes};
use crate::error::{ReportError, Result, save};

/// Size of figures; in a column of a paper their type has 6 points or more.
pub(crate) const SIZE: (u32, u32) = (640, 440);
pub(crate) const FONT: &str = "sans-serif";
/// Sizes of type in pixels.
pub(crate) const TITLE: u32 = 19;
pub(crate) const DESCRIPTION: u32 = 17;
pub(crate) const LABEL: u32 = 16;
pub(crate) const NOTE: u32 = 14;
/// Okabe & Ito's palette, distinguishable without colour vision.
pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
pub(crate) const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub(crate) const GREEN: RGBColor = RGBColor(0, 158, 115);
pub(crate) const PURPLE: RGBColor = RGBColor(204, 121, 167);
pub(crate) const GREY: RGBColor = RGBColor(130, 130, 130);
pub(crate) const MESH: RGBColor = RGBColor(240, 240, 240);
/// The same, for series one after the other.
pub(crate) const COLOURS: [RGBColor; 7] =
    [BLUE, ORANGE, GREEN, PURPLE, RGBColor(213, 94, 0), RGBColor(86, 180, 233), RGBColor(0, 0, 0)];
/// Half width of a 95 % interval in standard errors.
pub(crate) const Z: f64 = 1.96;

/// Result of drawing; the error is the plotting library's message.
pub(crate) type Drawn = std::result::Result<(), String>;

pub(crate) fn text_error<E: std::fmt::Display>(e: E) -> String {
    e.to_string()
}

/// The plotting library takes text sizes from a font it is given; browsers use their own.
fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for style in [FontStyle::Normal, FontStyle::Bold] {
            let _ = plotters::style::register_font(FONT, style, font_bytes());
        }
    });
}

/// Something that can be drawn in any format.
pub(crate) trait Figure {
    /// Pixels.
    fn size(&self) -> (u32, u32) {
        SIZE
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn;

    /// Returns the figure as SVG text.
    fn svg(&self, name: &str) -> Result<String> {
        register_fonts();
        let failed = |reason| ReportError::Figure { figure: name.into(), reason };
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, self.size()).into_drawing_area();
            area.fill(&WHITE).map_err(text_error).map_err(failed)?;
            self.draw(&area).map_err(failed)?;
            area.present().map_err(text_error).map_err(failed)?;
        }
        Ok(text)
    }

    /// Writes a PNG file of twice the size in pixels.
    fn png(&self, path: &Path) -> Result<()> {
        register_fonts();
        let failed = |reason| ReportError::Figure { figure: path.display().to_string(), reason };
        let (width, height) = self.size();
        let area = Fine(BitMapBackend::new(path, (width * SCALE, height * SCALE))).into_drawing_area();
        area.fill(&WHITE).map_err(text_error).map_err(failed)?;
        self.draw(&area).map_err(failed)?;
        area.present().map_err(text_error).map_err(failed)
    }

    /// Writes `NAME.svg` and `NAME.png` into a directory, and returns the path of the latter.
    fn write(&self, dir: &Path, name: &str) -> Result<std::path::PathBuf> {
        let image = dir.join(format!("{name}.png"));
        self.png(&image)?;
        save(&dir.join(format!("{name}.svg")), &self.svg(name)?)?;
        Ok(image)
    }
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

/// Least and greatest of values with a margin on both sides.
pub(crate) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let margin = ((high - low) * 0.08).max(high.abs() * 1e-3).max(1e-9);
    (low - margin, high + margin)
}

/// A label of at most so many characters; a longer one ends with an ellipsis.
pub(crate) fn shortened(label: &str, most: usize) -> String {
    match label.chars().count() > most {
        true => label.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        false => label.into(),
    }
}

pub(crate) fn scientific(v: &f64) -> String {
    format!("{v:.0e}")
}

/// Digits that tell marks of an axis apart.
pub(crate) fn plain(v: &f64) -> String {
    let text = format!("{v:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Marks of a logarithmic axis: one, two and five of every decade, thousands as k.
pub(crate) fn round(v: &f64) -> String {
    let first = v / 10f64.powf(v.log10().floor());
    match [1.0, 2.0, 5.0].iter().any(|m| (first / m - 1.0).abs() < 1e-6) {
        true if *v >= 1000.0 => format!("{}k", plain(&(v / 1000.0))),
        true => plain(v),
        false => String::new(),
    }
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
        .label_font((FONT, LABEL))
        .draw()
        .map_err(text_error)
}

/// The part of a figure above its small print.
pub(crate) fn above_note<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>) -> DrawingArea<DB, Shift> {
    area.margin(0, NOTE, 0, 0)
}

/// Small print at the lower right.
pub(crate) fn note<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, text: &str) -> Drawn {
    let (width, height) = area.dim_in_pixel();
    words(area, text, (width as i32 - 10, height as i32 - 10), NOTE, &RGBColor(90, 90, 90), HPos::Right)
}

/// Text whose middle is at a height.
pub(crate) fn words<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    text: &str,
    at: (i32, i32),
    size: u32,
    colour: &RGBColor,
    from: HPos,
) -> Drawn {
    let style = (FONT, size).into_font().color(colour).pos(Pos::new(from, VPos::Center));
    area.draw(&Text::new(text.to_string(), at, style)).map_err(text_error)
}

/// From pale to blue, light enough for black text below and dark enough for white above.
pub(crate) fn shade(share: f64) -> (RGBColor, RGBColor) {
    let mix = |from: f64, to: f64| (from + (to - from) * share.clamp(0.0, 1.0)) as u8;
    let text = if share > 0.5 { WHITE } else { BLACK };
    (RGBColor(mix(240.0, 0.0), mix(246.0, 80.0), mix(252.0, 140.0)), text)
}
