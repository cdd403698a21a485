//! Sums over tokens for one weight matrix.

use candle_core::Tensor;
use ndarray::{Array1, Array2};

use crate::error::{CalibrateError, Result};

/// Side of a tile.
pub(crate) const TILE: usize = 16;

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
}

impl Sums {
    /// Sums of a batch, from squared gradients `[tokens, out]` and inputs `[tokens, in]`.
    pub fn of(g2: &Tensor, input: &Tensor) -> candle_core::Result<Self> {
        let x2 = input.sqr()?;
        let (g_tiles, x_tiles) = (tile_sums(g2)?, tile_sums(&x2)?);
        let (g_total, x_total) = (g2.sum_keepdim(1)?, x2.sum_keepdim(1)?);
        Ok(Self {
            tile_fisher: matrix(&g_tiles.t()?.matmul(&x_tiles)?)?,
            row_fisher: vector(&x_total.t()?.matmul(g2)?)?,
            col_fisher: vector(&g_total.t()?.matmul(&x2)?)?,
            row_g2: vector(&g2.sum(0)?)?,
            col_x2: vector(&x2.sum(0)?)?,
        })
    }

    /// Zeros for a weight of `rows` x `cols`.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self {
            tile_fisher: Array2::zeros((rows.div_ceil(TILE), cols.div_ceil(TILE))),
            row_fisher: Array1::zeros(rows),
            col_fisher: Array1::zeros(cols),
            row_g2: Array1::zeros(rows),
            col_x2: Array1::zeros(cols),
        }
    }

    /// Adds another batch's sums.
    pub fn add(&mut self, other: &Self) {
        self.tile_fisher += &other.tile_fisher;
        self.row_fisher += &other.row_fisher;
        self.col_fisher += &other.col_fisher;
        self.row_g2 += &other.row_g2;
        self.col_x2 += &other.col_x2;
    }

    fn arrays(&mut self) -> [&mut [f64]; 5] {
        let tiles = self.tile_fisher.as_slice_mut().expect("row-major");
        let [rows, cols, g2, x2] = [&mut self.row_fisher, &mut self.col_fisher, &mut self.row_g2, &mut self.col_x2]
            .map(|a| a.as_slice_mut().expect("contiguous"));
        [tiles, rows, cols, g2, x2]
    }

    /// Hands over all sums as bytes, for a state.
    pub fn write(&self, sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        for array in self.clone().arrays() {
            sink(&array.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Ok(())
    }

    /// Reads what [`Sums::write`] wrote into sums of the same shape and moves `bytes` behind it; `None`
    /// where they end early.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Option<()> {
        for array in self.arrays() {
            let (values, rest) = bytes.split_at_checked(8 * array.len())?;
            *bytes = rest;
            let values = values.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")));
            array.iter_mut().zip(values).for_each(|(sum, v)| *sum = v);
        }
        Some(())
    }

    pub fn check(&self, weight: &str) -> Result<()> {
        for (statistic, finite) in [
            ("the tile Fisher information", self.tile_fisher.iter().all(|v| v.is_finite())),
            ("the row Fisher information", self.row_fisher.iter().all(|v| v.is_finite())),
            ("the column Fisher information", self.col_fisher.iter().all(|v| v.is_finite())),
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
