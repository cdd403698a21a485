//! Bitmaps with twice the pixels in each direction, and with text set by the font's own metrics.
//!
//! plotters 0.3.7 draws the bitmap of every glyph at the pen and leaves out the glyph's left side bearing, and rounds the
//! pen to whole pixels: letters of one word stand apart. Here each glyph is outlined at its exact place in the line.

use std::sync::OnceLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};

/// Pixels of the bitmap for each pixel of the figure's layout.
pub(crate) const SCALE: u32 = 2;
/// Baseline under the upper edge of a line of text, and above its lower edge, in font sizes.
const BASELINE_TOP: f32 = 0.72;
const BASELINE_BOTTOM: f32 = 0.09;

/// The font of all figures.
pub(crate) fn font_bytes() -> &'static [u8] {
    epaint_default_fonts::UBUNTU_LIGHT
}

fn font() -> &'static FontRef<'static> {
    static FONT: OnceLock<FontRef<'static>> = OnceLock::new();
    FONT.get_or_init(|| FontRef::try_from_slice(font_bytes()).expect("a font that is compiled in"))
}

/// A line of text: glyphs at their pens, in pixels from the line's beginning on the baseline, and the width of all.
fn set_line(text: &str, size: f32) -> (Vec<ab_glyph::Glyph>, f32) {
    let scaled = font().as_scaled(PxScale::from(size));
    let (mut glyphs, mut pen, mut before) = (Vec::new(), 0.0, None);
    for c in text.chars() {
        let id = scaled.glyph_id(c);
        if let Some(before) = before {
            pen += scaled.kern(before, id);
        }
        glyphs.push(id.with_scale_and_position(size, point(pen, 0.0)));
        pen += scaled.h_advance(id);
        before = Some(id);
    }
    (glyphs, pen)
}

/// Pixels that a line of text takes in a figure's layout, with some room for the wider fonts of browsers.
pub(crate) fn text_width(text: &str, size: u32) -> u32 {
    (set_line(text, size as f32).1 * 1.1).ceil() as u32
}

/// Height of capitals in pixels.
fn capitals(size: f32) -> f32 {
    let glyph = font().glyph_id('H').with_scale(size);
    font().outline_glyph(glyph).map_or(0.0, |g| g.px_bounds().height())
}

/// Draws on a bitmap of [`SCALE`] times the size that it reports.
pub(crate) struct Fine<B>(pub B);

/// A style with wider strokes.
struct Wide<'a, S>(&'a S);

impl<S: BackendStyle> BackendStyle for Wide<'_, S> {
    fn color(&self) -> BackendColor {
        self.0.color()
    }

    fn stroke_width(&self) -> u32 {
        self.0.stroke_width() * SCALE
    }
}

fn scaled((x, y): BackendCoord) -> BackendCoord {
    (x * SCALE as i32, y * SCALE as i32)
}

type Drawn<B> = Result<(), DrawingErrorKind<<B as DrawingBackend>::ErrorType>>;

