//! Second moments H = E[x x^T] of a linear layer's input: accumulated as upper triangles, stored as a
//! diagonal and 16-bit correlations.
//!
//! A correlation r is stored as round(32767 r): its error is at most 1.5e-5 whatever the scale of the
//! inputs, where f16 would overflow on H itself and be 2^-12 off near one.

use candle_core::{DType, Device, Tensor};
use ndarray::{Array1, Array2};
use rayon::prelude::*;

use crate::statistics::{MomentKind, SecondMoment, Weighting};

/// Rows of a panel, which is one task.
const PANEL: usize = 512;
/// A correlation of one.
const ONE: f32 = 32767.0;

/// Rows of the upper triangle of one diagonal block.
#[derive(Debug, Clone, Copy)]
struct Panel {
    /// Its first row, which is also its first column.
    first: usize,
    /// Behind its last row.
    rows_end: usize,
    /// Behind its last column: the end of the diagonal block that it is part of.
    end: usize,
}

impl Panel {
    fn width(&self) -> usize {
        self.end - self.first
    }

    fn len(&self) -> usize {
        (self.rows_end - self.first) * self.width()
    }
}

/// Sums over tokens.
#[derive(Clone)]
pub(crate) struct Moments {
    blocks: Vec<(usize, usize)>,
    panels: Vec<(Panel, Vec<f32>)>,
    /// Sums of each panel on an accelerator, where they stay from batch to batch; those above are what
    /// [`Moments::settle`] found there last.
    there: Vec<Option<Tensor>>,
    weighting: Weighting,
    /// sum_t w_t.
    weight: f64,
}

impl Moments {
    /// Zeros for inputs of `width`; `None` when only the diagonal is wanted, which is kept anyway.
    pub fn new(width: usize, moment: SecondMoment) -> Option<Self> {
        let side = match moment.kind {
            MomentKind::Full => width,
            MomentKind::BlockDiagonal(side) => side,
            MomentKind::Diagonal => return None,
        };
        let blocks: Vec<(usize, usize)> =
            (0..width).step_by(side.max(1)).map(|start| (start, width.min(start + side))).collect();
        let panels = blocks.iter().flat_map(|&(start, end)| {
            (start..end).step_by(PANEL).map(move |first| {
                let panel = Panel { first, rows_end: end.min(first + PANEL), end };
                (panel, vec![0.0; panel.len()])
            })
        });
        let panels: Vec<(Panel, Vec<f32>)> = panels.collect();
        let there = vec![None; panels.len()];
        Some(Self { panels, there, blocks, weighting: moment.weighting, weight: 0.0 })
    }

    /// Adds the tokens of a batch: `input` `[tokens, width]`, `g_total` their gradient energies
    /// `[tokens, 1]`. Panels are tasks, so results do not depend on the number of threads.
    pub fn add(&mut self, input: &Tensor, g_total: &Tensor) -> candle_core::Result<()> {
        self.add_where(input, g_total, !input.device().is_cpu())
    }

    /// As [`Moments::add`]; sums stay with `input` where `stay`.
    fn add_where(&mut self, input: &Tensor, g_total: &Tensor, stay: bool) -> candle_core::Result<()> {
        let weighted = match self.weighting {
            Weighting::Plain => input.clone(),
            Weighting::Gradient => input.broadcast_mul(&g_total.sqrt()?)?,
        };
        self.weight += match self.weighting {
            Weighting::Plain => input.dim(0)? as f64,
            Weighting::Gradient => g_total.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?,
        };
        let transposed = weighted.t()?;
        self.panels.par_iter_mut().zip(&mut self.there).try_for_each(|((panel, sums), there)| {
            let rows = transposed.narrow(0, panel.first, panel.rows_end - panel.first)?;
            let columns = weighted.narrow(1, panel.first, panel.width())?;
            // Products on accelerators want factors without gaps between their rows.
            let product = match stay {
                true => rows.contiguous()?.matmul(&columns.contiguous()?)?,
                false => rows.matmul(&columns)?,
            };
            if stay {
                let before = match there.take() {
                    Some(before) => before,
                    None => Tensor::from_slice(sums, product.shape(), product.device())?.to_dtype(product.dtype())?,
                };
                *there = Some((before + product)?);
                return Ok(());
            }
            let product: Vec<f32> = product.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            sums.iter_mut().zip(&product).for_each(|(sum, p)| *sum += p);
            Ok(())
        })
    }

    /// Fetches sums that are on an accelerator; to be called before anything else than [`Moments::add`].
    pub fn settle(&mut self) -> candle_core::Result<()> {
        self.panels.par_iter_mut().zip(&self.there).try_for_each(|((_, sums), there)| {
            if let Some(there) = there {
                *sums = there.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            }
            Ok(())
        })
    }

    /// True when all sums are finite.
    pub fn is_finite(&self) -> bool {
        self.panels.par_iter().all(|(_, sums)| sums.iter().all(|v| v.is_finite()))
    }

