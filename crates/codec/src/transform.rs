//! Orthonormal transforms of blocks of residuals: DCT-II, DST-VII ("ADST", Han et al. 2010) and
//! Hadamard of 16, 8 and 4, in any combination over rows and columns, and a matrix that the tensor
//! brings along.
//!
//! The inverse is integer arithmetic: two passes of 16-bit inputs and 16-bit bases (scaled by
//! [`ONE`]) with 32-bit sums, columns first, each rounded once and cut to 16 bits. The forward
//! transform is the encoder's own and uses f32.

use crate::transforms::{DCT4, DCT8, DCT16, DST4, DST8, DST16};

/// Scale of the bases: 2^12.
pub const ONE_BITS: u32 = 12;
/// Fraction bits of residuals between dequantisation and the end of the inverse transform.
pub const FRACTION_BITS: u32 = 2;

/// Transform along one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Kernel {
    /// None.
    #[default]
    Identity = 0,
    /// DCT-II.
    Dct = 1,
    /// DST-VII.
    Dst = 2,
    /// Walsh-Hadamard in natural order.
    Hadamard = 3,
    /// The tensor's own 16-point orthogonal matrix; experimental.
    Learned = 4,
}

impl Kernel {
    /// The kernels that any tile may use.
    pub const COMMON: [Self; 4] = [Self::Identity, Self::Dct, Self::Dst, Self::Hadamard];

    /// Kernel of a code 0..=4.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Identity),
            1 => Some(Self::Dct),
            2 => Some(Self::Dst),
            3 => Some(Self::Hadamard),
            4 => Some(Self::Learned),
            _ => None,
        }
    }
}

/// Transform of a tile: kernels along columns (over the rows' index) and rows, and the side of the
/// blocks that the tile is split into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transform {
    /// Kernel over the row index: down each column.
    pub down: Kernel,
    /// Kernel over the column index: along each row.
    pub along: Kernel,
    /// Side of the blocks: 16, 8 or 4.
    pub side: u8,
}

impl Default for Transform {
    fn default() -> Self {
        Self { down: Kernel::Identity, along: Kernel::Identity, side: 16 }
    }
}

impl Transform {
    /// True when nothing is transformed.
    pub const fn is_identity(self) -> bool {
        matches!((self.down, self.along), (Kernel::Identity, Kernel::Identity))
    }
}

/// Basis of a kernel: row k is the k-th basis vector, scaled by 2^12.
pub struct Basis {
    side: usize,
    rows: [i16; 256],
}

impl Basis {
    /// Basis of `side` (16, 8 or 4); `learned` is the tensor's matrix, used at side 16 only.
    pub fn new(kernel: Kernel, side: usize, learned: Option<&[i16; 256]>) -> Self {
        let mut rows = [0; 256];
        let table: &[i16] = match (kernel, side) {
            (Kernel::Dct, 16) => &DCT16,
            (Kernel::Dct, 8) => &DCT8,
            (Kernel::Dct, _) => &DCT4,
            (Kernel::Dst, 16) => &DST16,
            (Kernel::Dst, 8) => &DST8,
            (Kernel::Dst, _) => &DST4,
            (Kernel::Learned, 16) if learned.is_some() => learned.expect("checked"),
            (Kernel::Hadamard, _) => {
                // round(4096 / sqrt(side)).
                let magnitude = [1024, 1448, 2048][(16 / side).trailing_zeros() as usize];
                for k in 0..side {
                    for n in 0..side {
                        rows[k * side + n] = if (k & n).count_ones() % 2 == 0 { magnitude } else { -magnitude };
                    }
                }
                &[]
            }
            _ => {
                (0..side).for_each(|k| rows[k * side + k] = 1 << ONE_BITS);
                &[]
            }
        };
        rows[..table.len()].copy_from_slice(table);
        Self { side, rows }
    }

