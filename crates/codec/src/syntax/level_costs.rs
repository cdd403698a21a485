//! Code lengths of levels under the fixed tables, for searches.

use std::sync::OnceLock;

use crate::entropy::tables::CLASSES;
use crate::syntax::sample::{SampleCounter, code_level, code_odd_index};

/// Code lengths under every class, escapes and raw bits included: of levels, and of indices of odd levels.
pub struct LevelCosts([Vec<[f32; 256]>; 2]);

impl LevelCosts {
    /// The one instance.
    pub fn get() -> &'static Self {
        static INSTANCE: OnceLock<LevelCosts> = OnceLock::new();
        INSTANCE.get_or_init(|| {
            let costs = |code: &dyn Fn(&mut SampleCounter, usize, i32) -> i32| {
                let cost = |class: usize, value: i32| {
                    let mut counter = SampleCounter::default();
                    code(&mut counter, class, value);
                    counter.rate().0 as f32
                };
                (0..CLASSES).map(|class| std::array::from_fn(|i| cost(class, i as i32 - 128))).collect()
            };
            Self([
                costs(&|counter, class, level| code_level(counter, 0, class, level)),
                costs(&|counter, class, index| code_odd_index(counter, 0, class, index)),
            ])
        })
    }

    /// Bits of a level in -128..=127.
    #[inline]
    pub fn cost(&self, class: usize, level: i32) -> f32 {
        self.0[0][class][(level + 128) as usize & 255]
    }

    /// Bits of the indices from -128 on in the quantiser of a parity.
    pub fn of(&self, parity: usize, class: usize) -> &[f32; 256] {
        &self.0[parity][class]
    }

    /// Bits of an index in -128..=127 in the quantiser of a parity.
    #[inline]
    pub fn index_cost(&self, parity: usize, class: usize, index: i32) -> f32 {
        self.0[parity][class][(index + 128) as usize & 255]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tables::UNIT_CLASS;

    /// The whole reason for static tables: matched to the sigma they must cost next to nothing
    /// over the entropy of the quantised Gaussian, computed here in f64.
    #[test]
    fn code_length_of_a_gaussian_is_within_a_hundredth_of_a_bit_of_its_entropy() {
        let costs = LevelCosts::get();
        for class in 4..CLASSES - 4 {
            let sigma = (f64::from(class as i32 - UNIT_CLASS) / 4.0).exp2();
            let cdf = |x: f64| 0.5 * libm::erfc(-x / sigma / std::f64::consts::SQRT_2);
            let (mut entropy, mut length) = (0.0, 0.0);
            for level in -127..=127 {
                let p = cdf(f64::from(level) + 0.5) - cdf(f64::from(level) - 0.5);
                if p > 0.0 {
                    entropy -= p * p.log2();
                    length += p * f64::from(costs.cost(class, level));
                }
            }
            assert!(length - entropy < 0.01, "class {class}: {length} bits for an entropy of {entropy}");
        }
    }
}
