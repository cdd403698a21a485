//! Sections 6.5 and 9.5.

use super::entropy::{Coder, int_model};
use super::header::Tensor;
use super::reconstruct::code_value;

#[derive(Default)]
pub struct Lattice {
    /// Values of symbols.
    values: Vec<f32>,
    rows: usize,
    cols: usize,
    via: u32,
    scale_bits: u32,
    offset_bits: Option<u32>,
}

/// Scales and offsets by row of groups, and exceptions by place.
pub struct Groups {
    scales: Vec<Vec<(f32, f32)>>,
    exceptions: Vec<(usize, u32)>,
}

impl Lattice {
    pub fn read(coder: &mut Coder) -> Self {
        let values: Vec<f32> = match coder.raw(2) {
            0 => (0..256).map(|k| if k == 0 { -0.0 } else { k as f32 - 128.0 }).collect(),
            1 => (0..256).map(|k| code_value(k, 4, 3, 7)).collect(),
            2 => (0..256).map(|k| code_value(k, 5, 2, 15)).collect(),
            book => panic!("codebook {book}"),
        };
        let (rows, cols) = (coder.wide(24) as usize + 1, coder.wide(24) as usize + 1);
        let (via, scale_bits) = (coder.raw(2), coder.raw(5));
        let offset_bits = (coder.raw(1) == 1).then(|| coder.raw(5));
        assert!(via <= 2 && scale_bits <= 23 && offset_bits.unwrap_or(0) <= 23);
        Self { values, rows, cols, via, scale_bits, offset_bits }
    }

    pub fn groups(&self, t: &Tensor, coder: &mut Coder, top: usize, bottom: usize) -> Groups {
        let (mut scale_model, mut offset_model) = ((int_model(), 0), (int_model(), 0));
        let mut groups = Groups { scales: Vec::new(), exceptions: Vec::new() };
        for _ in top / self.rows..=(bottom - 1) / self.rows {
            let mut line = Vec::new();
            for _ in (0..t.cols).step_by(self.cols) {
                let magnitude = |coder: &mut Coder, (model, exponent): &mut (_, i32), n: u32| {
                    *exponent = (*exponent + coder.int(model)).clamp(0, 254);
                    f32::from_bits((*exponent as u32) * (1 << 23) + coder.wide(n) * (1 << (23 - n)))
                };
                let scale = magnitude(coder, &mut scale_model, self.scale_bits);
                let mut offset = 0.0;
                if let Some(n) = self.offset_bits {
                    let negative = coder.raw(1) == 1;
                    offset = magnitude(coder, &mut offset_model, n);
                    if negative {
                        offset = -offset;
                    }
                }
                line.push((scale, offset));
            }
            groups.scales.push(line);
        }
        let mut place = 0;
        for _ in 0..coder.golomb() {
            place += coder.golomb() as usize;
            assert!(place < (bottom - top) * t.cols);
            groups.exceptions.push((place, coder.wide(t.bits() as u32)));
            place += 1;
        }
        groups
    }

    pub fn pattern(&self, t: &Tensor, groups: &Groups, top: usize, (row, col): (usize, usize), symbol: i32) -> u32 {
        let place = (row - top) * t.cols + col;
        if let Some(&(_, pattern)) = groups.exceptions.iter().find(|e| e.0 == place) {
            return pattern;
        }
        let (scale, offset) = groups.scales[row / self.rows - top / self.rows][col / self.cols];
        let mut value = self.values[symbol as usize] * scale;
        if self.offset_bits.is_some() {
            value += offset;
        }
        value = match self.via {
            0 => half::bf16::from_f32(value).to_f32(),
            1 => half::f16::from_f32(value).to_f32(),
            _ => value,
        };
        match t.dtype {
            0 => half::bf16::from_f32(value).to_bits().into(),
            1 => half::f16::from_f32(value).to_bits().into(),
            _ => value.to_bits(),
        }
    }
}
