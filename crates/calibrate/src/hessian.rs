//! Accumulates Hessians H = E[x x^T] as upper triangles, and hands them over as a diagonal and 16-bit correlations
//! ([`waterfill_quadratic::SymmetricBlocks`]).

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use waterfill_quadratic::CORRELATION_ONE;

use crate::parts::PartSums;
use crate::settings::{HessianSettings, HessianWeighting};
use crate::token_weights::Weights;

/// By how much damping is larger than what other parts of the same text ask for. Inputs that a coded layer gets are those of
/// coded layers before it, and text that is read later is of other kinds. Measured (`docs/decisions/shrinkage.md`): 3 costs
/// nothing on the calibration's kind of text, and takes a sixth of the KL on another.
const ELSEWHERE: f64 = 3.0;

/// Rows of a panel, which is one task.
const PANEL: usize = 512;

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
pub(crate) struct HessianSums {
    blocks: Vec<(usize, usize)>,
    panels: Vec<(Panel, Vec<f32>)>,
    /// Sums of each panel on an accelerator, where they stay from batch to batch; those above are what
    /// [`HessianSums::settle`] found there last.
    there: Vec<Option<Tensor>>,
    weighting: HessianWeighting,
    /// sum_t w_t.
    weight: f64,
    /// sum_t w_t^2.
    weight_squared: f64,
    /// Mean weights, for tokens whose weight is not known.
    weights: Weights,
    /// Sums by part of the text, of some columns.
    parts: PartSums,
}

impl HessianSums {
    /// Zeros for inputs of `width`; `None` when only the diagonal is wanted, which is kept anyway.
    pub fn new(width: usize, settings: HessianSettings) -> Option<Self> {
        let side = settings.side(width)?;
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
        let parts = PartSums::new(width, side);
        let (weight, weight_squared, weights) = (0.0, 0.0, Weights::default());
        Some(Self { panels, there, blocks, weighting: settings.weighting, weight, weight_squared, weights, parts })
    }

    /// Adds the tokens of a batch, which is in `part` of the text: `input` `[tokens, width]`, `g_total` their gradient
    /// energies `[tokens, 1]`, in sequences of `context`. Panels are tasks, so results do not depend on the number of threads.
    pub fn add(&mut self, part: usize, input: &Tensor, g_total: &Tensor, context: usize) -> candle_core::Result<()> {
        self.add_where(part, input, g_total, context, !input.device().is_cpu())
    }

    /// As [`HessianSums::add`]; sums stay with `input` where `stay`.
    fn add_where(
        &mut self,
        part: usize,
        input: &Tensor,
        g_total: &Tensor,
        context: usize,
        stay: bool,
    ) -> candle_core::Result<()> {
        let weighted = match self.weighting {
            HessianWeighting::Plain => input.clone(),
            HessianWeighting::Gradient => input.broadcast_mul(&g_total.sqrt()?)?,
        };
        let sums = match self.weighting {
            HessianWeighting::Plain => (input.dim(0)? as f64, input.dim(0)? as f64),
            HessianWeighting::Gradient => {
                let weights: Vec<f64> = g_total.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
                self.weights.add(&weights, context);
                (weights.iter().sum::<f64>(), weights.iter().map(|w| w * w).sum::<f64>())
            }
        };
        self.add_weighted(part, &weighted, sums, stay)
    }

    /// How tokens count.
    pub fn weighting(&self) -> HessianWeighting {
        self.weighting
    }

