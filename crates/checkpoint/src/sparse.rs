//! 2:4 sparse refinements, as sparse tensor cores multiply them: at most two of four levels are not zero.

use rayon::prelude::*;
use waterfill_codec::{CodedTensor, Format, TILE};

use crate::control::{Control, Parts};
use crate::error::{CheckpointError, Result};
use crate::open::Checkpoint;
use crate::packed::PackedTensor;
use crate::types::Storage;

/// Columns of a group, of which two have a level.
pub const FOUR: usize = 4;

/// A 2:4 sparse refinement of a matrix `[rows, cols]`. The weight in row r and column 4 g + p is the level of group
/// (r, g) with position p, times the scales of its tile, row and column; zero if no level has that position.
pub struct SparseTensor {
    /// Rows (output features).
    pub rows: usize,
    /// Columns (input features).
    pub cols: usize,
    /// Scale of each row, or empty for ones.
    pub row_scales: Vec<f32>,
    /// Scale of each column, or empty for ones.
    pub col_scales: Vec<f32>,
    /// Scale of each 16x16 tile, in raster order.
    pub scales: Vec<f32>,
    /// Two levels for every four columns, row by row.
    pub levels: Vec<i8>,
    /// Positions of the two levels in their group, two bits each, ascending, the first in the lower bits: four bits a
    /// group, two groups a byte, the first in the lower half. Rows begin at whole bytes.
    pub places: Vec<u8>,
}

/// A matrix with its quality layers apart: a base in tiles, and sparse refinements.
pub struct StructuredTensor {
    /// The base.
    pub base: PackedTensor,
    /// Refinements in order.
    pub refinements: Vec<SparseTensor>,
}

impl SparseTensor {
    /// Groups of four columns in a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(FOUR)
    }

    /// Positions of the levels of a group.
    pub fn place(&self, row: usize, group: usize) -> [usize; 2] {
        let nibble = self.places[row * self.groups().div_ceil(2) + group / 2] >> (4 * (group % 2));
        [usize::from(nibble & 3), usize::from(nibble >> 2 & 3)]
    }

    /// Bytes in memory.
    pub fn resident_bytes(&self) -> usize {
        let scales = self.row_scales.len() + self.col_scales.len() + self.scales.len();
        self.levels.len() + self.places.len() + 4 * scales
    }

    /// Values, row-major. A reference for other code.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let at = |scales: &[f32], i: usize| scales.get(i).copied().unwrap_or(1.0);
        for row in 0..self.rows {
            for group in 0..self.groups() {
                for (n, place) in self.place(row, group).into_iter().enumerate() {
                    let col = FOUR * group + place;
                    let level = self.levels[(row * self.groups() + group) * 2 + n];
                    if col < self.cols {
                        let tile = row / TILE * self.cols.div_ceil(TILE) + col / TILE;
                        let scale = self.scales[tile] * at(&self.row_scales, row) * at(&self.col_scales, col);
                        out[row * self.cols + col] += f32::from(level) * scale;
                    }
                }
            }
        }
        out
    }

    /// Reads a refinement; `None` where it is not of this form.
    fn of(
        coded: &CodedTensor,
        parts: &Parts,
        failed: impl Fn(waterfill_codec::CodecError) -> CheckpointError + Sync,
    ) -> Result<Option<Self>> {
        let plan = coded.plan();
        if plan.tile != TILE || plan.parameters.bit_shift.is_some() {
            return Ok(None);
        }
        let (cols, groups) = (plan.cols, plan.cols.div_ceil(FOUR));
        let slice = |n: usize| -> Result<Option<Self>> {
            parts.go_on()?;
            let decoded = coded.decode_planes(n).map_err(&failed)?;
            let integers = |f: Format| f.level_range().is_some();
            if !decoded.tiles.iter().all(|t| integers(t.format)) {
                return Ok(None);
            }
            let scales = decoded.tiles.iter().map(|t| plan.tile_scale(t)).collect();
            let (mut levels, mut places) = (Vec::new(), Vec::new());
            for line in decoded.plane.chunks_exact(cols) {
                let mut row = vec![0; groups.div_ceil(2)];
                for (group, four) in line.chunks(FOUR).enumerate() {
                    let Some((pair, nibble)) = two_of(four) else { return Ok(None) };
                    levels.extend(pair);
                    row[group / 2] |= nibble << (4 * (group % 2));
                }
                places.extend(row);
            }
            parts.done();
            Ok(Some(Self { rows: 0, cols, row_scales: vec![], col_scales: vec![], scales, levels, places }))
        };
        let slices = (0..coded.slices()).into_par_iter().map(slice).collect::<Result<Option<Vec<_>>>>()?;
        let Some(slices) = slices else { return Ok(None) };
        let (row_scales, col_scales) = (plan.row_scales(), plan.col_scales());
        let mut all =
            Self { rows: plan.rows, cols, row_scales, col_scales, scales: vec![], levels: vec![], places: vec![] };
        for slice in slices {
            all.scales.extend(slice.scales);
            all.levels.extend(slice.levels);
            all.places.extend(slice.places);
        }
        Ok(Some(all))
    }
}

