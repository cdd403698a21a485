//! Vector-Jacobian product of a block.

use candle_core::{CustomOp2, CustomOp3, Result as CandleResult, Tensor, Var};

use crate::block::{Block, Operations};
use crate::error::{ModelError, Result};
use crate::kernels::{Norm, Swiglu};
use crate::product::product;
use crate::roles::Projection;

/// Input and output gradient of one linear layer over the tokens of a batch.
pub struct LinearTrace {
    /// `[tokens, in]`.
    pub input: Tensor,
    /// Gradient of the summed loss with respect to the output, `[tokens, out]`.
    pub gradient: Tensor,
}

/// Result of a vector-Jacobian product.
pub struct Vjp {
    /// Gradient with respect to the block's input, `[batch, tokens, hidden]`.
    pub input_gradient: Tensor,
    /// One for each of [`Projection::ALL`].
    pub linears: Vec<LinearTrace>,
}

impl Block {
    /// Vector-Jacobian product at `x` with `gradient` of the block's output, both
    /// `[batch, tokens, hidden]`. Inputs and output gradients of the linear layers give any Fisher
    /// statistic without per-token weight gradients.
    ///
    /// # Errors
    /// Shapes that do not fit, and a weight that no gradient reached.
    pub fn vjp(&self, x: &Tensor, gradient: &Tensor) -> Result<Vjp> {
        match Operations::has_kernels(x) {
            true => Ok(self.vjp_direct(x, gradient)?),
            false => self.vjp_autograd(x, gradient, Operations::Composed),
        }
    }

    /// As [`Block::vjp`], by candle's automatic differentiation through its composed operations: the
    /// baseline of the benchmark.
    ///
    /// # Errors
    /// As [`Block::vjp`].
    pub fn vjp_by_candle(&self, x: &Tensor, gradient: &Tensor) -> Result<Vjp> {
        self.vjp_autograd(x, gradient, Operations::Composed)
    }

    /// Zeros that are added to every linear layer's output receive that output's gradient.
    pub(crate) fn vjp_autograd(&self, x: &Tensor, gradient: &Tensor, operations: Operations) -> Result<Vjp> {
        let input = Var::from_tensor(x)?;
        let mut inputs = Vec::new();
        let mut zeros = Vec::new();
        let output = self.run(input.as_tensor(), operations, &mut |_, input, y| {
            let zero = Var::zeros(y.shape(), y.dtype(), y.device())?;
            let tapped = (y + zero.as_tensor())?;
            inputs.push(input.detach());
            zeros.push(zero);
            Ok(tapped)
        })?;
        let grads = (output * gradient)?.sum_all()?.backward()?;
        let missing = |weight: &str| ModelError::NoGradient { block: self.index, weight: weight.into() };
        let mut linears = Vec::new();
        for (i, (input, zero)) in inputs.into_iter().zip(&zeros).enumerate() {
            let gradient = grads.get(zero.as_tensor()).ok_or_else(|| missing(&Projection::ALL[i].module()))?;
            linears.push(LinearTrace { input: input.flatten_to(1)?, gradient: gradient.detach().flatten_to(1)? });
        }
        let input_gradient = grads.get(input.as_tensor()).ok_or_else(|| missing("the block's input"))?.detach();
        Ok(Vjp { input_gradient, linears })
    }

    /// The chain rule written out: no gradients of weights, no output of the block, and nothing held
    /// longer than it is needed.
    fn vjp_direct(&self, x: &Tensor, gradient: &Tensor) -> CandleResult<Vjp> {
        let operations = Operations::Direct;
        let (batch, tokens, hidden) = x.dims3()?;
        let shape = x.shape();
        let x = x.contiguous()?.reshape((batch * tokens, hidden))?;
        let gradient = gradient.contiguous()?.reshape((batch * tokens, hidden))?;
        let linear = |i: usize, input: &Tensor| self.linear(i, input, operations);
        let back = |i: usize, gradient: &Tensor| product(gradient, &self.weights[i]);
        let norm = Norm { eps: self.config.norm_eps as f32 };

        let attention_input = self.norm(&x, &self.attention_norm, operations)?;
        let (q, k, v) = (linear(0, &attention_input)?, linear(1, &attention_input)?, linear(2, &attention_input)?);
        let normed = self.norm_heads(&q, &k, operations)?;
        let kernel = self.kernel(tokens)?;
        let [q_used, k_used] = normed.clone().unwrap_or([q.clone(), k.clone()]);
        let attended = q_used.apply_op3_no_bwd(&k_used, &v, &kernel)?;
        let middle = (&x + linear(3, &attended)?)?;
        let mlp_input = self.norm(&middle, &self.mlp_norm, operations)?;
        let (gate, up) = (linear(4, &mlp_input)?, linear(5, &mlp_input)?);
        let gated = gate.apply_op2_no_bwd(&up, &Swiglu)?;

        let gated_gradient = back(6, &gradient)?;
        let (gate_gradient, up_gradient) = both(Swiglu.bwd(&gate, &up, &gated, &gated_gradient)?);
        drop((gate, up, gated_gradient));
        let mlp_gradient = (back(4, &gate_gradient)? + back(5, &up_gradient)?)?;
        let middle_gradient = (&gradient + norm.input_gradient(&middle, &self.mlp_norm, &mlp_gradient)?)?;
        let attended_gradient = back(3, &middle_gradient)?;
        let (dq, dk, dv) = kernel.bwd(&q_used, &k_used, &v, &attended, &attended_gradient)?;
        let [mut dq, mut dk, dv] = [dq, dk, dv].map(|t| t.expect("the kernel gives all three"));
        if let Some(weights) = &self.qk_norms {
            let heads = |t: &Tensor| t.reshape(((), self.config.head_dim));
            dq = norm.input_gradient(&heads(&q)?, &weights[0], &heads(&dq)?)?.reshape(q.shape())?;
            dk = norm.input_gradient(&heads(&k)?, &weights[1], &heads(&dk)?)?.reshape(k.shape())?;
        }
        let normed_gradient = ((back(0, &dq)? + back(1, &dk)?)? + back(2, &dv)?)?;
        let input_gradient =
            (&middle_gradient + norm.input_gradient(&x, &self.attention_norm, &normed_gradient)?)?.reshape(shape)?;

        let inputs = [&attention_input, &attention_input, &attention_input, &attended, &mlp_input, &mlp_input, &gated];
        let gradients = [dq, dk, dv, middle_gradient, gate_gradient, up_gradient, gradient];
        let trace = |(input, gradient): (&Tensor, Tensor)| LinearTrace { input: input.clone(), gradient };
        Ok(Vjp { input_gradient, linears: inputs.into_iter().zip(gradients).map(trace).collect() })
    }
}

