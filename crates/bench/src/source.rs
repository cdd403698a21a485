//! Seeded weights, so that every run measures the same bytes.

/// Standard Gaussians (Box & Muller 1958) from a linear congruence.
pub struct Gaussians {
    state: u64,
    spare: Option<f64>,
}

impl Gaussians {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, spare: None }
    }

    /// Uniform between 0 and 1.
    pub fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
}

impl Iterator for Gaussians {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        Some(self.spare.take().unwrap_or_else(|| {
            let radius = (-2.0 * self.uniform().ln()).sqrt();
            let angle = 2.0 * std::f64::consts::PI * self.uniform();
            self.spare = Some(radius * angle.sin());
            radius * angle.cos()
        }))
    }
}

/// Little-endian bf16 weights N(0, 0.02).
pub fn gaussian_bf16(count: usize) -> Vec<u8> {
    let bf16 = |g: f64| half::bf16::from_f32((g * 0.02) as f32).to_le_bytes();
    Gaussians::new(1).take(count).flat_map(bf16).collect()
}

/// Weights with log-normal row and column scales, as trained matrices have, exact in bf16; and the
/// scales' exponents in octaves.
pub fn scaled_weights(rows: usize, cols: usize) -> Vec<f32> {
    let mut source = Gaussians::new(2);
    let row: Vec<f64> = source.by_ref().take(rows).map(|g| (0.3 * g).exp2()).collect();
    let col: Vec<f64> = source.by_ref().take(cols).map(|g| (0.3 * g).exp2()).collect();
    let weight =
        |(n, g): (usize, f64)| half::bf16::from_f32((0.02 * g * row[n / cols] * col[n % cols]) as f32).to_f32();
    source.take(rows * cols).enumerate().map(weight).collect()
}
