//! AdamW (Loshchilov & Hutter 2019) with warmup-stable-decay.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Learning rate, decay and number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Total number of steps.
    pub steps: usize,
    /// Steps over which the learning rate rises.
    pub warmup: usize,
    /// Last steps, over which it falls to zero.
    pub decay: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Weight decay of matrices.
    pub weight_decay: f64,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPSILON: f32 = 1e-8;
/// Greatest norm of the gradient; longer ones are scaled down.
const CLIP: f64 = 1.0;

impl Schedule {
    /// Learning rate of a step, counted from 0 (warmup-stable-decay, Hu et al. 2024).
    pub fn rate(&self, step: usize) -> f64 {
        let rise = (step + 1) as f64 / self.warmup.max(1) as f64;
        let fall = (self.steps - step) as f64 / self.decay.max(1) as f64;
        self.learning_rate * rise.min(fall).min(1.0)
    }
}

/// A trained array with its two moments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub value: Vec<f32>,
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

/// One step on all parameters.
pub(crate) fn step(parameters: &mut [Parameter], gradients: &[Vec<f32>], schedule: &Schedule, step: usize) {
    let squares: f64 = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum();
    let clip = (CLIP / squares.sqrt().max(1e-12)).min(1.0) as f32;
    let rate = schedule.rate(step);
    let correct = |beta: f32| 1.0 - f64::from(beta).powi(step as i32 + 1);
    let (size, root) = ((rate / correct(BETA1)) as f32, correct(BETA2).sqrt() as f32);
    parameters.par_iter_mut().zip(gradients).for_each(|(p, gradient)| {
        let keep = match p.shape.len() {
            1 => 1.0,
            _ => 1.0 - (rate * schedule.weight_decay) as f32,
        };
        let moments = p.first.iter_mut().zip(&mut p.second);
        for ((value, (first, second)), g) in p.value.iter_mut().zip(moments).zip(gradient) {
            let g = g * clip;
            *first = BETA1 * *first + (1.0 - BETA1) * g;
            *second = BETA2 * *second + (1.0 - BETA2) * g * g;
            *value = *value * keep - size * *first / (second.sqrt() / root + EPSILON);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_stays_and_falls() {
        let s = Schedule { steps: 100, warmup: 10, decay: 20, learning_rate: 2.0, weight_decay: 0.0 };
        assert_eq!((s.rate(0), s.rate(9), s.rate(50), s.rate(80)), (0.2, 2.0, 2.0, 2.0));
        assert!((s.rate(90) - 1.0).abs() < 1e-12 && s.rate(99) > 0.0 && s.rate(99) < 0.2);
    }

    #[test]
    fn it_finds_the_minimum_of_a_parabola() {
        let schedule = Schedule { steps: 400, warmup: 10, decay: 200, learning_rate: 0.1, weight_decay: 0.0 };
        let mut p = [Parameter {
            name: "p".into(),
            shape: vec![2],
            value: vec![5.0, -3.0],
            first: vec![0.0; 2],
            second: vec![0.0; 2],
        }];
        for i in 0..schedule.steps {
            let gradient = vec![2.0 * (p[0].value[0] - 1.0), 20.0 * (p[0].value[1] - 2.0)];
            step(&mut p, &[gradient], &schedule, i);
        }
        assert!((p[0].value[0] - 1.0).abs() < 1e-2 && (p[0].value[1] - 2.0).abs() < 1e-2, "{:?}", p[0].value);
    }
}
