//! Steps that many tiles share, and formats that whole matrices do: what runtimes of other formats multiply from.

use std::collections::BTreeMap;

use waterfill_codec::{Format, TILE, TensorPlan};

/// Which weights of a matrix have one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Those of a tile, which has a format of its own.
    #[default]
    Tile,
    /// Those of this many columns in a row of tiles, each row with a scale: all columns of matrices of another width.
    Columns(usize),
    /// All.
    Matrix,
}

impl Sharing {
    /// Tiles of a plan that have one step, by number.
    pub fn units(self, plan: &TensorPlan) -> Vec<Vec<usize>> {
        let across = plan.tiles_across();
        let width = match self {
            Self::Tile => 1,
            Self::Columns(columns) if columns >= TILE && plan.cols.is_multiple_of(columns) => columns / TILE,
            Self::Columns(_) => across,
            Self::Matrix => return vec![(0..plan.tiles.len()).collect()],
        };
        let row = |row: usize| (row * across..(row + 1) * across).collect::<Vec<_>>();
        let rows = (0..plan.tiles.len() / across.max(1)).map(row);
        rows.flat_map(|tiles| tiles.chunks(width.max(1)).map(<[usize]>::to_vec).collect::<Vec<_>>()).collect()
    }
}

/// Matrices that have one format each, and steps that tiles share.
#[derive(Debug, Clone, PartialEq)]
pub struct Structure {
    /// Which steps.
    pub sharing: Sharing,
    /// Names of the matrices, each with that of the set that has one format: runtimes compute with a set as one matrix.
    pub sets: BTreeMap<String, String>,
    /// Format of each, once it is decided.
    pub formats: BTreeMap<String, Format>,
}

/// J of a matrix for every format that it can have.
pub type FormatCosts = BTreeMap<Format, f64>;
