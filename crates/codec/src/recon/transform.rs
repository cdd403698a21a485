//! Orthonormal transforms of blocks of residuals: DCT-II, DST-VII ("ADST", Han et al. 2010) and Hadamard of 16, 8 and
//! 4, in any combination over rows and columns, and a matrix of the tensor's own (section 8.2 of
//! `docs/BITSTREAM.md`).
//!
//! The inverse is integer arithmetic: two passes of 16-bit inputs and 16-bit bases (scaled by 2^[`ONE_BITS`]) with
//! 32-bit sums, columns first, each rounded once and clamped to 16 bits. Only the encoder has a forward transform, in
//! f32.

#![allow(clippy::needless_range_loop)] // Loops over numbers are what the compiler makes wide.

use std::sync::OnceLock;

use crate::recon::transform_bases::{DCT4, DCT8, DCT16, DST4, DST8, DST16};
use crate::syntax::tile_plan::{Kernel, Transform};

/// Scale of the bases: 2^12.
pub const ONE_BITS: u32 = 12;
/// Fraction bits of residuals between dequantisation and the end of the inverse transform.
pub const FRACTION_BITS: u32 = 2;

/// Basis vectors of a kernel for a whole tile: a 16x16 matrix with the basis of `side` points in blocks
/// along its diagonal. Row k is the k-th vector, scaled by 2^12.
pub type Basis = [i16; 256];

/// The basis of one of [`Kernel::COMMON`] and a side of 16, 8 or 4.
pub fn basis(kernel: Kernel, side: u8) -> &'static Basis {
    static ALL: OnceLock<[Basis; 12]> = OnceLock::new();
    let all = ALL.get_or_init(|| std::array::from_fn(|n| make_basis(Kernel::COMMON[n / 3], 16 >> (n % 3))));
    &all[kernel as usize % 4 * 3 + (16 / usize::from(side.clamp(4, 16))).ilog2() as usize]
}

fn make_basis(kernel: Kernel, side: usize) -> Basis {
    let table: &[i16] = match (kernel, side) {
        (Kernel::Dct, 16) => &DCT16,
        (Kernel::Dct, 8) => &DCT8,
        (Kernel::Dct, _) => &DCT4,
        (Kernel::Dst, 16) => &DST16,
        (Kernel::Dst, 8) => &DST8,
        (Kernel::Dst, _) => &DST4,
        _ => &[],
    };
    // round(4096 / sqrt(side)).
    let magnitude = [1024, 1448, 2048][(16 / side).ilog2() as usize];
    std::array::from_fn(|i| {
        let (row, col) = (i / 16, i % 16);
        let (k, n) = (row % side, col % side);
        match kernel {
            _ if row / side != col / side => 0,
            Kernel::Hadamard if (k & n).count_ones() % 2 == 0 => magnitude,
            Kernel::Hadamard => -magnitude,
            Kernel::Dct | Kernel::Dst => table[k * side + n],
            _ => i16::from(k == n) << ONE_BITS,
        }
    })
}

#[inline(always)]
fn saturate(value: i32) -> i16 {
    value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

/// The bases of a tile's transform; none where a dimension is not transformed.
pub struct TilePass<'a> {
    down: Option<&'a Basis>,
    along: Option<&'a Basis>,
}

impl<'a> TilePass<'a> {
    /// Prepares a transform; `learned` is the tensor's own basis.
    pub fn new(transform: Transform, learned: Option<&'a Basis>) -> Self {
        let basis = |kernel| match kernel {
            Kernel::Identity => None,
            Kernel::Learned => learned,
            _ => Some(basis(kernel, transform.side)),
        };
        Self { down: basis(transform.down), along: basis(transform.along) }
    }

    /// Coefficients to residuals, both with [`FRACTION_BITS`], a 16x16 tile row-major.
    #[inline(always)]
    pub fn inverse(&self, tile: &mut [i16; 256]) {
        if let Some(basis) = self.down {
            // Output row k takes from every input row.
            *tile = pass(|n, k, m| i32::from(basis[n * 16 + k]) * i32::from(tile[n * 16 + m]));
        }
        if let Some(basis) = self.along {
            // Output row k is input row k times the basis.
            *tile = pass(|n, k, m| i32::from(tile[k * 16 + n]) * i32::from(basis[n * 16 + m]));
        }
    }

    /// Residuals to coefficients, a 16x16 tile row-major; encoder only.
    #[inline(always)]
    pub fn forward(&self, tile: &mut [f32; 256]) {
        if let Some(basis) = self.along {
            *tile = forward_along(basis, tile);
        }
        if let Some(basis) = self.down {
            *tile = forward_down(basis, tile);
        }
    }
}

