//! Changes of low rank, such as a merged LoRA (Hu et al. 2022): a product of two thin integer matrices.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_codec::Dtype;

/// Largest |exponent|, and largest difference of two.
const EXPONENT: i32 = 200;
const SPAN: i32 = 24;
/// Largest rank: sums of products stay within 63 bits.
const RANK: usize = 256;

/// Shape of factors in the head of a `.wfd`; their entries are blobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    /// Bytes of an entry, 1 or 2.
    pub width: u8,
    /// For each component, log2 of the unit of a product of two entries.
    pub exponents: Vec<i32>,
}

/// A change of rank r: the weight in row i and column j changes by the sum over k of
/// left\[i, k\] * right\[k, j\] * 2^exponent\[k\].
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    shape: Shape,
    /// Rows by rank.
    left: Vec<i16>,
    /// Rank by columns.
    right: Vec<i16>,
}

impl Factors {
    /// Factors of a matrix of `rows` by `cols` as entries of 1 or 2 bytes, from components, each a column of `rows` and a
    /// row of `cols` values; `None` where there are none or too many.
    pub fn new(components: &[(Vec<f64>, Vec<f64>)], width: u8) -> Option<Self> {
        let limit = if width == 1 { f64::from(i8::MAX) } else { f64::from(i16::MAX) };
        let rank = components.len();
        let (rows, cols) = components.first().map(|(l, r)| (l.len(), r.len()))?;
        let peak = |values: &[f64]| values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let exponent = |values: &[f64]| (peak(values) / limit).max(1e-60).log2().ceil() as i32;
        let of: Vec<(i32, i32)> = components.iter().map(|(l, r)| (exponent(l), exponent(r))).collect();
        let most = of.iter().map(|(l, r)| l + r).max()?;
        let (mut left, mut right) = (vec![0; rows * rank], Vec::with_capacity(rank * cols));
        let mut exponents = Vec::new();
        let integer = |value: f64, exponent: i32| (value * (-f64::from(exponent)).exp2()).round() as i16;
        for (k, ((l, r), &(el, er))) in components.iter().zip(&of).enumerate() {
            // Components that hardly count are as coarse as the others let them be.
            let el = el.max(most - SPAN - er);
            l.iter().enumerate().for_each(|(i, &v)| left[i * rank + k] = integer(v, el));
            right.extend(r.iter().map(|&v| integer(v, er)));
            exponents.push(el + er);
        }
        let shape = Shape { width, exponents };
        shape.is_valid().then_some(Self { shape, left, right })
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of all entries.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        (self.left.len() + self.right.len()) * usize::from(self.shape.width)
    }

    /// Entries, the left ones first.
    pub fn bytes(&self) -> Vec<u8> {
        let width = usize::from(self.shape.width);
        self.left.iter().chain(&self.right).flat_map(|v| v.to_le_bytes().into_iter().take(width)).collect()
    }

    /// Reads what [`Factors::bytes`] gave for a matrix of `rows` by `cols`; `None` where sizes do not fit.
    pub(super) fn parse(shape: &Shape, bytes: &[u8], [rows, cols]: [usize; 2]) -> Option<Self> {
        let (width, rank) = (usize::from(shape.width), shape.exponents.len());
        let entries = rows.checked_add(cols)?.checked_mul(rank)?;
        if !shape.is_valid() || entries.checked_mul(width)? != bytes.len() {
            return None;
        }
        let entry = |b: &[u8]| if width == 1 { i16::from(b[0] as i8) } else { i16::from_le_bytes([b[0], b[1]]) };
        let mut left: Vec<i16> = bytes.chunks_exact(width).map(entry).collect();
        let right = left.split_off(rows * rank);
        Some(Self { shape: shape.clone(), left, right })
    }

    /// The base's elements with the change added: sums are integers, so that they are the same everywhere; the result
    /// is rounded to single precision and then to the type.
    ///
    /// # Panics
    /// If `base` has another size than the matrix.
    pub fn add_to(&self, dtype: Dtype, base: &[u8]) -> Vec<u8> {
        let rank = self.shape.exponents.len();
        let (cols, width) = (self.right.len() / rank, dtype.bytes());
        let least = self.shape.exponents.iter().copied().min().unwrap_or(0);
        let shifts: Vec<u32> = self.shape.exponents.iter().map(|e| (e - least) as u32).collect();
        // 2^least as f64's own pattern: exact without any library.
        let unit = f64::from_bits(((least + 1023) as u64) << 52);
        let mut out = base.to_vec();
        assert_eq!(out.len(), self.left.len() / rank * cols * width, "the matrix' size");
        out.par_chunks_mut(cols * width).zip(self.left.par_chunks(rank)).for_each(|(line, left)| {
            let mut sums = vec![0i64; cols];
            for ((&l, right), &shift) in left.iter().zip(self.right.chunks(cols)).zip(&shifts) {
                let l = i64::from(l) << shift;
                sums.iter_mut().zip(right).for_each(|(sum, &r)| *sum += l * i64::from(r));
            }
            for (element, sum) in line.chunks_exact_mut(width).zip(sums) {
                let pattern = element.iter().rev().fold(0u32, |v, &b| v << 8 | u32::from(b));
                let value = f64::from(dtype.value_of(pattern)) + sum as f64 * unit;
                element.copy_from_slice(&dtype.pattern_of(value as f32).to_le_bytes()[..width]);
            }
        });
        out
    }
}

impl Shape {
    fn is_valid(&self) -> bool {
        let (least, most) = (self.exponents.iter().min(), self.exponents.iter().max());
        let (Some(&least), Some(&most)) = (least, most) else { return false };
        let near = least >= -EXPONENT && most <= EXPONENT && most - least <= SPAN;
        near && self.exponents.len() <= RANK && matches!(self.width, 1 | 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_added_and_sizes_checked() {
        let components = [(vec![1.0, -2.0, 0.5], vec![0.25, 0.0]), (vec![1e-3, 0.0, 0.0], vec![0.0, 2.0])];
        for width in [1, 2] {
            let factors = Factors::new(&components, width).unwrap();
            let bytes = factors.bytes();
            assert_eq!(bytes.len(), (3 + 2) * 2 * usize::from(width));
            assert_eq!(Factors::parse(factors.shape(), &bytes, [3, 2]), Some(factors.clone()));
            assert_eq!(Factors::parse(factors.shape(), &bytes, [2, 2]), None);
            assert_eq!(Factors::parse(factors.shape(), &bytes[1..], [3, 2]), None);
            let base: Vec<u8> =
                [1.0f32, 1.0, 1.0, 1.0, 1.0, f32::INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
            let sum = factors.add_to(Dtype::F32, &base);
            let values: Vec<f32> = sum.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let expected = [1.25, 1.002, 0.5, 1.0, 1.125, f32::INFINITY];
            let tolerance = if width == 1 { 0.02 } else { 1e-4 };
            for (found, expected) in values.iter().zip(expected) {
                assert!(found == &expected || (found - expected).abs() < tolerance, "{found} {expected}");
            }
        }
        assert!(Factors::new(&[], 2).is_none());
        for exponents in [vec![], vec![0, 25], vec![201], vec![0; 257]] {
            assert!(!Shape { width: 2, exponents }.is_valid());
        }
        assert!(!Shape { width: 3, exponents: vec![0] }.is_valid());
    }
}
