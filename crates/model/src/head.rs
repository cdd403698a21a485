//! Final norm and output head.

use candle_core::{Device, Tensor, Var};
use candle_nn::ops::rms_norm;

use crate::block::differentiable_norm;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::product::product;

/// Final norm and output projection.
pub struct Head {
    pub(crate) config: ModelConfig,
    pub(crate) norm: Tensor,
    /// `[vocab, hidden]`.
    pub(crate) weight: Tensor,
}

impl Head {
    /// Normalised hidden states: the input of the output projection. Keeps the shape of `x`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn normalise(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(&x.contiguous()?, &self.norm, self.config.norm_eps as f32)?)
    }

    /// Where it is computed.
    pub fn device(&self) -> &Device {
        self.weight.device()
    }

    /// Tokens in the vocabulary.
    ///
    /// # Errors
    /// None for heads that were loaded.
    pub fn vocab(&self) -> Result<usize> {
        Ok(self.weight.dim(0)?)
    }

    /// Logits `[tokens, vocab]` of normalised states `[tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits(&self, normalised: &Tensor) -> Result<Tensor> {
        Ok(product(normalised, &self.weight.t()?)?)
    }

    /// Gradient with respect to normalised states from the gradient of the logits.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits_vjp(&self, gradient: &Tensor) -> Result<Tensor> {
        Ok(product(gradient, &self.weight)?)
    }

    /// Gradient with respect to `x` from the gradient of [`Head::normalise`]'s result.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn normalise_vjp(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let input = Var::from_tensor(x)?;
        let output = differentiable_norm(input.as_tensor(), &self.norm, self.config.norm_eps)?;
        let grads = (output * gradient)?.sum_all()?.backward()?;
        let missing = || ModelError::NoGradient { block: self.config.layers, weight: "the final norm's input".into() };
        Ok(grads.get(input.as_tensor()).ok_or_else(missing)?.detach())
    }
}
