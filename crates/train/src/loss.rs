//! Cross-entropy as one operation.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// Negative log-likelihood `[n]` of targets under logits `[n, vocab]`, in nats.
pub(crate) struct CrossEntropy {
    pub targets: Vec<u32>,
}

/// The largest logit and the sum of exponentials below it.
fn normaliser(row: &[f32]) -> (f32, f32) {
    let largest = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    (largest, row.iter().map(|v| (v - largest).exp()).sum())
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("logits are not contiguous") };
        let logits = &logits.as_slice::<f32>()?[start..end];
        let rows = logits.chunks_exact(logits.len() / self.targets.len());
        let nll = rows.zip(&self.targets).map(|(row, &target)| {
            let (largest, sum) = normaliser(row);
            sum.ln() + largest - row[target as usize]
        });
        Ok((CpuStorage::F32(nll.collect()), Shape::from(self.targets.len())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (mut values, gradient): (Vec<f32>, Vec<f32>) = (logits.flatten_all()?.to_vec1()?, gradient.to_vec1()?);
        let vocab = values.len() / self.targets.len();
        for ((row, &target), g) in values.chunks_exact_mut(vocab).zip(&self.targets).zip(gradient) {
            let (largest, sum) = normaliser(row);
            row.iter_mut().for_each(|v| *v = (*v - largest).exp() / sum * g);
            row[target as usize] -= g;
        }
        Ok(Some(Tensor::from_vec(values, logits.shape(), logits.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn its_gradient_is_a_difference_quotient() {
        let values = [0.3f32, -1.0, 2.0, 0.5, 0.0, 0.1];
        let loss = |values: &[f32]| {
            let logits = Var::from_slice(values, (2, 3), &Device::Cpu).unwrap();
            let nll = logits.apply_op1(CrossEntropy { targets: vec![1, 2] }).unwrap();
            let weights = Tensor::new(&[1.0f32, 3.0], &Device::Cpu).unwrap();
            let total = (nll * weights).unwrap().sum_all().unwrap();
            let gradient = total.backward().unwrap().get(logits.as_tensor()).unwrap().flatten_all().unwrap();
            (total.to_scalar::<f32>().unwrap(), gradient.to_vec1::<f32>().unwrap())
        };
        let (_, gradient) = loss(&values);
        for i in 0..6 {
            let at = |step: f32| {
                let mut moved = values;
                moved[i] += step;
                loss(&moved).0
            };
            let quotient = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((gradient[i] - quotient).abs() < 1e-3, "{i}: {} {quotient}", gradient[i]);
        }
    }
}
