//! Inside one matrix: sensitivity, bits and mode of every tile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use serde::Serialize;

use crate::error::Result;
use crate::style::{COLOURS, Drawn, Figure, LABEL, NOTE, TITLE, shade, text_error, words};

/// Cells of a map across and down, at most; larger matrices have several tiles in a cell.
const MOST: usize = 64;
/// Side of a map in pixels, and its place.
const SIDE: i32 = 256;
const TOP: i32 = 92;
const LEFT: i32 = 16;
const GAP: i32 = 34;
/// Modes with a colour of their own; the others share the last.
const MODES: usize = 6;

/// Tiles of one matrix in raster order.
#[derive(Debug, Clone, Serialize)]
pub struct TileMap {
    /// Name of the matrix.
    pub tensor: String,
    /// Tiles in a row of tiles.
    pub across: usize,
    /// Mean Fisher information of each tile's weights, nats.
    pub sensitivity: Vec<f64>,
    /// Estimated bits per weight.
    pub bits: Vec<f64>,
    /// Format and coding tool, as coded.
    pub modes: Vec<String>,
    /// Bits per weight of the whole file.
    pub bits_per_weight: f64,
}

/// Cells of a map and the tiles in each.
struct Cells {
    across: usize,
    down: usize,
    /// Tiles by cell.
    tiles: Vec<Vec<usize>>,
}

impl TileMap {
    /// Writes `NAME.svg` and `NAME.png` into a directory, and returns the path of the latter.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        Figure::write(self, dir, name)
    }

    fn cells(&self) -> Cells {
        let (wide, high) = (self.across.max(1), (self.sensitivity.len() / self.across.max(1)).max(1));
        let (across, down) = (wide.min(MOST), high.min(MOST));
        let mut tiles = vec![Vec::new(); across * down];
        for n in 0..self.sensitivity.len() {
            let (row, col) = (n / wide * down / high, n % wide * across / wide);
            tiles[row * across + col].push(n);
        }
        Cells { across, down, tiles }
    }

    /// The modes that have colours, the most frequent first, with their shares of tiles.
    fn ranked(&self) -> Vec<(String, f64)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.modes.iter().for_each(|m| *counts.entry(m).or_default() += 1);
        let mut ranked: Vec<(&str, usize)> = counts.into_iter().collect();
        ranked.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let share = |count: usize| count as f64 / self.modes.len().max(1) as f64;
        let mut modes: Vec<(String, f64)> =
            ranked.iter().take(MODES).map(|&(m, count)| (m.to_string(), share(count))).collect();
        let rest: usize = ranked.iter().skip(MODES).map(|r| r.1).sum();
        if rest > 0 {
            modes.push(("others".into(), share(rest)));
        }
        modes
    }
}

/// Rectangles of one colour in a row are one.
fn paint<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    cells: &Cells,
    left: i32,
    colour: impl Fn(&[usize]) -> RGBColor,
) -> Drawn {
    let edge = |n: usize, of: usize| (n as i32 * SIDE) / of as i32;
    // Matrices keep their shape.
    let longest = cells.across.max(cells.down);
    for row in 0..cells.down {
        let colours: Vec<RGBColor> = (0..cells.across).map(|c| colour(&cells.tiles[row * cells.across + c])).collect();
        let mut from = 0;
        while from < cells.across {
            let to = (from..cells.across).take_while(|&c| colours[c] == colours[from]).last().unwrap_or(from) + 1;
            let corners = [
                (left + edge(from, longest), TOP + edge(row, longest)),
                (left + edge(to, longest), TOP + edge(row + 1, longest)),
            ];
            area.draw(&Rectangle::new(corners, colours[from].filled())).map_err(text_error)?;
            from = to;
        }
    }
    Ok(())
}

