//! Sums over tokens for one weight matrix.

use candle_core::{Device, Tensor};
use ndarray::{Array1, Array2};
use waterfill_model::LinearTrace;

use crate::error::{CalibrateError, Result};

/// Side of a tile.
pub(crate) const TILE: usize = 16;

/// How much of the input second-moment matrix H = E[x x^T] is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentKind {
    /// All of it.
    Full,
    /// Square blocks of this side along the diagonal.
    BlockDiagonal(usize),
    /// The diagonal, which is E[x_j^2] and kept anyway.
    Diagonal,
}

/// Weight of each token in H.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// All tokens alike.
    Plain,
    /// By the energy of the output gradient, sum_i g_ti^2 (as GuidedQuant, Kim et al. 2025).
    Gradient,
}

/// What to keep of H, and how tokens count in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondMoment {
    /// Full, block-diagonal or diagonal.
    pub kind: MomentKind,
    /// Plain or by gradient energy.
    pub weighting: Weighting,
}

/// Sums over the tokens of one batch or of all batches so far.
#[derive(Clone)]
pub(crate) struct Sums {
    /// sum_t (sum of g^2 over the tile's rows) (sum of x^2 over its columns).
    pub tile_fisher: Array2<f64>,
    /// sum_t g_ti^2 sum_j x_tj^2.
    pub row_fisher: Array1<f64>,
    /// sum_t x_tj^2 sum_i g_ti^2.
    pub col_fisher: Array1<f64>,
    /// sum_t g_ti^2.
    pub row_g2: Array1<f64>,
    /// sum_t x_tj^2.
    pub col_x2: Array1<f64>,
    /// sum_t w_t x_t x_t^T, whole or its diagonal blocks one after another.
    pub moment: Vec<f32>,
    /// sum_t w_t.
    pub moment_weight: f64,
}

impl Sums {
    /// Sums of a batch, from squared gradients `[tokens, out]` and inputs `[tokens, in]`.
    pub fn of(g2: &Tensor, input: &Tensor, moment: Option<SecondMoment>) -> candle_core::Result<Self> {
        let x2 = input.sqr()?;
        let (g_tiles, x_tiles) = (tile_sums(g2)?, tile_sums(&x2)?);
        let (g_total, x_total) = (g2.sum_keepdim(1)?, x2.sum_keepdim(1)?);
        let transposed = g2.t()?.contiguous()?;
        let mut sums = Self {
            tile_fisher: matrix(&g_tiles.t()?.contiguous()?.matmul(&x_tiles)?)?,
            row_fisher: vector(&transposed.matmul(&x_total)?)?,
            col_fisher: vector(&x2.t()?.contiguous()?.matmul(&g_total)?)?,
            row_g2: vector(&g2.sum(0)?)?,
            col_x2: vector(&x2.sum(0)?)?,
            moment: Vec::new(),
            moment_weight: 0.0,
        };
        if let Some(moment) = moment {
            sums.add_moment(input, &g_total, moment)?;
        }
        Ok(sums)
    }

    /// Sums of a linear layer's trace.
    pub fn of_trace(trace: &LinearTrace, moment: Option<SecondMoment>) -> candle_core::Result<Self> {
        Self::of(&trace.gradient.sqr()?, &trace.input, moment)
    }

    fn add_moment(&mut self, input: &Tensor, g_total: &Tensor, moment: SecondMoment) -> candle_core::Result<()> {
        let (tokens, width) = input.dims2()?;
        let (weighted, weight) = match moment.weighting {
            Weighting::Plain => (input.clone(), tokens as f64),
            Weighting::Gradient => (input.broadcast_mul(&g_total.sqrt()?)?, vector(g_total)?.sum()),
        };
        let product = match moment.kind {
            MomentKind::Diagonal => return Ok(()),
            MomentKind::Full => weighted.t()?.contiguous()?.matmul(&weighted)?,
            MomentKind::BlockDiagonal(side) => {
                let blocks = width.div_ceil(side);
                let padded = weighted.pad_with_zeros(1, 0, blocks * side - width)?;
                let blocks = padded.reshape((tokens, blocks, side))?.transpose(0, 1)?.contiguous()?;
                blocks.transpose(1, 2)?.contiguous()?.matmul(&blocks)?
            }
        };
        self.moment = product.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?.to_vec1()?;
        self.moment_weight = weight;
        Ok(())
    }

