//! Candidates and allocations on disk, as named arrays in safetensors files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as Element, TensorView};
use waterfill_checkpoint::writer::write_tensors;
use waterfill_codec::{Dtype, Format, Lambda, TensorPlan, TilePlan};
use waterfill_quadratic::LossWeights;

use crate::error::{AllocateError, Result};
use crate::rd_candidate::{Candidates, TensorCandidates};
use crate::select::Selection;
use crate::structure::Sharing;

fn failed(path: &Path, reason: impl Into<String>) -> AllocateError {
    AllocateError::File { path: path.to_path_buf(), reason: reason.into() }
}

/// Named arrays that are written to, or were read from, one file.
pub struct Blobs {
    path: PathBuf,
    arrays: BTreeMap<String, (Element, Vec<usize>, Vec<u8>)>,
}

macro_rules! array {
    ($put:ident, $get:ident, $type:ty, $element:expr) => {
        fn $put(&mut self, name: &str, shape: &[usize], values: impl Iterator<Item = $type>) {
            let bytes = values.flat_map(|v| v.to_le_bytes()).collect();
            self.arrays.insert(name.into(), ($element, shape.to_vec(), bytes));
        }

        fn $get(&self, name: &str) -> Result<Vec<$type>> {
            let bytes = self.get(name, $element)?;
            let value = |b: &[u8]| <$type>::from_le_bytes(b.try_into().expect("chunks of the type's size"));
            Ok(bytes.chunks_exact(size_of::<$type>()).map(value).collect())
        }
    };
}