impl<B: DrawingBackend> DrawingBackend for Fine<B> {
    type ErrorType = B::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        let (width, height) = self.0.get_size();
        (width / SCALE, height / SCALE)
    }

    fn ensure_prepared(&mut self) -> Drawn<B> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<B> {
        self.0.present()
    }

    fn draw_pixel(&mut self, at: BackendCoord, color: BackendColor) -> Drawn<B> {
        let (x, y) = scaled(at);
        let last = SCALE as i32 - 1;
        self.0.draw_rect((x, y), (x + last, y + last), &color, true)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn<B> {
        self.0.draw_path([scaled(from), scaled(to)], &Wide(style))
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Drawn<B> {
        match fill {
            true => self.0.draw_rect(scaled(from), scaled(to), &Wide(style), true),
            // The backend draws outlines a pixel wide, whatever the style.
            false => {
                let corners = [from, (to.0, from.1), to, (from.0, to.1), from];
                corners.windows(2).try_for_each(|side| self.draw_line(side[0], side[1], style))
            }
        }
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn<B> {
        self.0.draw_path(path.into_iter().map(scaled), &Wide(style))
    }

    fn draw_circle<S: BackendStyle>(&mut self, centre: BackendCoord, radius: u32, style: &S, fill: bool) -> Drawn<B> {
        self.0.draw_circle(scaled(centre), radius * SCALE, &Wide(style), fill)
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn<B> {
        self.0.fill_polygon(path.into_iter().map(scaled), &Wide(style))
    }

    fn draw_text<T: BackendTextStyle>(&mut self, text: &str, style: &T, at: BackendCoord) -> Drawn<B> {
        let size = style.size() as f32 * SCALE as f32;
        let (glyphs, width) = set_line(text, size);
        let left = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        let baseline = match style.anchor().v_pos {
            VPos::Top => BASELINE_TOP * size,
            VPos::Center => capitals(size) / 2.0,
            VPos::Bottom => -BASELINE_BOTTOM * size,
        };
        let (x, y) = scaled(at);
        // Whole pixels for the line, so that horizontal strokes stay sharp; parts of pixels for glyphs within it.
        let (left, baseline) = (left.round(), baseline.round());
        for glyph in glyphs {
            let Some(outline) = font().outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            let mut inked = Vec::new();
            outline.draw(|dx, dy, coverage| inked.push((dx, dy, coverage.min(1.0))));
            for (dx, dy, coverage) in inked {
                let place = (corner.x + left + dx as f32, corner.y + baseline + dy as f32);
                let (dx, dy) = style.transform().transform(place.0 as i32, place.1 as i32);
                self.0.draw_pixel((x + dx, y + dy), style.color().mix(f64::from(coverage)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns of ink, joined where they touch: their gaps are what a reader sees between letters.
    fn gaps(text: &str, size: f32) -> Vec<i32> {
        let mut ink: Vec<(i32, i32)> = set_line(text, size)
            .0
            .into_iter()
            .filter_map(|g| font().outline_glyph(g))
            .map(|g| (g.px_bounds().min.x as i32, g.px_bounds().max.x as i32))
            .collect();
        ink.sort_unstable();
        ink.windows(2).map(|w| w[1].0 - w[0].1).collect()
    }

    #[test]
    fn letters_of_a_word_keep_together() {
        for (text, size) in [("bits", 32.0), ("memory", 28.0), ("predicted", 34.0), ("weight", 16.0)] {
            let gaps = gaps(text, size);
            let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
            assert!(most - least <= 4 && f64::from(*most) < f64::from(size) * 0.16, "{text}: {gaps:?}");
        }
        assert!(gaps("a b", 32.0)[0] > 5, "words stand apart");
    }

    #[test]
    fn bitmaps_have_twice_the_pixels_and_black_text() {
        use plotters::prelude::*;
        let mut pixels = vec![255u8; 3 * 200 * 80];
        {
            let area = Fine(BitMapBackend::with_buffer(&mut pixels, (200, 80))).into_drawing_area();
            assert_eq!(area.dim_in_pixel(), (100, 40));
            crate::style::words(&area, "Hill", (50, 20), 16, &BLACK, HPos::Center).unwrap();
        }
        let dark: Vec<(usize, usize)> =
            (0..pixels.len() / 3).filter(|n| pixels[3 * n] < 90).map(|n| (n % 200, n / 200)).collect();
        let range =
            |of: fn(&(usize, usize)) -> usize| (dark.iter().map(of).min().unwrap(), dark.iter().map(of).max().unwrap());
        let ((left, right), (top, bottom)) = (range(|p| p.0), range(|p| p.1));
        assert!((left + right).abs_diff(200) <= 6 && (top + bottom).abs_diff(80) <= 4, "{left} {right} {top} {bottom}");
    }
}
