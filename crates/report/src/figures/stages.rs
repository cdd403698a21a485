//! Seconds and memory of stages.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use crate::error::Result;
use crate::style::{BLUE, Drawn, Figure, LABEL, ORANGE, TITLE, text_error, words};

const ROW: i32 = 26;
const TOP: i32 = 84;
const BAR: i32 = 170;
const NAMES: i32 = 150;

/// Costs of all artifacts of a stage.
#[derive(Debug, Clone)]
pub struct StageCost {
    /// Name of the stage.
    pub stage: String,
    /// Number of artifacts.
    pub artifacts: usize,
    /// Sum of their wall-clock seconds.
    pub seconds: f64,
    /// Highest peak memory of a process that made one, bytes.
    pub peak_bytes: u64,
}

/// Seconds and memory, one row per stage.
#[derive(Debug, Clone)]
pub struct Stages {
    /// Stages from top to bottom.
    pub stages: Vec<StageCost>,
}

impl Stages {
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
        Figure::svg(self, "stages")
    }
}

impl Figure for Stages {
    fn size(&self) -> (u32, u32) {
        (660, (TOP + ROW * self.stages.len() as i32 + 16) as u32)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn {
        words(area, "Seconds and memory by stage", (14, 24), TITLE, &BLACK, HPos::Left)?;
        let (first, second) = (NAMES + 8, NAMES + 8 + BAR + 84);
        words(area, "seconds, all artifacts", (first, TOP - 18), LABEL, &BLACK, HPos::Left)?;
        words(area, "peak memory, GB", (second, TOP - 18), LABEL, &BLACK, HPos::Left)?;
        let most = self.stages.iter().map(|s| s.seconds).fold(1e-9, f64::max);
        let peak = self.stages.iter().map(|s| s.peak_bytes).max().unwrap_or(0).max(1);
        for (n, stage) in self.stages.iter().enumerate() {
            let y = TOP + ROW * n as i32 + ROW / 2;
            let name = if stage.artifacts == 1 {
                stage.stage.clone()
            } else {
                format!("{} x {}", stage.artifacts, stage.stage)
            };
            words(area, &name, (NAMES, y), LABEL, &BLACK, HPos::Right)?;
            for (left, share, text, colour) in [
                (first, stage.seconds / most, format!("{:.1}", stage.seconds), BLUE),
                (
                    second,
                    stage.peak_bytes as f64 / peak as f64,
                    format!("{:.2}", stage.peak_bytes as f64 / 1e9),
                    ORANGE,
                ),
            ] {
                let right = left + (f64::from(BAR) * share).round().max(1.0) as i32;
                area.draw(&Rectangle::new([(left, y - 8), (right, y + 8)], colour.filled())).map_err(text_error)?;
                words(area, &text, (right + 6, y), LABEL, &BLACK, HPos::Left)?;
            }
        }
        Ok(())
    }
}