/// Two levels of four and their positions; `None` where there are more, or one needs more than eight bits.
fn two_of(four: &[i32]) -> Option<([i8; 2], u8)> {
    let mut found = four.iter().enumerate().filter(|(_, level)| **level != 0);
    let (first, second) = (found.next(), found.next());
    if found.next().is_some() {
        return None;
    }
    let entry = |(place, level): (usize, &i32)| Some((place as u8, i8::try_from(*level).ok()?));
    let first = first.map_or(Some((0, 0)), entry)?;
    // The second place is above the first, whatever is there; the first below the second.
    let second = match second {
        Some(second) => entry(second)?,
        None if first.0 < 3 => (3, 0),
        None => return Some(([0, first.1], 3 << 2)),
    };
    Some(([first.1, second.1], first.0 | second.0 << 2))
}

impl Checkpoint {
    /// Decodes a matrix with its quality layers apart; `None` unless it has several and all refinements are 2:4
    /// sparse. The sum of their values is the decoded matrix up to the rounding of each layer to the tensor's own
    /// type.
    ///
    /// # Errors
    /// As [`Checkpoint::decode_packed`].
    pub fn decode_structured(&self, name: &str, control: Control) -> Result<Option<StructuredTensor>> {
        let info = self.tensor(name)?;
        if info.storage != Storage::Coded || info.quality_layers() < 2 {
            return Ok(None);
        }
        let layered = self.layered(info)?;
        let chain = layered.chain()?;
        let parts = Parts::new(control, chain.iter().map(CodedTensor::slices).sum());
        let mut refinements = Vec::new();
        for (n, coded) in chain.iter().enumerate().skip(1) {
            match SparseTensor::of(coded, &parts, layered.failed(n))? {
                Some(sparse) => refinements.push(sparse),
                None => return Ok(None),
            }
        }
        let base = PackedTensor::of(&chain[0], &parts, layered.failed(0))?;
        Ok(base.map(|base| StructuredTensor { base, refinements }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_four_are_kept_with_their_places() {
        for four in (0..81).map(|n| [n % 3, n / 3 % 3, n / 9 % 3, n / 27].map(|v| v - 1)) {
            let found = two_of(&four);
            assert_eq!(found.is_none(), four.iter().filter(|v| **v != 0).count() > 2, "{four:?}");
            if let Some((levels, places)) = found {
                let [a, b] = [places & 3, places >> 2].map(usize::from);
                assert!(a < b, "{four:?}: places {a} and {b}");
                let mut back = [0; 4];
                back[a] = i32::from(levels[0]);
                back[b] = i32::from(levels[1]);
                assert_eq!(back, four);
            }
        }
        assert!(two_of(&[128, 0, 0, 0]).is_none() && two_of(&[0, -128]).is_some());
    }
}
