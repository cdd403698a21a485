//! Fitting the spread model to weights: row and column vectors that pay for themselves. Encoder only.

/// Bits that an entry of a row or column vector costs, about.
pub const ENTRY_BITS: f64 = 3.5;

/// Root mean squares of a rank-one model of the weights' variances, rows and columns alternately.
pub fn fit_spread(weights: &[f32], rows: usize, cols: usize) -> (Vec<f64>, Vec<f64>) {
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

/// All-zero rows and columns take a spread far below any other.
fn positive(rms: f64) -> f64 {
    if rms > 0.0 { rms } else { 1e-6 }
}

/// Spread indices around the mean; empty when what a Gaussian code gains does not pay for them.
pub fn spread_vector(rms: &[f64], others: usize) -> Vec<i8> {
    let power = (rms.iter().map(|r| r * r).sum::<f64>() / rms.len() as f64).log2() / 2.0;
    let log_mean = rms.iter().map(|r| r.log2()).sum::<f64>() / rms.len() as f64;
    if (power - log_mean) * others as f64 <= ENTRY_BITS {
        return Vec::new();
    }
    rms.iter().map(|r| quarter_octaves(r / log_mean.exp2(), 60.0) as i8).collect()
}

/// A ratio in quarter octaves, at most `most` either way.
pub fn quarter_octaves(ratio: f64, most: f64) -> f64 {
    (4.0 * ratio.max(f64::MIN_POSITIVE).log2()).round().clamp(-most, most)
}

/// Root of the mean square; zero of nothing.
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
        let (row, col) = fit_spread(&weights, 64, 32);
        assert!((col[0] / col[31] - 4.0).abs() < 0.1, "{} {}", col[0], col[31]);
        assert!(row[5] < 1e-3 * row[6]);
        assert!(spread_vector(&col, 64).iter().all(|s| s.abs() == 4));
    }
}