/// Values as shades between the least and greatest, of which 5 % are beyond at each end.
fn shaded<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    cells: &Cells,
    (left, title): (i32, &str),
    values: &[f64],
    log: bool,
) -> Drawn {
    let mean = |tiles: &[usize]| tiles.iter().map(|&n| values[n]).sum::<f64>() / tiles.len().max(1) as f64;
    let scaled = |v: f64| if log { v.max(f64::MIN_POSITIVE).ln() } else { v };
    let mut sorted: Vec<f64> = cells.tiles.iter().filter(|t| !t.is_empty()).map(|t| mean(t)).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0.0);
    let (low, high) = (at(0.05), at(0.95));
    // Sixteen shades are as many as an eye tells apart.
    let shade_of = |v: f64| {
        let share = (scaled(v) - scaled(low)) / (scaled(high) - scaled(low)).max(1e-9);
        shade((share.clamp(0.0, 1.0) * 15.0).round() / 15.0).0
    };
    paint(area, cells, left, |tiles| shade_of(mean(tiles)))?;
    words(area, title, (left, TOP - 16), LABEL, &BLACK, HPos::Left)?;
    let (form, y): (fn(f64) -> String, i32) =
        (if log { |v| format!("{v:.1e}") } else { |v| format!("{v:.2}") }, TOP + cells.height() + 20);
    for n in 0..16 {
        let x = left + n * 10;
        let corners = [(x, y - 7), (x + 10, y + 7)];
        area.draw(&Rectangle::new(corners, shade(f64::from(n) / 15.0).0.filled())).map_err(text_error)?;
    }
    words(area, &form(low), (left, y + 20), NOTE, &BLACK, HPos::Left)?;
    words(area, &form(high), (left + 160, y + 20), NOTE, &BLACK, HPos::Right)
}

impl Cells {
    /// Pixels from the top of a map to its bottom.
    fn height(&self) -> i32 {
        SIDE * self.down as i32 / self.across.max(self.down) as i32
    }
}

impl Figure for TileMap {
    fn size(&self) -> (u32, u32) {
        let height = TOP + self.cells().height() + 20 + 21 * (self.ranked().len() as i32).max(2);
        ((LEFT * 2 + SIDE * 3 + GAP * 2) as u32, height as u32)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        let cells = self.cells();
        let title = format!("{}, file at {:.2} bits per weight", self.tensor, self.bits_per_weight);
        words(area, &title, (LEFT, 22), TITLE, &BLACK, HPos::Left)?;
        let down = self.sensitivity.len() / self.across.max(1);
        let tiles = format!("{down} x {} tiles of 16 x 16 weights; inputs go right, outputs down", self.across);
        words(area, &tiles, (LEFT, 46), NOTE, &BLACK, HPos::Left)?;
        shaded(area, &cells, (LEFT, "Fisher information by weight"), &self.sensitivity, true)?;
        let second = LEFT + SIDE + GAP;
        shaded(area, &cells, (second, "bits per weight (estimated)"), &self.bits, false)?;
        let third = second + SIDE + GAP;
        let ranked = self.ranked();
        let place = |mode: &str| ranked.iter().position(|(m, _)| m == mode).unwrap_or(ranked.len().max(1) - 1);
        let commonest = |tiles: &[usize]| {
            let mut counts = [0; MODES + 1];
            tiles.iter().for_each(|&n| counts[place(&self.modes[n])] += 1);
            (0..counts.len()).max_by_key(|&n| (counts[n], std::cmp::Reverse(n))).unwrap_or(0)
        };
        paint(area, &cells, third, |tiles| if tiles.is_empty() { WHITE } else { COLOURS[commonest(tiles)] })?;
        words(area, "mode, as coded", (third, TOP - 16), LABEL, &BLACK, HPos::Left)?;
        for (n, (mode, share)) in ranked.iter().enumerate() {
            let (x, y) = (third, TOP + cells.height() + 20 + 21 * n as i32);
            area.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], COLOURS[n].filled())).map_err(text_error)?;
            let text = format!("{mode}, {:.1} % of tiles", share * 100.0);
            words(area, &text, (x + 18, y), NOTE, &BLACK, HPos::Left)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_in_one_cell_and_rare_modes_share_a_colour() {
        let (across, down) = (100, 3);
        let count = across * down;
        let map = TileMap {
            tensor: "t".into(),
            across,
            sensitivity: vec![1.0; count],
            bits: vec![2.0; count],
            modes: (0..count).map(|n| format!("m{}", (n % 20) * (n % 20) / 20)).collect(),
            bits_per_weight: 3.0,
        };
        let cells = map.cells();
        assert_eq!((cells.across, cells.down), (MOST, 3));
        let mut all: Vec<usize> = cells.tiles.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..count).collect::<Vec<_>>());
        let ranked = map.ranked();
        assert_eq!((ranked.len(), ranked[MODES].0.as_str()), (MODES + 1, "others"));
        assert!((ranked.iter().map(|r| r.1).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(map.svg("t").unwrap().contains("Fisher"));
    }
}