impl Blobs {
    /// No arrays yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), arrays: BTreeMap::new() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| failed(path, e.to_string()))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| failed(path, e.to_string()))?;
        let arrays = tensors
            .iter()
            .map(|(name, view)| (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        Ok(Self { path: path.to_path_buf(), arrays })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A number that is not finite, by array and place; else as the file system says.
    pub fn write(&self) -> Result<()> {
        for (name, (_, _, bytes)) in self.arrays.iter().filter(|(_, (element, ..))| *element == Element::F32) {
            let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
            if let Some((at, value)) = values.by_ref().enumerate().find(|(_, v)| !v.is_finite()) {
                return Err(failed(&self.path, format!("{name}: entry {at} is {value}, expected a finite number")));
            }
        }
        let views = self.arrays.iter().map(|(name, (element, shape, bytes))| {
            (name.as_str(), TensorView::new(*element, shape.clone(), bytes).expect("shape fits the bytes"))
        });
        Ok(write_tensors(&self.path, views, None)?)
    }

    fn get(&self, name: &str, element: Element) -> Result<&[u8]> {
        match self.arrays.get(name) {
            Some((found, _, bytes)) if *found == element => Ok(bytes),
            Some((found, _, _)) => Err(failed(&self.path, format!("{name} is {found:?}, expected {element:?}"))),
            None => Err(failed(&self.path, format!("has no array {name}"))),
        }
    }

    array!(put_u8, u8s, u8, Element::U8);
    array!(put_i8, i8s, i8, Element::I8);
    array!(put_i16, i16s, i16, Element::I16);
    array!(put_u16, u16s, u16, Element::U16);
    array!(put_i32, i32s, i32, Element::I32);
    array!(put_f32, f32s, f32, Element::F32);

    fn put_plan(&mut self, name: &str, plan: &TensorPlan) {
        let tiles = [plan.tiles.len() / plan.tiles_across().max(1), plan.tiles_across()];
        let fixed = [plan.rows as i32, plan.cols as i32, plan.step_base, plan.sigma_base, plan.dtype as i32];
        self.put_i32(&format!("{name}|plan"), &[fixed.len()], fixed.into_iter());
        for (part, vector) in [
            ("row_scale", &plan.row_scale),
            ("col_scale", &plan.col_scale),
            ("row_spread", &plan.row_sigma),
            ("col_spread", &plan.col_sigma),
        ] {
            self.put_i8(&format!("{name}|{part}"), &[vector.len()], vector.iter().copied());
        }
        self.put_u8(&format!("{name}|format"), &tiles, plan.tiles.iter().map(|t| t.format as u8));
        self.put_i16(&format!("{name}|step"), &tiles, plan.tiles.iter().map(|t| t.step));
        self.put_i16(&format!("{name}|spread"), &tiles, plan.tiles.iter().map(|t| t.sigma));
    }

    fn put_loss_weights(&mut self, name: &str, loss_weights: &LossWeights) {
        for (part, values) in [
            ("tiles", &loss_weights.tiles),
            ("rows", &loss_weights.rows),
            ("cols", &loss_weights.cols),
            ("lookup", &loss_weights.lookup),
        ] {
            self.put_f32(&format!("{name}|importance_{part}"), &[values.len()], values.iter().copied());
        }
    }

    fn loss_weights(&self, name: &str) -> Result<LossWeights> {
        let part = |part: &str| self.f32s(&format!("{name}|importance_{part}"));
        Ok(LossWeights { tiles: part("tiles")?, rows: part("rows")?, cols: part("cols")?, lookup: part("lookup")? })
    }

    fn plan(&self, name: &str) -> Result<TensorPlan> {
        let wrong = |what: &str| failed(&self.path, format!("{name}: {what} does not fit the plan"));
        let fixed = self.i32s(&format!("{name}|plan"))?;
        let &[rows, cols, step_base, sigma_base, dtype] = fixed.as_slice() else { return Err(wrong("plan")) };
        let vector = |part: &str| self.i8s(&format!("{name}|{part}"));
        let formats = self.u8s(&format!("{name}|format"))?;
        let steps = self.i16s(&format!("{name}|step"))?;
        let sigmas = self.i16s(&format!("{name}|spread"))?;
        if steps.len() != formats.len() || sigmas.len() != formats.len() || rows < 1 || cols < 1 {
            return Err(wrong("number of tiles"));
        }
        let tiles = formats.iter().zip(steps).zip(sigmas).map(|((&format, step), sigma)| {
            let format = Format::from_code(format).ok_or_else(|| wrong("format"))?;
            Ok(TilePlan { format, step, sigma, ..TilePlan::default() })
        });
        let dtype = Dtype::ALL.into_iter().find(|&d| d as i32 == dtype).ok_or_else(|| wrong("dtype"))?;
        Ok(TensorPlan {
            step_base,
            sigma_base,
            row_scale: vector("row_scale")?,
            col_scale: vector("col_scale")?,
            row_sigma: vector("row_spread")?,
            col_sigma: vector("col_spread")?,
            tiles: tiles.collect::<Result<_>>()?,
            ..TensorPlan::uniform(dtype, rows as usize, cols as usize, TilePlan::default())
        })
    }
}

impl TensorCandidates {
    /// Writes the candidates of one matrix to a file of their own.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut blobs = Blobs::new(path);
        blobs.put_plan("weight", &self.plan);
        let t = &self.tiles;
        let starts = std::iter::once(&0).chain(&t.ends);
        blobs.put_u16("count", &[t.tiles()], t.ends.iter().zip(starts).map(|(end, start)| (end - start) as u16));
        let count = t.formats.len();
        blobs.put_u8("point|format", &[count], t.formats.iter().map(|&f| f as u8));
        blobs.put_i16("point|step", &[count], t.steps.iter().copied());
        blobs.put_u8("point|width", &[count], t.widths.iter().copied());
        blobs.put_f32("point|loss", &[count], t.losses.iter().copied());
        blobs.put_f32("point|rate", &[count], t.rates.iter().copied());
        blobs.put_loss_weights("weight", &self.loss_weights);
        blobs.write()
    }

    /// Reads what [`TensorCandidates::write`] wrote.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn read(path: &Path) -> Result<Self> {
        let blobs = Blobs::open(path)?;
        let plan = blobs.plan("weight")?;
        let (counts, formats) = (blobs.u16s("count")?, blobs.u8s("point|format")?);
        let (steps, widths) = (blobs.i16s("point|step")?, blobs.u8s("point|width")?);
        let (losses, rates) = (blobs.f32s("point|loss")?, blobs.f32s("point|rate")?);
        let total: usize = counts.iter().map(|&c| usize::from(c)).sum();
        let lengths = [formats.len(), steps.len(), widths.len(), losses.len(), rates.len()];
        if lengths != [total; 5] || counts.len() != plan.tiles.len() {
            return Err(failed(path, "arrays of candidates differ in length"));
        }
        let format = |&code: &u8| Format::from_code(code).ok_or_else(|| failed(path, "unknown format"));
        let formats = formats.iter().map(format).collect::<Result<_>>()?;
        let mut end = 0;
        let end = |&count: &u16| {
            end += usize::from(count);
            end
        };
        let tiles = Candidates { ends: counts.iter().map(end).collect(), formats, steps, widths, losses, rates };
        Ok(Self { plan, tiles, loss_weights: blobs.loss_weights("weight")? })
    }
}

/// Plans of all coded matrices, as quantization reads them.
pub struct Allocation {
    blobs: Blobs,
}

impl Allocation {
    /// An empty map that will be written to `path`.
    pub fn new(path: &Path) -> Self {
        Self { blobs: Blobs::new(path) }
    }

    /// Adds the plan of a matrix, with the loss weights and lambda that quantization goes on deciding by.
    pub fn add(&mut self, name: &str, selection: &Selection) {
        self.blobs.put_plan(name, &selection.plan);
        self.blobs.put_loss_weights(name, &selection.loss_weights);
        self.blobs.put_f32(&format!("{name}|price"), &[1], std::iter::once(selection.lambda.0 as f32));
        self.blobs.put_u8(&format!("{name}|narrow"), &[1], std::iter::once(selection.allow_int4.into()));
        self.blobs.put_u8(&format!("{name}|width"), &[selection.widths.len()], selection.widths.iter().copied());
        let sharing = match selection.sharing {
            Sharing::Tile => return,
            Sharing::Columns(columns) => i32::try_from(columns).unwrap_or(i32::MAX),
            Sharing::Matrix => 0,
        };
        self.blobs.put_i32(&format!("{name}|sharing"), &[1], std::iter::once(sharing));
    }