fn both((a, b): (Option<Tensor>, Option<Tensor>)) -> (Tensor, Tensor) {
    (a.expect("the kernel gives both"), b.expect("the kernel gives both"))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use waterfill_fixture::FAMILIES;

    use super::*;
    use crate::block::tests::{largest, noise, small_block};

    fn scalar(t: &Tensor) -> f64 {
        t.sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    }

    /// The chain rule written out against automatic differentiation, every trace of every family.
    #[test]
    fn the_direct_product_equals_automatic_differentiation() {
        for name in FAMILIES {
            let block = small_block(name, DType::F32);
            let [x, gradient] = [1.0, 7.0].map(|s| noise(s, (9, 70, 64)).to_dtype(DType::F32).unwrap());
            let (ours, theirs) = (block.vjp(&x, &gradient).unwrap(), block.vjp_by_candle(&x, &gradient).unwrap());
            let close = |what: &str, a: &Tensor, b: &Tensor| {
                let difference = largest(&(a - b).unwrap());
                assert!(difference < 2e-5 * largest(b), "{name} {what}: {difference} of {}", largest(b));
            };
            close("input", &ours.input_gradient, &theirs.input_gradient);
            for (i, (a, b)) in ours.linears.iter().zip(&theirs.linears).enumerate() {
                close(Projection::ALL[i].label(), &a.input, &b.input);
                close(Projection::ALL[i].label(), &a.gradient, &b.gradient);
            }
        }
    }

    /// Gradient check: the vector-Jacobian product against central differences in f64, for the
    /// block's input and for entries of every weight (dL/dW = sum_t g_t x_t^T).
    #[test]
    fn gradient_equals_finite_differences() {
        for name in ["llama3-8b", "qwen2.5-7b", "qwen3-4b"] {
            let mut block = small_block(name, DType::F64);
            let (x, gradient) = (noise(1.0, (2, 5, 64)), noise(7.0, (2, 5, 64)));
            let loss = |block: &Block, x: &Tensor| {
                let y = block.run(x, Operations::Composed, &mut |_, _, y| Ok(y)).unwrap();
                scalar(&(y * &gradient).unwrap())
            };
            let vjp = block.vjp(&x, &gradient).unwrap();
            let step = 1e-5;
            let close = |what: &str, got: f64, want: f64| {
                let difference = (got - want).abs();
                assert!(difference < 2e-6 * (1.0 + want.abs()), "{name} {what}: {got}, finite difference {want}");
            };

            let direction = noise(3.0, (2, 5, 64));
            let at = |s: f64| loss(&block, &(&x + (&direction * s).unwrap()).unwrap());
            let got = scalar(&(&vjp.input_gradient * &direction).unwrap());
            close("input", got, (at(step) - at(-step)) / (2.0 * step));

            for (i, trace) in vjp.linears.iter().enumerate() {
                let weight = block.weights[i].clone();
                let (rows, cols) = weight.dims2().unwrap();
                let direction = noise(i as f64, (1, rows, cols)).squeeze(0).unwrap();
                let analytic = trace.gradient.t().unwrap().matmul(&trace.input).unwrap();
                let got = scalar(&(analytic * &direction).unwrap());
                let mut at = |s: f64| {
                    block.weights[i] = (&weight + (&direction * s).unwrap()).unwrap();
                    loss(&block, &x)
                };
                let want = (at(step) - at(-step)) / (2.0 * step);
                block.weights[i] = weight;
                close(Projection::ALL[i].label(), got, want);
            }
        }
    }
}