    /// Mean weights of the tokens so far.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Adds other sums of the same shape, each token with `weight` times the weight that it has there.
    pub fn add_scaled(&mut self, other: &Self, weight: f64) -> candle_core::Result<()> {
        self.weight += weight * other.weight;
        self.weight_squared += weight * weight * other.weight_squared;
        self.parts.add_scaled(&other.parts, weight);
        self.settle()?;
        self.there.fill(None);
        let factor = weight as f32;
        self.panels.par_iter_mut().zip(&other.panels).for_each(|((_, sums), (_, others))| {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += factor * other);
        });
        Ok(())
    }

    /// Adds inputs times the roots of their weights, with the sums of these weights and of their squares.
    pub fn add_weighted(
        &mut self,
        part: usize,
        weighted: &Tensor,
        (weight, squared): (f64, f64),
        stay: bool,
    ) -> candle_core::Result<()> {
        self.weight += weight;
        self.weight_squared += squared;
        self.parts.add(part, weighted, weight)?;
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

    /// Fetches sums that are on an accelerator; to be called before anything else than [`HessianSums::add`].
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
        sink(&self.weight_squared.to_le_bytes())?;
        self.weights.clone().values().into_iter().try_for_each(|value| sink(&value.to_le_bytes()))?;
        self.parts.write(sink)?;
        for (panel, sums) in &self.panels {
            for row in sums.chunks_exact(panel.width()) {
                sink(&row.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        }
        Ok(())
    }

    /// Reads what [`HessianSums::write`] wrote into sums of the same shape; `None` where bytes end early.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Option<()> {
        for value in [&mut self.weight, &mut self.weight_squared].into_iter().chain(self.weights.values()) {
            let (own, rest) = bytes.split_first_chunk::<8>()?;
            *value = f64::from_le_bytes(*own);
            *bytes = rest;
        }
        self.parts.read(bytes)?;
        self.there.fill(None);
        for (_, sums) in &mut self.panels {
            let (values, rest) = bytes.split_at_checked(4 * sums.len())?;
            *bytes = rest;
            let values = values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            sums.iter_mut().zip(values).for_each(|(sum, v)| *sum = v);
        }
        Some(())
    }

    /// Tokens that count: `(Σ w)² / Σ w²` (Kish 1965).
    pub fn effective_tokens(&self) -> f64 {
        if self.weight_squared > 0.0 { self.weight * self.weight / self.weight_squared } else { 0.0 }
    }

    /// Damping chosen from the parts of the text, times [`ELSEWHERE`]; with one part, columns of a block over tokens that
    /// count.
    pub fn damping(&self) -> f64 {
        let columns_per_token = self.parts.width() as f64 / self.effective_tokens().max(1.0);
        self.parts.damping().map_or(columns_per_token, |chosen| chosen * ELSEWHERE)
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
                correlations.extend(above.map(|(v, other)| {
                    (v * own * other * CORRELATION_ONE).round().clamp(-CORRELATION_ONE, CORRELATION_ONE) as i16
                }));
            }
        }
        diagonal.iter_mut().for_each(|d| *d = (f64::from(*d) / weight) as f32);
        (diagonal, correlations)
    }
}

#[cfg(test)]
mod tests {
    use waterfill_quadratic::Hessian;

    use super::*;
    use crate::settings::HessianKind;

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
        let settings = HessianSettings { kind: HessianKind::Full, block: 0, weighting: HessianWeighting::Gradient };
        let batch = |n: usize| {
            let values = inputs(3 * tokens, width)[n * tokens * width..(n + 1) * tokens * width].to_vec();
            let energy: Vec<f32> = (0..tokens).map(|t| 0.5 + ((t + n) % 5) as f32).collect();
            let input = Tensor::from_vec(values, (tokens, width), &Device::Cpu).unwrap();
            (input, Tensor::from_vec(energy, (tokens, 1), &Device::Cpu).unwrap())
        };
        let run = |stay: bool, interrupted: bool| {
            let mut hessian = HessianSums::new(width, settings).unwrap();
            for n in 0..3 {
                let (input, energy) = batch(n);
                hessian.add_where(n, &input, &energy, tokens, stay).unwrap();
                hessian.settle().unwrap();
                if interrupted {
                    let mut bytes = Vec::new();
                    hessian
                        .write(&mut |part| {
                            bytes.extend_from_slice(part);
                            Ok(())
                        })
                        .unwrap();
                    hessian = HessianSums::new(width, settings).unwrap();
                    hessian.read(&mut bytes.as_slice()).unwrap();
                }
            }
            hessian.to_stored()
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
        for (kind, block, weighting) in [
            (HessianKind::Full, 0, HessianWeighting::Plain),
            (HessianKind::BlockDiagonal, 300, HessianWeighting::Gradient),
            (HessianKind::BlockDiagonal, 128, HessianWeighting::Plain),
        ] {
            let settings = HessianSettings { kind, block, weighting };
            let mut hessian = HessianSums::new(width, settings).unwrap();
            for part in 0..2 {
                let rows = part * tokens..(part + 1) * tokens;
                let values = x[rows.start * width..rows.end * width].to_vec();
                let input = Tensor::from_vec(values, (tokens, width), &Device::Cpu).unwrap();
                let g = Tensor::from_vec(energy[rows].to_vec(), (tokens, 1), &Device::Cpu).unwrap();
                hessian.add(part, &input, &g, tokens).unwrap();
            }
            // A state comes back.
            let mut bytes = Vec::new();
            let mut sink = |part: &[u8]| -> std::io::Result<()> {
                bytes.extend_from_slice(part);
                Ok(())
            };
            hessian.write(&mut sink).unwrap();
            let mut again = HessianSums::new(width, settings).unwrap();
            again.read(&mut bytes.as_slice()).unwrap();
            assert!(again.read(&mut &bytes[..bytes.len() - 1]).is_none());
            again.read(&mut bytes.as_slice()).unwrap();
            let (diagonal, correlations) = again.to_stored();
            let side = settings.side(width).unwrap();
            let stored = Hessian::new(diagonal.clone(), side, correlations.clone()).unwrap();
            assert!(Hessian::new(diagonal, side, correlations[1..].to_vec()).is_none());

            let weight = |t: usize| if weighting == HessianWeighting::Plain { 1.0 } else { f64::from(energy[t]) };
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
