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
    let log_mean = rms.iter().map(|r| r.log2()).sum::<f64>() / rms.len() as f64;
    if (power - log_mean) * others as f64 <= ENTRY_BITS {
        return Vec::new();
    }
    rms.iter().map(|r| quarter_octaves(r / log_mean.exp2(), 60.0) as i8).collect()
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
}