    /// Hands over all sums as bytes, for a state.
    pub fn write(&self, sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        sink(&self.weight.to_le_bytes())?;
        for (panel, sums) in &self.panels {
            for row in sums.chunks_exact(panel.width()) {
                sink(&row.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        }
        Ok(())
    }

    /// Reads what [`Moments::write`] wrote into moments of the same kind; `None` where bytes end early.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Option<()> {
        let (weight, rest) = bytes.split_first_chunk::<8>()?;
        self.weight = f64::from_le_bytes(*weight);
        self.there.fill(None);
        *bytes = rest;
        for (_, sums) in &mut self.panels {
            let (values, rest) = bytes.split_at_checked(4 * sums.len())?;
            *bytes = rest;
            let values = values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            sums.iter_mut().zip(values).for_each(|(sum, v)| *sum = v);
        }
        Some(())
    }

    /// Means: the diagonals of all blocks, and the correlations above them, row by row.
    pub fn to_stored(&self) -> (Vec<f32>, Vec<i16>) {
        let weight = self.weight.max(f64::MIN_POSITIVE);
        let width = self.blocks.last().map_or(0, |b| b.1);
        let mut diagonal = vec![0f32; width];
        for (panel, sums) in &self.panels {
            for (i, row) in sums.chunks_exact(panel.width()).enumerate() {
                diagonal[panel.first + i] = row[i];
            }
        }
        let triangle = |&(start, end): &(usize, usize)| (end - start) * (end - start - 1) / 2;
        let mut correlations = Vec::with_capacity(self.blocks.iter().map(triangle).sum());
        let inverse: Vec<f32> = diagonal.iter().map(|&d| if d > 0.0 { 1.0 / d.sqrt() } else { 0.0 }).collect();
        for (panel, sums) in &self.panels {
            for (i, row) in sums.chunks_exact(panel.width()).enumerate() {
                let own = inverse[panel.first + i];
                let others = &inverse[panel.first..panel.end];
                let above = row.iter().zip(others).skip(i + 1);
                correlations.extend(above.map(|(v, other)| (v * own * other * ONE).round().clamp(-ONE, ONE) as i16));
            }
        }
        diagonal.iter_mut().for_each(|d| *d = (f64::from(*d) / weight) as f32);
        (diagonal, correlations)
    }
}

/// Second moment of a weight's input as it was kept: square blocks along the diagonal, one when whole.
#[derive(Debug, Clone)]
pub struct SecondMomentMatrix {
    /// E\[x_j^2\].
    pub diagonal: Array1<f32>,
    /// Side of the blocks; the last may be smaller.
    pub side: usize,
    /// Correlations above the diagonals, row by row, block by block, over 32767.
    correlations: Vec<i16>,
}

impl SecondMomentMatrix {
    /// `None` when the correlations are not as many as blocks of `side` have.
    pub(crate) fn new(diagonal: Vec<f32>, side: usize, correlations: Vec<i16>) -> Option<Self> {
        let this = Self { diagonal: Array1::from(diagonal), side, correlations };
        let expected = (0..this.blocks()).try_fold(0usize, |sum, n| {
            let side = this.range(n).len();
            sum.checked_add(side.checked_mul(side.checked_sub(1)?)? / 2)
        });
        (side > 0 && expected == Some(this.correlations.len())).then_some(this)
    }

    /// A whole symmetric matrix, its correlations rounded as those that are stored.
    ///
    /// # Panics
    /// When it is not square.
    pub fn from_dense(h: &Array2<f32>) -> Self {
        assert_eq!(h.nrows(), h.ncols(), "a symmetric matrix");
        let diagonal = h.diag().to_owned();
        let inverse = diagonal.mapv(|d| if d > 0.0 { 1.0 / d.sqrt() } else { 0.0 });
        let correlation = |i: usize, j: usize| (h[[i, j]] * inverse[i] * inverse[j] * ONE).round().clamp(-ONE, ONE);
        let side = h.nrows();
        let above = (0..side).flat_map(|i| (i + 1..side).map(move |j| (i, j)));
        let correlations = above.map(|(i, j)| correlation(i, j) as i16).collect();
        Self { diagonal, side: side.max(1), correlations }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.diagonal.len().div_ceil(self.side.max(1))
    }

    /// Columns of block `n`.
    pub fn range(&self, n: usize) -> std::ops::Range<usize> {
        n * self.side..self.diagonal.len().min((n + 1) * self.side)
    }