    /// Adds another batch's sums.
    pub fn add(&mut self, other: &Self) {
        self.tile_fisher += &other.tile_fisher;
        self.row_fisher += &other.row_fisher;
        self.col_fisher += &other.col_fisher;
        self.row_g2 += &other.row_g2;
        self.col_x2 += &other.col_x2;
        self.moment_weight += other.moment_weight;
        self.moment.iter_mut().zip(&other.moment).for_each(|(a, b)| *a += b);
    }

    /// Appends everything to a state: sides, then values.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        let (down, across) = self.tile_fisher.dim();
        for n in [down, across, self.row_fisher.len(), self.col_fisher.len(), self.moment.len()] {
            bytes.extend((n as u64).to_le_bytes());
        }
        for values in [&self.row_fisher, &self.col_fisher, &self.row_g2, &self.col_x2] {
            values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        }
        self.tile_fisher.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        bytes.extend(self.moment_weight.to_le_bytes());
        self.moment.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    }

    /// Reads what [`Sums::write`] wrote and moves `bytes` behind it; `None` where they end early.
    pub fn read(bytes: &mut &[u8]) -> Option<Self> {
        let number = |bytes: &mut &[u8]| {
            let (head, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Some(*head)
        };
        let mut sides = [0usize; 5];
        for side in &mut sides {
            *side = u64::from_le_bytes(number(bytes)?) as usize;
        }
        let [down, across, rows, cols, moment] = sides;
        let vector = |n: usize, bytes: &mut &[u8]| {
            (0..n).map(|_| Some(f64::from_le_bytes(number(bytes)?))).collect::<Option<Vec<f64>>>()
        };
        let row_fisher = Array1::from(vector(rows, bytes)?);
        let col_fisher = Array1::from(vector(cols, bytes)?);
        let row_g2 = Array1::from(vector(rows, bytes)?);
        let col_x2 = Array1::from(vector(cols, bytes)?);
        let tiles = vector(down.checked_mul(across)?, bytes)?;
        let moment_weight = f64::from_le_bytes(number(bytes)?);
        let (values, rest) = bytes.split_at_checked(moment.checked_mul(4)?)?;
        *bytes = rest;
        Some(Self {
            tile_fisher: Array2::from_shape_vec((down, across), tiles).ok()?,
            row_fisher,
            col_fisher,
            row_g2,
            col_x2,
            moment: values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            moment_weight,
        })
    }

    pub fn check(&self, weight: &str) -> Result<()> {
        for (statistic, finite) in [
            ("the tile Fisher information", self.tile_fisher.iter().all(|v| v.is_finite())),
            ("the row Fisher information", self.row_fisher.iter().all(|v| v.is_finite())),
            ("the column Fisher information", self.col_fisher.iter().all(|v| v.is_finite())),
            ("the second moment", self.moment.iter().all(|v| v.is_finite())),
        ] {
            if !finite {
                return Err(CalibrateError::NotFinite { weight: weight.into(), statistic });
            }
        }
        Ok(())
    }
}

/// Sums of 16 neighbouring columns: `[tokens, n]` to `[tokens, ceil(n / 16)]`.
fn tile_sums(x: &Tensor) -> candle_core::Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let tiles = width.div_ceil(TILE);
    x.pad_with_zeros(1, 0, tiles * TILE - width)?.reshape((tokens, tiles, TILE))?.sum(2)
}

pub(crate) fn vector(x: &Tensor) -> candle_core::Result<Array1<f64>> {
    Ok(Array1::from(x.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?))
}

pub(crate) fn matrix(x: &Tensor) -> candle_core::Result<Array2<f64>> {
    let shape = x.dims2()?;
    Ok(vector(x)?.into_shape_with_order(shape).expect("as many elements as the shape says"))
}
