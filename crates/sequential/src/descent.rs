//! Gradient steps of one matrix (Adam, Kingma & Ba 2015, without weight decay).

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
/// Keeps weights without any gradient where they are.
const EPSILON: f32 = 1e-12;

/// A matrix that moves.
pub(crate) struct Descent {
    values: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    /// Root mean square of the weights at the start.
    scale: f64,
    steps: i32,
}

impl Descent {
    pub fn new(values: Vec<f32>) -> Self {
        let squares: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        let zeros = vec![0.0; values.len()];
        let scale = (squares / values.len().max(1) as f64).sqrt();
        Self { first: zeros.clone(), second: zeros, values, scale, steps: 0 }
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// One step against the sum of gradients times `unit`, of `rate` times the matrix's scale at most.
    pub fn step(&mut self, gradients: &[&[f32]], unit: f32, rate: f64) {
        self.steps += 1;
        let correct = |beta: f32| 1.0 - f64::from(beta).powi(self.steps);
        let (size, root) = ((rate * self.scale / correct(BETA1)) as f32, correct(BETA2).sqrt() as f32);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for (i, (value, (first, second))) in self.values.iter_mut().zip(moments).enumerate() {
            let gradient = gradients.iter().map(|g| g[i]).sum::<f32>() * unit;
            *first = BETA1 * *first + (1.0 - BETA1) * gradient;
            *second = BETA2 * *second + (1.0 - BETA2) * gradient * gradient;
            *value -= size * *first / (second.sqrt() / root + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_share_of_the_weights_against_the_gradient() {
        let mut descent = Descent::new(vec![3.0, -3.0, 3.0]);
        descent.step(&[&[1.0, -4.0, 0.0], &[1.0, -4.0, 0.0]], 0.5, 0.01);
        let expected = [2.97, -2.97, 3.0];
        descent.values().iter().zip(expected).for_each(|(v, e)| assert!((v - e).abs() < 1e-5, "{v} {e}"));
    }
}