/// Sums over n of what `product` gives for n, row k and column m of the output, rounded.
#[inline(always)]
fn pass(product: impl Fn(usize, usize, usize) -> i32) -> [i16; 256] {
    let mut out = [0i16; 256];
    for k in 0..16 {
        let mut sums = [0i32; 16];
        for n in 0..16 {
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum += product(n, k, m);
            }
        }
        for m in 0..16 {
            out[k * 16 + m] = saturate((sums[m] + (1 << (ONE_BITS - 1))) >> ONE_BITS);
        }
    }
    out
}

/// Forward transform along rows of a tile.
#[inline(always)]
pub fn forward_along(basis: &Basis, tile: &[f32; 256]) -> [f32; 256] {
    let columns: [f32; 256] = std::array::from_fn(|i| f32::from(basis[i % 16 * 16 + i / 16]) * SCALE);
    forward_pass(|n, k, m| tile[k * 16 + n] * columns[n * 16 + m])
}

/// Forward transform down columns of a tile.
#[inline(always)]
pub fn forward_down(basis: &Basis, tile: &[f32; 256]) -> [f32; 256] {
    let rows: [f32; 256] = std::array::from_fn(|i| f32::from(basis[i]) * SCALE);
    forward_pass(|n, k, m| rows[k * 16 + n] * tile[n * 16 + m])
}

const SCALE: f32 = 1.0 / (1 << ONE_BITS) as f32;

#[inline(always)]
fn forward_pass(product: impl Fn(usize, usize, usize) -> f32) -> [f32; 256] {
    let mut out = [0.0; 256];
    for k in 0..16 {
        let mut sums = [0.0; 16];
        for n in 0..16 {
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum += product(n, k, m);
            }
        }
        out[k * 16..][..16].copy_from_slice(&sums);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_transform() -> impl Strategy<Value = Transform> {
        let kernel = || (0u8..4).prop_map(|k| Kernel::from_code(k).unwrap());
        (kernel(), kernel(), 2u8..5).prop_map(|(down, along, log)| Transform { down, along, side: 1 << log })
    }

    proptest! {
        /// Against the definition in f64.
        #[test]
        fn forward_is_the_definition_and_inverse_undoes_it(
            transform in any_transform(), values in prop::collection::vec(-500i32..500, 256),
        ) {
            let pass = TilePass::new(transform, None);
            let mut tile: [f32; 256] = std::array::from_fn(|i| values[i] as f32);
            pass.forward(&mut tile);
            let side = usize::from(transform.side);
            let basis = |kernel: Kernel, k: usize, n: usize| {
                let (s, k, n) = (side as f64, k as f64, n as f64);
                match kernel {
                    Kernel::Identity => f64::from(u8::from(k == n)),
                    Kernel::Dct => {
                        let norm = if k == 0.0 { 1.0 / s } else { 2.0 / s };
                        norm.sqrt() * (std::f64::consts::PI * (2.0 * n + 1.0) * k / (2.0 * s)).cos()
                    }
                    Kernel::Dst => {
                        let angle = std::f64::consts::PI * (2.0 * k + 1.0) * (n + 1.0) / (2.0 * s + 1.0);
                        2.0 / (2.0 * s + 1.0).sqrt() * angle.sin()
                    }
                    _ => (1.0 - 2.0 * f64::from((k as u32 & n as u32).count_ones() % 2)) / s.sqrt(),
                }
            };
            let energy = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            for (i, &got) in tile.iter().enumerate() {
                let (row, col) = (i / 16, i % 16);
                let (top, left) = (row / side * side, col / side * side);
                let mut want = 0.0;
                for y in 0..side {
                    for x in 0..side {
                        let v = f64::from(values[(top + y) * 16 + left + x]);
                        want += v * basis(transform.down, row - top, y) * basis(transform.along, col - left, x);
                    }
                }
                prop_assert!((f64::from(got) - want).abs() < 1.0 + energy * 5e-4, "{i}: {got} {want}");
            }
            let mut back: [i16; 256] = std::array::from_fn(|i| (tile[i] * 4.0).round() as i16);
            pass.inverse(&mut back);
            for (i, &got) in back.iter().enumerate() {
                let error = f64::from(got) / 4.0 - f64::from(values[i]);
                prop_assert!(error.abs() < 1.5 + energy * 1e-3, "{i}: {error}");
            }
        }
    }
}
