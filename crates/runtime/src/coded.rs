//! Products with a matrix that stays entropy-coded in memory.

use candle_core::{Device, Error, Result as CandleResult, Tensor};
use rayon::prelude::*;
use waterfill_checkpoint::{Checkpoint, Storage, Values};
use waterfill_codec::{CodecError, CodedTensor};
use waterfill_model::Linear;

/// A matrix that is held as it is in the file, and decoded a slice at a time when it is used. Threads hold one decoded slice
/// each: 64 Ki weights or a little more.
pub struct CodedLinear {
    /// Checkpoint and name.
    name: String,
    bytes: Vec<u8>,
    rows: usize,
    cols: usize,
}

impl CodedLinear {
    /// Opens the weight `name`; `None` unless it is coded in one layer.
    ///
    /// # Errors
    /// As [`Checkpoint::read_raw`].
    pub fn open(checkpoint: &Checkpoint, name: &str) -> waterfill_checkpoint::Result<Option<Self>> {
        let info = checkpoint.tensor(name)?;
        let &[rows, cols] = info.shape.as_slice() else { return Ok(None) };
        if info.storage != Storage::Coded || info.quality_layers() > 1 {
            return Ok(None);
        }
        let place = format!("{}: tensor {name}", checkpoint.dir().display());
        Ok(Some(Self { name: place, bytes: checkpoint.read_raw(name)?, rows, cols }))
    }

    /// Bytes in memory.
    pub fn resident_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn failed(&self, error: &CodecError) -> Error {
        Error::Msg(format!("{}: {error}", self.name))
    }

    /// Something of every slice that `wanted` names, of its first row and its values.
    fn of_slices<T: Send>(
        &self,
        wanted: impl Fn(std::ops::Range<usize>) -> bool + Sync,
        of: impl Fn(usize, Vec<f32>) -> T + Sync,
    ) -> CandleResult<Vec<T>> {
        let coded = CodedTensor::parse(&self.bytes).map_err(|e| self.failed(&e))?;
        let one = |n: usize| {
            let rows = coded.slice_rows(n);
            let mut bytes = vec![0; coded.bytes(rows.len())];
            coded.decode_slice(n, &mut bytes).map_err(|e| self.failed(&e))?;
            let values = Values { dtype: coded.header().dtype, bytes, tiles: vec![] };
            Ok(of(rows.start, values.to_f32()))
        };
        (0..coded.slices()).into_par_iter().filter(|&n| wanted(coded.slice_rows(n))).map(one).collect()
    }
}

impl Linear for CodedLinear {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (tokens, cols) = (x.dim(0)?, self.cols);
        let x: Vec<f32> = x.flatten_all()?.to_vec1()?;
        // Outputs of the rows of a slice, row by row.
        let products = |first: usize, weights: Vec<f32>| {
            let row = |w: &[f32]| x.chunks_exact(cols).map(|x| dot(w, x)).collect::<Vec<f32>>();
            (first, weights.chunks_exact(cols).flat_map(row).collect::<Vec<f32>>())
        };
        let mut out = vec![0.0; tokens * self.rows];
        for (first, products) in self.of_slices(|_| true, products)? {
            for (r, tokens) in products.chunks_exact(tokens.max(1)).enumerate() {
                tokens.iter().enumerate().for_each(|(t, &value)| out[t * self.rows + first + r] = value);
            }
        }
        Tensor::from_vec(out, (tokens, self.rows), &Device::Cpu)
    }

    fn rows(&self, ids: &[u32]) -> CandleResult<Tensor> {
        let cols = self.cols;
        let mut out = vec![0.0; ids.len() * cols];
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            return Err(Error::Msg(format!("{}: row {id} of {}", self.name, self.rows)));
        }
        let wanted = |rows: std::ops::Range<usize>| ids.iter().any(|&id| rows.contains(&(id as usize)));
        // Rows of a slice by the places of their ids.
        let found = |first: usize, values: Vec<f32>| -> Vec<(usize, Vec<f32>)> {
            let rows = first..first + values.len() / cols.max(1);
            let own = ids.iter().enumerate().filter(|(_, id)| rows.contains(&(**id as usize)));
            own.map(|(n, &id)| (n, values[(id as usize - first) * cols..][..cols].to_vec())).collect()
        };
        for (n, row) in self.of_slices(wanted, found)?.into_iter().flatten() {
            out[n * cols..][..cols].copy_from_slice(&row);
        }
        Tensor::from_vec(out, (ids.len(), cols), &Device::Cpu)
    }
}

/// Sum of products, in sixteen lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a, b) = (a.chunks(16), b.chunks(16));
    a.zip(b).for_each(|(a, b)| sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b));
    sums.iter().sum()
}
