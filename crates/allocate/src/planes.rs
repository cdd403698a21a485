//! Planes of a fixed number of bits: what quantizing a tile so loses.

use std::ops::RangeInclusive;

use waterfill_codec::BitShiftTrellis;
use waterfill_codec::syntax::bit_shift::{LEVEL_RMS, MAX_CODE_BITS};

/// What a plane of a fixed number of bits holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planes {
    /// Levels of a uniform quantizer, each for itself.
    Uniform,
    /// Codes of a bit-shift trellis.
    Trellis(BitShiftTrellis),
}

/// Squared error of a bit-shift trellis for a normal source over that of an ideal code of as many bits, `2^(-2 bits)`, in dB: by
/// bits of a state from 8 on, and bits of a code from 1 on. Measured on 1500 to 3000 samples, to a tenth or so.
const EXCESS: [[f64; MAX_CODE_BITS as usize]; 9] = [
    [0.65, 1.25, 1.6, 2.45, 3.0, 4.1, 6.8, 11.3],
    [0.45, 0.95, 1.3, 1.75, 2.2, 3.35, 5.1, 8.2],
    [0.45, 0.85, 0.95, 1.35, 1.7, 2.65, 4.3, 6.7],
    [0.35, 0.65, 0.95, 1.1, 1.35, 2.35, 3.8, 5.7],
    [0.3, 0.6, 0.7, 0.9, 1.05, 1.65, 2.65, 4.6],
    [0.25, 0.55, 0.65, 0.8, 0.9, 1.3, 2.2, 4.4],
    [0.2, 0.45, 0.55, 0.65, 0.75, 1.2, 1.85, 3.7],
    [0.1, 0.35, 0.45, 0.55, 0.65, 1.0, 1.5, 3.2],
    [0.1, 0.3, 0.35, 0.45, 0.55, 0.85, 1.35, 2.9],
];

/// What it adds, in dB, where weights are not spread as widely as levels: by quarter octaves of the step from four below to eight
/// above the one that would do so. Measured likewise; much the same for all numbers of bits.
const SPREAD: [f64; 13] = [5.0, 3.4, 2.0, 0.9, 0.25, 0.0, 0.2, 0.7, 1.5, 2.4, 3.4, 4.6, 6.0];
const EVEN: i32 = 4;

/// Tiles of next to nothing have this step, quarter octaves over the unit of values: far finer ones could not be held beside
/// those of other tiles.
const LEAST: i32 = -80;

/// The level beyond which there are hardly any.
const LAST: f32 = 310.0;

/// What codes lose with one of several steps, whatever their number of bits.
#[derive(Debug, Clone, Copy)]
pub struct TrellisStep {
    /// The step, quarter octaves over the unit of the values.
    step: i32,
    /// Mean square of values times the sum of weights, raised for a spread other than that of levels.
    spread: f64,
    /// Weighted squares of what lies beyond levels.
    beyond: f64,
}

impl TrellisStep {
    /// Sums for the steps that suit `values`, of those that are `possible`. Errors are as large at every value, and count by its
    /// weight.
    pub fn measure(values: &[f32], weights: &[f32], possible: &RangeInclusive<i32>) -> Vec<Self> {
        let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len().max(1) as f64;
        let weight = weights.iter().map(|&w| f64::from(w)).sum::<f64>();
        let even = 4.0 * (square.sqrt() / f64::from(LEVEL_RMS)).max(f64::MIN_POSITIVE).log2();
        let even = (even.round() as i32).max(LEAST);
        let sums = |(n, more): (usize, f64)| {
            let step = (even + n as i32 - EVEN).clamp(*possible.start(), *possible.end());
            let last = LAST * (step as f32 / 4.0).exp2();
            let over = |(value, weight): (&f32, &f32)| weight * (value.abs() - last).max(0.0).powi(2);
            let beyond = f64::from(values.iter().zip(weights).map(over).sum::<f32>());
            Self { step, spread: weight * square * 10f64.powf(more / 10.0), beyond }
        };
        SPREAD.into_iter().enumerate().map(sums).collect()
    }

    /// The best of several steps for codes of `bits` bits, quarter octaves over the unit of the values, and about what they
    /// lose: the sum of weighted squared errors.
    pub fn best(steps: &[Self], trellis: BitShiftTrellis, bits: u8) -> Option<(i32, f64)> {
        let error = trellis_error(trellis, bits);
        let losses = steps.iter().map(|s| (s.step, error * s.spread + s.beyond));
        losses.min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Squared error of the codes of a trellis for a normal source of variance one.
pub fn trellis_error(trellis: BitShiftTrellis, bits: u8) -> f64 {
    let excess = EXCESS[trellis.state_bits() as usize - 8][usize::from(bits) - 1];
    10f64.powf(excess / 10.0) * 4f64.powi(-i32::from(bits))
}
