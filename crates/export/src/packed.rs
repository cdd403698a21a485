//! Matrices of the compressed-tensors format `pack-quantized`, which vLLM multiplies from: symmetric integers with a bf16
//! scale for each row or each group of columns of a row, quantized with error feedback.

use half::bf16;
use rayon::prelude::*;
use waterfill_checkpoint::Element;
use waterfill_quadratic::LdlFactor;

use crate::scheme::Scheme;
use crate::stored::{Stored, words};

/// Shares of the largest magnitude that a group's scale is tried for.
const CLIPS: [f32; 11] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6];

/// A quantized matrix.
pub struct Packed {
    /// Codes, eight or four to a word, the first in the lowest bits, with 2^(bits-1) added: rows by cols * bits / 32.
    pub words: Vec<i32>,
    /// bf16 patterns: rows by groups.
    pub scales: Vec<u16>,
    /// Code times scale.
    pub values: Vec<f32>,
}

impl Packed {
    /// As a directory stores it.
    pub fn stored(self, scheme: Scheme, shape: [usize; 2]) -> Stored {
        Stored {
            scheme,
            shape,
            codes: self.words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            scales: self.scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
            scale_type: Element::BF16,
        }
    }
}

impl Scheme {
    /// Quantizes rows of `cols` weights, column after column, each towards its weight less what errors before it make of
    /// it (GPTQ; Frantar et al. 2023); scales are those that lose least, with a weight for each column.
    pub fn quantize(self, weights: &[f32], cols: usize, col_weights: &[f32], factor: &LdlFactor) -> Packed {
        let group = self.group.unwrap_or(cols).max(1);
        let rows: Vec<(Vec<i32>, Vec<u16>, Vec<f32>)> =
            weights.par_chunks(cols.max(1)).map(|row| self.row(row, group, col_weights, factor)).collect();
        let mut all = Packed { words: vec![], scales: vec![], values: vec![] };
        for (words, scales, values) in rows {
            all.words.extend(words);
            all.scales.extend(scales);
            all.values.extend(values);
        }
        all
    }

    fn row(self, row: &[f32], group: usize, col_weights: &[f32], factor: &LdlFactor) -> (Vec<i32>, Vec<u16>, Vec<f32>) {
        let (mut targets, mut values) = (row.to_vec(), vec![0.0; row.len()]);
        let (mut scales, mut scale) = (Vec::new(), 1.0);
        let mut codes = Vec::with_capacity(row.len());
        for j in 0..row.len() {
            if j % group == 0 {
                let range = j..row.len().min(j + group);
                let chosen = self.scale(&targets[range.clone()], &col_weights[range]);
                scales.push(chosen.to_bits());
                scale = chosen.to_f32();
            }
            let code = self.code(targets[j], scale);
            codes.push(code);
            values[j] = code as f32 * scale;
            let error = values[j] - row[j];
            if let Some((range, upper)) = factor.block(j) {
                let factors = &upper[(j - range.start) * range.len()..][j + 1 - range.start..range.len()];
                targets[j + 1..range.end].iter_mut().zip(factors).for_each(|(t, u)| *t -= error * u);
            }
        }
        (words(codes.into_iter(), self.bits), scales, values)
    }

    fn code(self, value: f32, scale: f32) -> i32 {
        let most = (1i32 << (self.bits - 1)) - 1;
        ((value / scale).round_ties_even() as i32).clamp(-most - 1, most)
    }

    fn scale(self, targets: &[f32], col_weights: &[f32]) -> bf16 {
        let most = ((1i32 << (self.bits - 1)) - 1) as f32;
        let peak = targets.iter().fold(0.0f32, |m, t| m.max(t.abs()));
        let of = |clip: f32| {
            let scale = bf16::from_f32(peak * clip / most);
            if scale.to_f32() > 0.0 && scale.is_finite() { scale } else { bf16::MIN_POSITIVE }
        };
        let loss = |scale: &bf16| {
            let scale = scale.to_f32();
            let error = |t: f32| t - self.code(t, scale) as f32 * scale;
            targets.iter().zip(col_weights).map(|(&t, &i)| f64::from(i) * f64::from(error(t)).powi(2)).sum::<f64>()
        };
        CLIPS.map(of).into_iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap_or(bf16::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_scales_hold_what_values_say() {
        let (rows, cols) = (5, 256);
        let weights: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 7) as f32)).collect();
        let factor = LdlFactor::diagonal(vec![1.0; cols]);
        for scheme in Scheme::ALL {
            assert!(scheme.fits(cols) && !scheme.fits(250));
            let packed = scheme.quantize(&weights, cols, &vec![1.0; cols], &factor);
            let group = scheme.group.unwrap_or(cols);
            assert_eq!((4 * packed.words.len() + 2 * packed.scales.len()) as u64, scheme.bytes(rows, cols));
            let codes = (32 / scheme.bits) as usize;
            let mut error = 0.0;
            for (i, (&value, weight)) in packed.values.iter().zip(&weights).enumerate() {
                let word = packed.words[i / codes] as u32 >> (scheme.bits as usize * (i % codes));
                let code = (word & ((1 << scheme.bits) - 1)) as i32 - (1 << (scheme.bits - 1));
                let scale = bf16::from_bits(packed.scales[i / cols * (cols / group) + i % cols / group]).to_f32();
                assert_eq!(code as f32 * scale, value);
                error += (value - weight).powi(2) / weights.len() as f32;
            }
            assert!(error < if scheme.bits == 8 { 0.001 } else { 0.3 }, "{} {error}", scheme.name());
        }
    }
}
