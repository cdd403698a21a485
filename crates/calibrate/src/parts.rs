//! Second moments of parts of the text, of a sample of a matrix' columns: what damping is chosen from.

use candle_core::{DType, Device, Tensor};
use ndarray::Array2;
use waterfill_quadratic::{Part, choose_damping};

/// Parts that a calibration's text is divided into: neighbouring sequences, so that a document is in few of them.
pub(crate) const PARTS: usize = 8;
/// Columns of the sample: all up to this many; of wider matrices this many, or an eighth.
const SAMPLED: usize = 256;

/// Sums over the tokens of each part.
#[derive(Clone)]
pub(crate) struct PartSums {
    /// Columns of a diagonal block of the matrix.
    width: usize,
    /// Columns of the sample, in the middle block, spread evenly.
    columns: Vec<u32>,
    /// `Σ_t w_t x_t x_tᵀ` row by row, and `Σ_t w_t`.
    sums: Vec<(Vec<f32>, f64)>,
}

/// Bytes of the sums of an input of `width` with diagonal blocks of `side`.
pub fn part_bytes(width: usize, side: usize) -> u64 {
    let own = side.min(width);
    let sampled = own.div_ceil(PARTS).max(SAMPLED).min(own) as u64;
    PARTS as u64 * sampled * sampled * 4
}

impl PartSums {
    /// Zeros for inputs of `width` with diagonal blocks of `side`.
    pub fn new(width: usize, side: usize) -> Self {
        // The last block may be smaller than the others, and would want less damping than they do.
        let whole = width / side.max(1);
        let start = (width.div_ceil(side.max(1)) / 2).min(whole.saturating_sub(1)) * side;
        let own = side.min(width - start);
        let sampled = own.div_ceil(PARTS).max(SAMPLED).min(own);
        let columns: Vec<u32> = (0..sampled).map(|n| (start + n * own / sampled) as u32).collect();
        Self { width: own, sums: vec![(vec![0.0; sampled * sampled], 0.0); PARTS], columns }
    }

    /// Columns of a diagonal block.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Adds a batch of a part: inputs times the roots of their weights `[tokens, width]`, and the sum of these weights.
    pub fn add(&mut self, part: usize, weighted: &Tensor, weight: f64) -> candle_core::Result<()> {
        let count = self.columns.len();
        let columns = Tensor::from_slice(&self.columns, count, weighted.device())?;
        let sample = weighted.contiguous()?.index_select(&columns, 1)?;
        let product = sample.t()?.contiguous()?.matmul(&sample)?;
        let product: Vec<f32> = product.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let (sums, all) = &mut self.sums[part % PARTS];
        sums.iter_mut().zip(&product).for_each(|(sum, p)| *sum += p);
        *all += weight;
        Ok(())
    }

    /// Adds other sums of the same shape, each `weight` times.
    pub fn add_scaled(&mut self, other: &Self, weight: f64) {
        let factor = weight as f32;
        for ((sums, all), (others, other_weight)) in self.sums.iter_mut().zip(&other.sums) {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += factor * other);
            *all += weight * other_weight;
        }
    }

    /// The damping that suits text that it was not chosen on; `None` where only one part has tokens.
    pub fn damping(&self) -> Option<f64> {
        let side = self.columns.len();
        let part = |(sum, weight): &(Vec<f32>, f64)| Part {
            sum: Array2::from_shape_vec((side, side), sum.clone()).expect("square"),
            weight: *weight,
        };
        choose_damping(&self.sums.iter().map(part).collect::<Vec<Part>>(), self.width)
    }

    /// Hands over all sums as bytes, for a state.
    pub fn write(&self, sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        for (sum, weight) in &self.sums {
            sink(&weight.to_le_bytes())?;
            sink(&sum.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Ok(())
    }

    /// Reads what [`PartSums::write`] wrote into sums of the same shape; `None` where bytes end early.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Option<()> {
        for (sum, weight) in &mut self.sums {
            let (own, rest) = bytes.split_first_chunk::<8>()?;
            *weight = f64::from_le_bytes(*own);
            let (values, rest) = rest.split_at_checked(4 * sum.len())?;
            let values = values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
            sum.iter_mut().zip(values).for_each(|(sum, v)| *sum = v);
            *bytes = rest;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_of_a_whole_block() {
        for (width, side, expected) in [(1536, 1024, 1024), (33, 32, 32), (172, 32, 32), (64, 64, 64), (40, 64, 40)] {
            let sums = PartSums::new(width, side);
            assert_eq!(sums.width(), expected, "{width} in blocks of {side}");
            assert!(sums.columns.is_sorted() && sums.columns.iter().all(|&c| (c as usize) < width));
        }
    }
}
