//! Means with standard errors, and intervals for shares.

use serde::{Deserialize, Serialize};

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Mean over the units.
    pub mean: f64,
    /// Standard deviation of the units over the square root of their number; 0 for one unit.
    pub se: f64,
}

impl Estimate {
    /// Mean of one number a unit, in order.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Self { mean, se: (variance / n).sqrt() }
    }
}

/// 95 % interval of a share (Wilson 1927).
pub fn wilson(successes: usize, trials: usize) -> (f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    let (n, p) = (trials as f64, successes as f64 / trials as f64);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// Rank correlation of paired values (Spearman 1904), ties at their mean rank; none where one side is constant or the
/// lengths differ.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() || a.len() < 2 {
        return None;
    }
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let (variance_a, variance_b) = (product(&a, &a), product(&b, &b));
    (variance_a > 0.0 && variance_b > 0.0).then(|| product(&a, &b) / (variance_a * variance_b).sqrt())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for tied in order.chunk_by(|&i, &j| values[i] == values[j]) {
        tied.iter().for_each(|&i| ranks[i] = below as f64 + (tied.len() as f64 - 1.0) / 2.0);
        below += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_and_intervals_equal_known_values() {
        let e = Estimate::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(e.mean, 2.5);
        assert!((e.se - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        // Newcombe 1998, table I: 81 of 263 has the interval 0.2553 to 0.3662.
        let (low, high) = wilson(81, 263);
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        assert!(wilson(0, 10).0 == 0.0 && wilson(10, 10).1 <= 1.0);
    }

    #[test]
    fn rank_correlation_equals_known_values() {
        // Hours of television against IQ, as textbooks have it: -29/165.
        let iq = [106.0, 100.0, 86.0, 101.0, 99.0, 103.0, 97.0, 113.0, 112.0, 110.0];
        let hours = [7.0, 27.0, 2.0, 50.0, 28.0, 29.0, 20.0, 12.0, 6.0, 17.0];
        assert!((rank_correlation(&iq, &hours).unwrap() + 29.0 / 165.0).abs() < 1e-12);
        // Ties: ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3.
        let tied = rank_correlation(&[1.0, 2.0, 2.0, 9.0], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!((tied - 4.5 / (4.5f64 * 5.0).sqrt()).abs() < 1e-12, "{tied}");
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(rank_correlation(&[1.0, 2.0], &[1.0, 2.0, 3.0]), None);
    }
}
