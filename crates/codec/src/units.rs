//! Rate, loss and lambda as types, so that they cannot be mixed up.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
        pub struct $name(pub f64);
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }
        impl Mul<f64> for $name {
            type Output = Self;
            fn mul(self, factor: f64) -> Self {
                Self(self.0 * factor)
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                Self(iter.map(|x| x.0).sum())
            }
        }
    };
}

quantity! {
    /// A number of bits.
    Rate
}
quantity! {
    /// Expected loss of a compressed model: KL(original || compressed), nats per token.
    Loss
}

/// Lagrange multiplier of the rate: nats per token for one bit of the whole file.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Lambda(pub f64);

impl Lambda {
    /// Lagrangian cost J = loss + lambda * rate.
    pub fn cost(self, loss: Loss, rate: Rate) -> f64 {
        loss.0 + self.0 * rate.0
    }
}

/// Bits of a file divided by the number of weights in it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct BitsPerWeight(pub f64);

impl BitsPerWeight {
    /// Bits per weight of `bytes` that hold `weights` weights.
    pub fn of_bytes(bytes: u64, weights: u64) -> Self {
        Self(bytes as f64 * 8.0 / weights.max(1) as f64)
    }

    /// Bytes that `weights` weights take at this rate.
    pub fn bytes(self, weights: u64) -> u64 {
        (self.0 * weights as f64 / 8.0).round() as u64
    }
}
