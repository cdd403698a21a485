//! GGUF's types of tensors, and matrices in them.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{ExportError, Result};

/// Magnitude below which a weight is zero in every type with scales in half precision, whose least is 6e-8; the library's
/// quantizers divide zero by zero on blocks of such weights.
const LEAST_HELD: f32 = 1e-10;

/// A type that a tensor of a GGUF file can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum GgufType {
    Q2K,
    Q3K,
    Q4_0,
    Q4K,
    Q5_0,
    Q5K,
    Q6K,
    Q8_0,
    Bf16,
    F32,
}

impl GgufType {
    /// Types that matrices may get, smallest first: those that llama.cpp has kernels for on every machine.
    pub const MATRICES: [Self; 9] =
        [Self::Q2K, Self::Q3K, Self::Q4_0, Self::Q4K, Self::Q5_0, Self::Q5K, Self::Q6K, Self::Q8_0, Self::Bf16];

    /// Name in `llama-quantize`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q2K => "q2_K",
            Self::Q3K => "q3_K",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_K",
            Self::Q5_0 => "q5_0",
            Self::Q5K => "q5_K",
            Self::Q6K => "q6_K",
            Self::Q8_0 => "q8_0",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// Number in GGUF files.
    pub const fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Q4_0 => 2,
            Self::Q5_0 => 6,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// `general.file_type` of a file that is mostly of this type.
    pub const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 12,
            Self::Q4K => 15,
            Self::Q5K => 17,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    const fn in_candle(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
            Self::Bf16 => GgmlDType::BF16,
        }
    }

    /// The type of a number in GGUF files, if it is one of these.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::MATRICES.into_iter().chain([Self::F32]).find(|t| t.code() == code)
    }

    /// Weights of a block, which the length of rows is a multiple of.
    pub fn block(self) -> usize {
        self.in_candle().block_size()
    }

    /// Bytes of so many weights.
    pub fn bytes(self, weights: usize) -> usize {
        weights / self.block() * self.in_candle().type_size()
    }

    /// Whether its quantizer takes loss_weights by column.
    const fn is_weighted(self) -> bool {
        matches!(self, Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K)
    }

    /// Whether blocks have scales in half precision.
    const fn has_half_scales(self) -> bool {
        !matches!(self, Self::Bf16 | Self::F32)
    }

    /// Quantizes a matrix of `rows` by `loss_weights.len()` weights, with a weight for each column.
    ///
    /// # Errors
    /// Rows that are no multiple of the block.
    pub fn quantize(self, name: &str, weights: &[f32], loss_weights: &[f32]) -> Result<Quantized> {
        let failed = |source| ExportError::Quantizer { tensor: name.into(), source };
        let cols = loss_weights.len();
        let flushed: Vec<f32>;
        let weights = match self.has_half_scales() {
            true => {
                flushed = weights.iter().map(|&w| if w.abs() < LEAST_HELD { 0.0 } else { w }).collect();
                &flushed
            }
            false => weights,
        };
        let tensor = Tensor::from_slice(weights, (weights.len() / cols.max(1), cols), &Device::Cpu).map_err(failed)?;
        // A column that never mattered still is worth something, or blocks of such columns divide by zero.
        let mean = loss_weights.iter().sum::<f32>() / cols.max(1) as f32;
        let least = (mean * 1e-4).max(f32::MIN_POSITIVE);
        let loss_weights: Vec<f32> = loss_weights.iter().map(|&v| v.max(least)).collect();
        let quantized = match self.is_weighted() {
            true => QTensor::quantize_imatrix(&tensor, &loss_weights, self.in_candle()),
            false => QTensor::quantize(&tensor, self.in_candle()),
        };
        let quantized = quantized.map_err(failed)?;
        let bytes = quantized.data().map_err(failed)?.into_owned();
        let values = quantized.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1()).map_err(failed)?;
        Ok(Quantized { bytes, values })
    }

    /// Values of a tensor's bytes.
    ///
    /// # Errors
    /// Bytes of another number than the shape's.
    pub fn values(self, name: &str, bytes: Vec<u8>, shape: &[usize]) -> Result<Vec<f32>> {
        let failed = |source| ExportError::Quantizer { tensor: name.into(), source };
        let weights: usize = shape.iter().product();
        if !weights.is_multiple_of(self.block()) || bytes.len() != self.bytes(weights) {
            let reason = format!("{} bytes for {shape:?} weights of {}", bytes.len(), self.name());
            return Err(failed(candle_core::Error::Msg(reason)));
        }
        if self == Self::F32 {
            return Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
        }
        let storage = candle_core::quantized::QStorage::from_data(bytes.into(), &Device::Cpu, self.in_candle());
        let tensor = storage.and_then(|storage| QTensor::new(storage, shape)).map_err(failed)?;
        tensor.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1()).map_err(failed)
    }
}

/// A quantized matrix.
pub struct Quantized {
    /// As they lie in the file.
    pub bytes: Vec<u8>,
    /// Values as a runtime decodes them.
    pub values: Vec<f32>,
}
