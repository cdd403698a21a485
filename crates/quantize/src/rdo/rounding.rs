//! Rounding of one value to a level: the decision that error feedback can be put around.

use waterfill_codec::syntax::level_costs::LevelCosts;

/// How levels are chosen.
#[derive(Clone, Copy)]
pub struct Rounding {
    costs: &'static LevelCosts,
    /// Nats for a bit; zero rounds to the nearest.
    lambda: f32,
    /// Reconstruction points of |level| 1, 2 and above lie this far beyond the level.
    offsets: [f32; 3],
}

impl Rounding {
    /// Plain rounding, or rate-distortion optimised where `lambda` is positive.
    pub fn new(lambda: f32, centroids: &[i8; 3]) -> Self {
        Self { costs: LevelCosts::get(), lambda, offsets: centroids.map(|c| f32::from(c) / 16.0) }
    }

    /// Where a level is reconstructed, in quantizer steps.
    #[inline]
    pub fn point(&self, level: i32) -> f32 {
        match level {
            0 => 0.0,
            _ => level as f32 + self.offsets[level.unsigned_abs().min(3) as usize - 1] * level.signum() as f32,
        }
    }

    /// Level of `value` (in quantizer steps), where a squared error costs `weight` nats for a squared
    /// step: the one of lowest J among the two nearest and zero.
    #[inline]
    pub fn level(&self, value: f32, weight: f32, class: usize, range: (i32, i32)) -> i32 {
        let nearest = (value.round_ties_even() as i32).clamp(range.0, range.1);
        if self.lambda <= 0.0 || nearest == 0 {
            return nearest;
        }
        let cost = |level: i32| weight * (value - self.point(level)).powi(2) + self.lambda * self.bits(class, level);
        let mut best = (cost(nearest), nearest);
        for level in [nearest - nearest.signum(), 0] {
            let j = cost(level);
            if j < best.0 {
                best = (j, level);
            }
        }
        best.1
    }

    /// Bits of a level; beyond the table, of its end.
    #[inline]
    pub fn bits(&self, class: usize, level: i32) -> f32 {
        self.costs.cost(class, level.clamp(-127, 127))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_moves_levels_towards_zero_and_never_raises_the_cost() {
        let (plain, optimised) = (Rounding::new(0.0, &[0; 3]), Rounding::new(0.05, &[0; 3]));
        let class = 12;
        for i in -400..400 {
            let value = i as f32 / 100.0;
            let (a, b) = (plain.level(value, 1.0, class, (-8, 7)), optimised.level(value, 1.0, class, (-8, 7)));
            assert!(b.abs() <= a.abs());
            let j = |level: i32| (value - level as f32).powi(2) + 0.05 * plain.bits(class, level);
            assert!(j(b) <= j(a) + 1e-6, "{value}: {a} {b}");
        }
        assert_eq!(optimised.level(0.51, 1.0, class, (-8, 7)), 0);
    }
}
