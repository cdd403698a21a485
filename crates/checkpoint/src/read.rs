//! Reading and decoding tensors.

use std::ops::Range;

use rayon::prelude::*;
use waterfill_codec::{CodedTensor, Dtype, TilePlan};

use crate::error::{CheckpointError, Result, TensorError};
use crate::open::Checkpoint;
use crate::types::{Element, Storage, TensorInfo};

/// Elements that one task converts.
const PART: usize = 1 << 18;

/// A decoded tensor.
pub struct Values {
    /// Element type.
    pub dtype: Dtype,
    /// Row-major little-endian elements.
    pub bytes: Vec<u8>,
    /// Tile decisions of a coded tensor's base layer, in raster order; empty when plain.
    pub tiles: Vec<TilePlan>,
}

impl Values {
    /// Elements as f32, exact for every supported type.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.bytes.len() / self.dtype.bytes()];
        let tasks = out.par_chunks_mut(PART).zip(self.bytes.par_chunks(PART * self.dtype.bytes()));
        tasks.for_each(|(out, bytes)| to_f32(self.dtype, bytes, out));
        out
    }
}

/// A matrix that is read a few rows at a time. A plain matrix stays on disk.
pub struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    info: &'a TensorInfo,
    dtype: Dtype,
    cols: usize,
    /// A coded matrix, decoded once.
    whole: Option<Values>,
}

impl Rows<'_> {
    /// Values of the given rows, `[rows.len(), cols]`.
    ///
    /// # Errors
    /// Read errors, rows that the matrix does not have, values that are not finite.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        if rows.start > rows.end || rows.end > self.info.shape[0] {
            let reason = TensorError::Rows { rows, available: self.info.shape[0] };
            return Err(self.checkpoint.wrong(self.info, reason));
        }
        let width = self.cols * self.dtype.bytes();
        let mut out = vec![0f32; rows.len() * self.cols];
        match &self.whole {
            Some(values) => to_f32(self.dtype, &values.bytes[rows.start * width..rows.end * width], &mut out),
            None => {
                let mut bytes = vec![0; rows.len() * width];
                self.checkpoint.read_at(self.info, (rows.start * width) as u64, &mut bytes)?;
                to_f32(self.dtype, &bytes, &mut out);
            }
        }
        self.checkpoint.finite(self.info, rows.start * self.cols, &out)?;
        Ok(out)
    }
}

/// Values that one task tests for being finite.
const FINITE: usize = 1 << 14;

impl Checkpoint {
    /// Element type of a decoded tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        let info = self.tensor(name)?;
        match (info.storage, info.element) {
            (Storage::Plain, Element::BF16) => Ok(Dtype::Bf16),
            (Storage::Plain, Element::F16) => Ok(Dtype::F16),
            (Storage::Plain, Element::F32) => Ok(Dtype::F32),
            (Storage::Plain, other) => Err(self.wrong(info, TensorError::ElementType { found: other })),
            (Storage::Coded, _) => {
                let raw = self.read_raw(name)?;
                Ok(CodedTensor::parse(&raw).map_err(self.codec_error(info))?.header().dtype)
            }
        }
    }

    /// Reads a tensor, decoding it when it is coded.
    ///
    /// # Errors
    /// Damage, unknown names, and element types other than bf16, f16 and f32.
    pub fn read(&self, name: &str) -> Result<Values> {
        let info = self.tensor(name)?;
        if info.storage == Storage::Plain {
            let (dtype, bytes) = (self.dtype(name)?, self.read_raw(name)?);
            return Ok(Values { dtype, bytes, tiles: Vec::new() });
        }
        let (dtype, bytes, tiles) = self.layered(info)?.decode(false)?;
        Ok(Values { dtype, bytes, tiles })
    }

    /// Reads a tensor of known shape as f32 values. A plain tensor passes through a small buffer.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], and when the shape is another or a value is not finite.
    pub fn read_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let info = self.shaped(name, shape)?;
        let mut out = vec![0f32; info.weights() as usize];
        if info.storage == Storage::Plain && info.check.is_none() {
            let dtype = self.dtype(name)?;
            out.par_chunks_mut(PART).enumerate().try_for_each(|(n, out)| {
                let mut bytes = vec![0; out.len() * dtype.bytes()];
                self.read_at(info, (n * PART * dtype.bytes()) as u64, &mut bytes)?;
                to_f32(dtype, &bytes, out);
                Ok::<(), CheckpointError>(())
            })?;
        } else {
            let values = self.read(name)?;
            let tasks = out.par_chunks_mut(PART).zip(values.bytes.par_chunks(PART * values.dtype.bytes()));
            tasks.for_each(|(out, bytes)| to_f32(values.dtype, bytes, out));
        }
        self.finite(info, 0, &out)?;
        Ok(out)
    }

    /// The rows of a matrix of known shape, to be read a few at a time.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    pub fn rows<'a>(&'a self, name: &str, shape: &[usize; 2]) -> Result<Rows<'a>> {
        let info = self.shaped(name, shape)?;
        let whole = match info.storage == Storage::Plain && info.check.is_none() {
            true => None,
            false => Some(self.read(name)?),
        };
        let dtype = whole.as_ref().map_or_else(|| self.dtype(name), |values| Ok(values.dtype))?;
        Ok(Rows { checkpoint: self, info, dtype, cols: shape[1], whole })
    }

    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.tensor(name)?;
        match info.shape == shape {
            true => Ok(info),
            false => Err(self.wrong(info, TensorError::Shape { found: info.shape.clone(), expected: shape.to_vec() })),
        }
    }

    /// `values` begin with element `first`.
    fn finite(&self, info: &TensorInfo, first: usize, values: &[f32]) -> Result<()> {
        // Testing a whole part vectorises; a search for the first such value takes as long as decoding.
        let part = |part: &[f32]| part.iter().fold(true, |all, v| all & v.is_finite());
        if values.par_chunks(FINITE).all(part) {
            return Ok(());
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(self.wrong(info, TensorError::NotFinite { element: first + i, value: values[i] })),
            None => Ok(()),
        }
    }
}

/// Little-endian elements to f32, exact for every type.
fn to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::Bf16 => {
            let value = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            out.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(o, b)| *o = value(b));
        }
        _ => {
            let pattern = |b: &[u8]| b.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x));
            let values = bytes.chunks_exact(dtype.bytes()).map(|b| dtype.value_of(pattern(b)));
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
        }
    }
}