    /// Writes the file.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self) -> Result<()> {
        self.blobs.write()
    }

    /// Opens a map.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { blobs: Blobs::open(path)? })
    }

    /// Names of all weights with a plan.
    pub fn names(&self) -> Vec<String> {
        self.blobs.arrays.keys().filter_map(|k| k.strip_suffix("|plan")).map(String::from).collect()
    }
}

/// Plan of one matrix, with what quantization goes on deciding by.
pub struct PlannedWeight {
    /// Formats, steps and scales.
    pub plan: TensorPlan,
    /// Costs of errors, correction and margin included.
    pub loss_weights: LossWeights,
    /// Nats per token for a bit of the file, or in memory where that comes first.
    pub lambda: Lambda,
    /// Whether tiles may be INT4 where their levels fit.
    pub allow_int4: bool,
    /// Which tiles share their step; unless it is [`Sharing::Tile`], all have one format.
    pub sharing: Sharing,
    /// Bits of a level of each tile, which with steps and scales are to be kept; empty where quantization decides by lambda.
    pub widths: Vec<u8>,
}

/// Reads the plan of the matrix `name` from an allocation.
///
/// # Errors
/// A weight without plan, or arrays that do not fit.
pub fn read_plan(allocation: &Allocation, name: &str) -> Result<PlannedWeight> {
    let blobs = &allocation.blobs;
    let (plan, loss_weights) = (blobs.plan(name)?, blobs.loss_weights(name)?);
    let lambda = blobs.f32s(&format!("{name}|price"))?;
    let lengths = [loss_weights.tiles.len(), loss_weights.rows.len(), loss_weights.cols.len(), lambda.len()];
    let lookup = [0, plan.rows].contains(&loss_weights.lookup.len());
    if lengths != [plan.tiles.len(), plan.rows, plan.cols, 1] || !lookup {
        return Err(failed(&blobs.path, format!("{name}: loss_weights does not fit the plan")));
    }
    let allow_int4 = blobs.u8s(&format!("{name}|narrow"))?.first() == Some(&1);
    let key = format!("{name}|width");
    let widths = if blobs.arrays.contains_key(&key) { blobs.u8s(&key)? } else { vec![] };
    if ![0, plan.tiles.len()].contains(&widths.len()) {
        return Err(failed(&blobs.path, format!("{name}: {} widths of {} tiles", widths.len(), plan.tiles.len())));
    }
    let sharing = match blobs.arrays.contains_key(&format!("{name}|sharing")) {
        false => Sharing::Tile,
        true => match blobs.i32s(&format!("{name}|sharing"))?.as_slice() {
            [0] => Sharing::Matrix,
            &[columns] if columns > 0 => Sharing::Columns(columns as usize),
            other => return Err(failed(&blobs.path, format!("{name}: sharing {other:?}, expected columns"))),
        },
    };
    Ok(PlannedWeight { plan, loss_weights, lambda: Lambda(lambda[0].into()), allow_int4, sharing, widths })
}

#[cfg(test)]
mod tests {
    use waterfill_codec::{Loss, Rate};

    use super::*;
    use crate::rd_candidate::RdCandidate;

    #[test]
    fn candidates_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.safetensors");
        let tile = TilePlan { sigma: -3, ..TilePlan::default() };
        let plan = TensorPlan {
            step_base: -70,
            sigma_base: 9,
            row_scale: vec![3; 20],
            col_sigma: vec![-2; 40],
            ..TensorPlan::uniform(Dtype::F16, 20, 40, tile)
        };
        let candidate =
            |i: i16| RdCandidate { format: Format::Fp8, step: i, width: 8, loss: Loss(0.5), rate: Rate(100.0) };
        let mut tiles = Candidates::default();
        (0..6).for_each(|n| tiles.push((0..n).map(candidate)));
        let loss_weights =
            LossWeights { tiles: vec![0.5; 6], rows: vec![1.0; 20], cols: vec![2.0; 40], lookup: vec![0.5; 20] };
        let candidates = TensorCandidates { plan, tiles, loss_weights };
        let mut broken = candidates.clone();
        broken.tiles.losses[1] = f32::NAN;
        let message = broken.write(&path).unwrap_err().to_string();
        assert!(message.contains("point|loss: entry 1 is NaN") && !path.exists(), "{message}");
        candidates.write(&path).unwrap();
        let back = TensorCandidates::read(&path).unwrap();
        assert_eq!(
            (back.plan, back.tiles, back.loss_weights),
            (candidates.plan, candidates.tiles, candidates.loss_weights)
        );
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(TensorCandidates::read(&path).unwrap_err().to_string().contains("p.safetensors"));
    }
}