    /// Adds up the basis vectors: `out[n]` = sum over k of `coefficients[k] * basis[k][n]`, for `side`
    /// vectors at once. Input and output are row-major `[side][side]`; `down` says whether k runs
    /// over rows or columns.
    fn inverse(&self, block: &mut [i16; 256], down: bool) {
        let side = self.side;
        let mut out = [0i16; 256];
        for (k, line) in out.chunks_exact_mut(side).take(side).enumerate() {
            let mut sums = [0i32; 16];
            if down {
                // Output row k takes from every input row.
                for (n, row) in block.chunks_exact(side).take(side).enumerate() {
                    let factor = i32::from(self.rows[n * side + k]);
                    sums.iter_mut().zip(row).for_each(|(s, &x)| *s += i32::from(x) * factor);
                }
            } else {
                // Output row k is input row k times the basis.
                for (n, &x) in block[k * side..(k + 1) * side].iter().enumerate() {
                    let x = i32::from(x);
                    sums.iter_mut()
                        .zip(&self.rows[n * side..(n + 1) * side])
                        .for_each(|(s, &b)| *s += x * i32::from(b));
                }
            }
            line.iter_mut().zip(sums).for_each(|(o, s)| *o = saturate((s + (1 << (ONE_BITS - 1))) >> ONE_BITS));
        }
        *block = out;
    }

    /// The transpose, in f32: encoder only.
    fn forward(&self, block: &mut [f32; 256], down: bool) {
        let side = self.side;
        let scale = 1.0 / (1 << ONE_BITS) as f32;
        let mut out = [0.0; 256];
        for k in 0..side {
            for m in 0..side {
                let term = |n: usize| {
                    let (basis, at) = if down { (k * side + n, n * side + m) } else { (m * side + n, k * side + n) };
                    f32::from(self.rows[basis]) * block[at]
                };
                out[k * side + m] = (0..side).map(term).sum::<f32>() * scale;
            }
        }
        *block = out;
    }
}

#[inline]
fn saturate(value: i32) -> i16 {
    value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

/// The two bases of a tile's transform.
pub struct TilePass {
    transform: Transform,
    down: Basis,
    along: Basis,
}

impl TilePass {
    /// Prepares a transform.
    pub fn new(transform: Transform, learned: Option<&[i16; 256]>) -> Self {
        let basis = |kernel| Basis::new(kernel, usize::from(transform.side), learned);
        Self { transform, down: basis(transform.down), along: basis(transform.along) }
    }

    fn blocks(&self) -> impl Iterator<Item = usize> + use<> {
        let side = usize::from(self.transform.side);
        (0..256 / (side * side)).map(move |b| (b / (16 / side) * 16 + b % (16 / side)) * side)
    }

    /// Coefficients to residuals, both with [`FRACTION_BITS`], a 16x16 tile row-major.
    pub fn inverse(&self, tile: &mut [i16; 256]) {
        let side = usize::from(self.transform.side);
        for at in self.blocks() {
            let mut block = [0; 256];
            for (line, row) in block.chunks_exact_mut(side).zip(tile[at..].chunks(16)).take(side) {
                line.copy_from_slice(&row[..side]);
            }
            if self.transform.down != Kernel::Identity {
                self.down.inverse(&mut block, true);
            }
            if self.transform.along != Kernel::Identity {
                self.along.inverse(&mut block, false);
            }
            for (line, row) in block.chunks_exact(side).zip(tile[at..].chunks_mut(16)).take(side) {
                row[..side].copy_from_slice(line);
            }
        }
    }

    /// Residuals to coefficients, a 16x16 tile row-major; encoder only.
    pub fn forward(&self, tile: &mut [f32; 256]) {
        let side = usize::from(self.transform.side);
        for at in self.blocks() {
            let mut block = [0.0; 256];
            for (line, row) in block.chunks_exact_mut(side).zip(tile[at..].chunks(16)).take(side) {
                line.copy_from_slice(&row[..side]);
            }
            if self.transform.along != Kernel::Identity {
                self.along.forward(&mut block, false);
            }
            if self.transform.down != Kernel::Identity {
                self.down.forward(&mut block, true);
            }
            for (line, row) in block.chunks_exact(side).zip(tile[at..].chunks_mut(16)).take(side) {
                row[..side].copy_from_slice(line);
            }
        }
    }
}

/// Band of a coefficient: 0 where a dimension is not transformed, else one more than the position's
/// bits; 6 by 6 of them.
#[inline]
pub fn band(transform: Transform, row: usize, col: usize) -> usize {
    let side = usize::from(transform.side);
    let part = |kernel: Kernel, n: usize| match kernel {
        Kernel::Identity => 0,
        _ => 1 + (usize::BITS - (n % side).leading_zeros()) as usize,
    };
    part(transform.down, row) * 6 + part(transform.along, col)
}

/// Number of [`band`]s.
pub const BANDS: usize = 36;

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
