//! Options of quantization and coding.

use std::collections::BTreeSet;

use waterfill_calibrate::Sensitivities;
use waterfill_codec::{BitShiftTrellis, Trellis};
use waterfill_quadratic::{Curvature, GradientCovariance, Hessian};

use crate::error::Result;
use crate::ldlq::LdlqOptions;
use crate::rdo::tools::Tool;

/// Options of quantization and coding.
#[derive(Debug, Clone, Default)]
pub struct EncodeOptions {
    /// Tools that may be used.
    pub tools: BTreeSet<Tool>,
    /// Whether tiles may be INT8 where allocation chose a narrower format: resident bits cost nothing.
    pub allow_int8: bool,
    /// Whether tiles may be lossless where allocation did not choose so.
    pub allow_lossless: bool,
    /// The bit-shift trellis that codes of planned widths are a path through; levels are uniform without one.
    pub bit_shift: Option<BitShiftTrellis>,
    /// LDLQ error feedback; none rounds every level alone.
    pub feedback: Option<ErrorFeedback>,
    /// Bytes that may be held by tensors coded side by side; a tensor that takes more is coded alone.
    pub memory: u64,
}

/// LDLQ error feedback, for all tensors.
#[derive(Debug, Clone)]
pub struct ErrorFeedback {
    /// Hessians and gradient covariances that errors are fed back by.
    pub sensitivities: Sensitivities,
    /// The trellis that levels are a path through; none rounds every level alone.
    pub trellis: Option<Trellis>,
    /// Lambda that levels are chosen by, as a share of the allocation's.
    pub rounding: f32,
    /// In quality layers but the last, share of the loss weight of each row and column that is added to its Hessian's
    /// diagonal: feedback makes single errors larger, which later layers pay for.
    pub error_penalty: f64,
    /// Whether at most two of four levels of a refinement are not zero.
    pub sparse: bool,
}

impl EncodeOptions {
    /// How a tensor is quantized where every level is rounded alone.
    pub(crate) fn rounded(&self) -> LdlqOptions {
        LdlqOptions {
            trellis: None,
            bit_shift: self.bit_shift,
            rounding: 0.0,
            allow_int8: self.allow_int8,
            allow_lossless: self.allow_lossless,
            damping: 0.0,
            error_penalty: 0.0,
            sparse: false,
            draft: false,
        }
    }

    /// How a tensor of a layer is quantized with error feedback; `last` is the finest layer.
    pub(crate) fn ldlq(&self, feedback: &ErrorFeedback, last: bool) -> LdlqOptions {
        LdlqOptions {
            trellis: feedback.trellis,
            rounding: feedback.rounding,
            // Their damping is in the sensitivities.
            error_penalty: if last { 0.0 } else { feedback.error_penalty },
            ..self.rounded()
        }
    }
}

/// Curvature of one tensor, as read from the calibration.
#[derive(Default)]
pub(crate) struct TensorCurvature {
    pub hessian: Option<Hessian>,
    gradient_covariance: Option<GradientCovariance>,
}

impl TensorCurvature {
    fn read(sensitivities: &Sensitivities, name: &str) -> Result<Self> {
        Ok(Self {
            hessian: sensitivities.hessian(name)?,
            gradient_covariance: sensitivities.gradient_covariance(name)?,
        })
    }

    pub fn get(&self) -> Curvature<'_> {
        Curvature { hessian: self.hessian.as_ref(), gradient_covariance: self.gradient_covariance.as_ref() }
    }
}

impl ErrorFeedback {
    /// Curvature that errors of a tensor are fed back by, and its loss is predicted by.
    pub(crate) fn curvature(&self, name: &str) -> Result<TensorCurvature> {
        TensorCurvature::read(&self.sensitivities, name)
    }
}