    /// Block `n` as a symmetric matrix.
    pub fn block(&self, n: usize) -> Array2<f32> {
        let range = self.range(n);
        let before: usize = (0..n).map(|b| self.range(b).len()).map(|s| s * (s - 1) / 2).sum();
        let deviation: Vec<f32> = self.diagonal.iter().skip(range.start).take(range.len()).map(|d| d.sqrt()).collect();
        let mut correlations = self.correlations[before..].iter();
        let mut matrix = Array2::zeros((range.len(), range.len()));
        for i in 0..range.len() {
            matrix[[i, i]] = self.diagonal[range.start + i];
            for j in i + 1..range.len() {
                let r = f32::from(*correlations.next().expect("as many as blocks have")) / ONE;
                let value = r * deviation[i] * deviation[j];
                matrix[[i, j]] = value;
                matrix[[j, i]] = value;
            }
        }
        matrix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(tokens: usize, width: usize) -> Vec<f32> {
        // Columns of very different size, neighbours correlated.
        let value = |t: usize, j: usize| {
            let wave = ((t * 31 + j / 3 * 17) as f32 * 0.37).sin() + 0.3 * ((t * 7 + j * 13) as f32 * 0.73).cos();
            wave * if j.is_multiple_of(50) { 300.0 } else { 1.0 }
        };
        (0..tokens).flat_map(|t| (0..width).map(move |j| value(t, j))).collect()
    }

    /// Sums that stay on a device are the same, also after a state came back.
    #[test]
    fn sums_may_stay_where_they_are_computed() {
        let (tokens, width) = (20, 600);
        let moment = SecondMoment { kind: MomentKind::Full, weighting: Weighting::Gradient };
        let batch = |n: usize| {
            let values = inputs(3 * tokens, width)[n * tokens * width..(n + 1) * tokens * width].to_vec();
            let energy: Vec<f32> = (0..tokens).map(|t| 0.5 + ((t + n) % 5) as f32).collect();
            let input = Tensor::from_vec(values, (tokens, width), &Device::Cpu).unwrap();
            (input, Tensor::from_vec(energy, (tokens, 1), &Device::Cpu).unwrap())
        };
        let run = |stay: bool, interrupted: bool| {
            let mut moments = Moments::new(width, moment).unwrap();
            for n in 0..3 {
                let (input, energy) = batch(n);
                moments.add_where(&input, &energy, stay).unwrap();
                moments.settle().unwrap();
                if interrupted {
                    let mut bytes = Vec::new();
                    moments
                        .write(&mut |part| {
                            bytes.extend_from_slice(part);
                            Ok(())
                        })
                        .unwrap();
                    moments = Moments::new(width, moment).unwrap();
                    moments.read(&mut bytes.as_slice()).unwrap();
                }
            }
            moments.to_stored()
        };
        let expected = run(false, false);
        assert!(expected.0.iter().all(|&d| d > 0.0));
        assert!(run(true, false) == expected && run(true, true) == expected);
    }

    #[test]
    fn stored_blocks_equal_the_matrix_written_out() {
        let (tokens, width) = (40, 1100);
        let x = inputs(2 * tokens, width);
        let energy: Vec<f32> = (0..2 * tokens).map(|t| 0.5 + (t % 5) as f32).collect();
        for (kind, weighting) in [
            (MomentKind::Full, Weighting::Plain),
            (MomentKind::BlockDiagonal(300), Weighting::Gradient),
            (MomentKind::BlockDiagonal(128), Weighting::Plain),
        ] {
            let mut moments = Moments::new(width, SecondMoment { kind, weighting }).unwrap();
            for part in 0..2 {
                let rows = part * tokens..(part + 1) * tokens;
                let values = x[rows.start * width..rows.end * width].to_vec();
                let input = Tensor::from_vec(values, (tokens, width), &Device::Cpu).unwrap();
                let g = Tensor::from_vec(energy[rows].to_vec(), (tokens, 1), &Device::Cpu).unwrap();
                moments.add(&input, &g).unwrap();
            }
            // A state comes back.
            let mut bytes = Vec::new();
            let mut sink = |part: &[u8]| -> std::io::Result<()> {
                bytes.extend_from_slice(part);
                Ok(())
            };
            moments.write(&mut sink).unwrap();
            let mut again = Moments::new(width, SecondMoment { kind, weighting }).unwrap();
            again.read(&mut bytes.as_slice()).unwrap();
            assert!(again.read(&mut &bytes[..bytes.len() - 1]).is_none());
            again.read(&mut bytes.as_slice()).unwrap();
            let (diagonal, correlations) = again.to_stored();
            let side = if let MomentKind::BlockDiagonal(side) = kind { side } else { width };
            let stored = SecondMomentMatrix::new(diagonal.clone(), side, correlations.clone()).unwrap();
            assert!(SecondMomentMatrix::new(diagonal, side, correlations[1..].to_vec()).is_none());

            let weight = |t: usize| if weighting == Weighting::Plain { 1.0 } else { f64::from(energy[t]) };
            let total: f64 = (0..2 * tokens).map(weight).sum();
            let exact = |i: usize, j: usize| {
                (0..2 * tokens)
                    .map(|t| weight(t) * f64::from(x[t * width + i]) * f64::from(x[t * width + j]))
                    .sum::<f64>()
                    / total
            };
            for n in 0..stored.blocks() {
                let (range, block) = (stored.range(n), stored.block(n));
                for (i, j) in
                    (0..range.len()).step_by(37).flat_map(|i| (0..range.len()).step_by(11).map(move |j| (i, j)))
                {
                    let (a, b) = (range.start + i, range.start + j);
                    let scale = (exact(a, a) * exact(b, b)).sqrt();
                    let difference = (f64::from(block[[i, j]]) - exact(a, b)).abs();
                    assert!(difference < 2e-5 * scale, "{kind:?} {a} {b}: off by {difference} of {scale}");
                }
            }
        }
    }
}
