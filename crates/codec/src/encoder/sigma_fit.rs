//! Fitting sigma indices to weights: a rank-one model of their variances, by row and column.

/// Approximate bits of an entry of a row or column vector.
pub const ENTRY_BITS: f64 = 3.5;

/// Standard deviations `(row, col)` of the rank-one model w\[i, j\] ~ N(0, (row\[i\] col\[j\])^2) of `weights`
/// `[rows, cols]`, fitted by four rounds of alternating least squares.
pub fn fit_sigma(weights: &[f32], rows: usize, cols: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut row, mut col) = (vec![1.0; rows], vec![1.0f64; cols]);
    for _ in 0..4 {
        let mut sums = vec![0.0; cols];
        for (i, line) in weights.chunks_exact(cols).enumerate() {
            let squares = line.iter().zip(&col).map(|(&w, c)| (f64::from(w) / c).powi(2));
            row[i] = positive((squares.sum::<f64>() / cols as f64).sqrt());
            line.iter().zip(&mut sums).for_each(|(&w, s)| *s += (f64::from(w) / row[i]).powi(2));
        }
        sums.iter().zip(&mut col).for_each(|(s, c)| *c = positive((s / rows as f64).sqrt()));
    }
    (row, col)
}

/// A sigma far below any other stands for a row or column of zeros.
fn positive(rms: f64) -> f64 {
    if rms > 0.0 { rms } else { 1e-6 }
}

/// Sigma indices, quarter octaves around the geometric mean of `rms`, each over `others` weights; empty where a
/// Gaussian code gains fewer bits by them than they cost ([`ENTRY_BITS`] each).
pub fn sigma_vector(rms: &[f64], others: usize) -> Vec<i8> {
    let power = (rms.iter().map(|r| r * r).sum::<f64>() / rms.len() as f64).log2() / 2.0;
    let Some(log_mean) = log2_mean(rms.iter().copied()) else { return Vec::new() };
    if (power - log_mean) * others as f64 <= ENTRY_BITS {
        return Vec::new();
    }
    rms.iter().map(|r| quarter_octaves(r / log_mean.exp2(), 60.0) as i8).collect()
}

/// Share of the mean from which on a value counts fully in [`log2_mean`].
const COUNTED: f64 = 1.0 / 256.0;

/// Mean of the logarithms of values that are not negative, to base 2: of those that matter. A value below a 256th of
/// the arithmetic mean counts in proportion to itself, so that zeros and what is next to zero (dead channels, pruned
/// rows) leave the mean of the others as it is. `None` where all are zero.
pub fn log2_mean(values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let (sum, count) = values.clone().fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    let full = sum / count * COUNTED;
    let counted = values.filter(|&v| v > 0.0).fold((0.0, 0.0), |(logs, weights), v| {
        let weight = (v / full).min(1.0);
        (logs + weight * v.log2(), weights + weight)
    });
    (counted.1 > 0.0).then(|| counted.0 / counted.1)
}

/// round(4 log2(ratio)), clamped to `most` either way.
pub fn quarter_octaves(ratio: f64, most: f64) -> f64 {
    (4.0 * ratio.max(f64::MIN_POSITIVE).log2()).round().clamp(-most, most)
}

/// Root mean square; zero of no values.
pub fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for v in values {
        sum += v * v;
        count += 1.0;
    }
    (sum / f64::max(count, 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_found_and_zeros_do_no_harm() {
        let weights: Vec<f32> = (0..64 * 32)
            .map(|n| if n / 32 == 5 { 0.0 } else { [1.0, -1.0][n % 2] * if n % 32 < 16 { 4.0 } else { 1.0 } })
            .collect();
        let (row, col) = fit_sigma(&weights, 64, 32);
        assert!((col[0] / col[31] - 4.0).abs() < 0.1, "{} {}", col[0], col[31]);
        assert!(row[5] < 1e-3 * row[6]);
        assert!(sigma_vector(&col, 64).iter().all(|s| s.abs() == 4));
    }

    #[test]
    fn what_is_dead_leaves_the_mean_of_logarithms() {
        let mean = |values: &[f64]| log2_mean(values.iter().copied());
        assert_eq!(mean(&[2.0, 8.0]), Some(2.0));
        for dead in [0.0, 1e-30, 1e-12] {
            assert!((mean(&[2.0, 8.0, dead, dead]).unwrap() - 2.0).abs() < 1e-6, "{dead}");
        }
        assert_eq!(mean(&[0.0; 3]), None);
        assert_eq!(mean(&[]), None);
    }
}
