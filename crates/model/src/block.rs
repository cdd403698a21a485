//! A transformer block: forward pass and vector-Jacobian product.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result as CandleResult, Tensor, Var};
use candle_nn::ops::{rms_norm, softmax, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_slow};

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::kernels::{Attention, Norm, Swiglu};

/// The linear layers of a block in the order of [`Vjp::linears`], as in checkpoint names.
pub const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Rotary tables `[positions, head_dim / 2]`.
#[derive(Clone)]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
    /// The same for the kernels.
    plain: [Arc<Vec<f32>>; 2],
}

impl Rotary {
    /// Tables of a model, with the element type and device of `like`.
    ///
    /// # Errors
    /// As the tensor library says.
    pub fn new(config: &ModelConfig, like: &Tensor) -> Result<Self> {
        let half = config.head_dim / 2;
        let angles: Vec<f64> = (0..config.positions)
            .flat_map(|p| {
                (0..half).map(move |i| p as f64 / config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64))
            })
            .collect();
        let table = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f64> = angles.iter().map(|&a| f(a)).collect();
            Ok(Tensor::from_vec(values, (config.positions, half), &Device::Cpu)?
                .to_dtype(like.dtype())?
                .to_device(like.device())?)
        };
        let plain = |f: fn(f64) -> f64| Arc::new(angles.iter().map(|&a| f(a) as f32).collect());
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)?, plain: [plain(f64::cos), plain(f64::sin)] })
    }
}

/// Weights of one block. Linear weights are `[out, in]`.
pub struct Block {
    pub(crate) index: usize,
    pub(crate) config: ModelConfig,
    pub(crate) attention_norm: Tensor,
    pub(crate) mlp_norm: Tensor,
    /// In the order of [`LINEARS`].
    pub(crate) weights: Vec<Tensor>,
    pub(crate) rotary: Rotary,
}

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
    /// One for each of [`LINEARS`].
    pub linears: Vec<LinearTrace>,
}

/// candle's fused operations have no gradient. Ours have, for f32 on the CPU; elsewhere gradients
/// go through composed operations.
#[derive(Clone, Copy, PartialEq)]
enum Operations {
    Fused,
    Kernels,
    Composed,
}

impl Operations {
    /// Those with gradients, for tensors like `x`.
    fn differentiable(x: &Tensor) -> Self {
        if x.device().is_cpu() && x.dtype() == DType::F32 { Self::Kernels } else { Self::Composed }
    }
}

/// What happens at a linear layer: index, input, output.
type Tap<'a> = dyn FnMut(usize, &Tensor, Tensor) -> CandleResult<Tensor> + 'a;

impl Block {
    /// A block from its weights: the two norms, then the linear layers in the order of [`LINEARS`].
    pub fn from_weights(
        index: usize,
        config: &ModelConfig,
        norms: [Tensor; 2],
        weights: [Tensor; 7],
        rotary: &Rotary,
    ) -> Self {
        let [attention_norm, mlp_norm] = norms;
        Self {
            index,
            config: config.clone(),
            attention_norm,
            mlp_norm,
            weights: weights.into(),
            rotary: rotary.clone(),
        }
    }

    /// As [`Block::forward`], from operations through which gradients reach input and weights.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_differentiable(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.run(x, Operations::differentiable(x), &mut |_, _, y| Ok(y))?)
    }

    /// Runs the block on `x` `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, and more tokens than the model has positions.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.run(x, Operations::Fused, &mut |_, _, y| Ok(y))?)
    }

    /// Vector-Jacobian product at `x` with `gradient` of the block's output, both
    /// `[batch, tokens, hidden]`.
    ///
    /// Zeros that are added to every linear layer's output receive that output's gradient; with
    /// the layer's input it gives any Fisher statistic without per-token weight gradients.
    ///
    /// # Errors
    /// Shapes that do not fit, and a weight that no gradient reached.
    pub fn vjp(&self, x: &Tensor, gradient: &Tensor) -> Result<Vjp> {
        let input = Var::from_tensor(x)?;
        let mut inputs = Vec::new();
        let mut zeros = Vec::new();
        let output = self.run(input.as_tensor(), Operations::differentiable(x), &mut |_, input, y| {
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
            let gradient = grads.get(zero.as_tensor()).ok_or_else(|| missing(LINEARS[i]))?;
            linears.push(LinearTrace { input: input.flatten_to(1)?, gradient: gradient.detach().flatten_to(1)? });
        }
        let input_gradient = grads.get(input.as_tensor()).ok_or_else(|| missing("the block's input"))?.detach();
        Ok(Vjp { input_gradient, linears })
    }

    fn run(&self, x: &Tensor, operations: Operations, tap: &mut Tap) -> CandleResult<Tensor> {
        let mut linear = |i: usize, input: &Tensor| {
            let (batch, tokens, width) = input.dims3()?;
            let flat = input.reshape((batch * tokens, width))?;
            let y = flat.matmul(&self.weights[i].t()?)?.reshape((batch, tokens, ()))?;
            tap(i, input, y)
        };
        let normed = self.norm(x, &self.attention_norm, operations)?;
        let (q, k, v) = (linear(0, &normed)?, linear(1, &normed)?, linear(2, &normed)?);
        let attended = self.attend(&q, &k, &v, operations)?;
        let x = (x + linear(3, &attended)?)?;
        let normed = self.norm(&x, &self.mlp_norm, operations)?;
        let (gate, up) = (linear(4, &normed)?, linear(5, &normed)?);
        let gated = match operations {
            Operations::Kernels => gate.apply_op2(&up, Swiglu)?,
            _ => (gate.silu()? * up)?,
        };
        x + linear(6, &gated)?
    }

    fn norm(&self, x: &Tensor, weight: &Tensor, operations: Operations) -> CandleResult<Tensor> {
        match operations {
            Operations::Fused => rms_norm(&x.contiguous()?, weight, self.config.norm_eps as f32),
            _ => differentiable_norm(x, weight, self.config.norm_eps),
        }
    }

    /// Causal grouped-query attention of projections `[batch, tokens, heads * head_dim]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, operations: Operations) -> CandleResult<Tensor> {
        let config = &self.config;
        let (batch, tokens, _) = q.dims3()?;
        if tokens > config.positions {
            candle_core::bail!("{tokens} tokens, the model has {} positions", config.positions);
        }
        if operations == Operations::Kernels {
            let [cos, sin] = self.rotary.plain.clone();
            let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
            return q.apply_op3(k, v, Attention { heads, kv_heads, dim, tokens, cos, sin });
        }
        let split =
            |t: &Tensor, heads| t.reshape((batch, tokens, heads, config.head_dim))?.transpose(1, 2)?.contiguous();
        let cos = self.rotary.cos.narrow(0, 0, tokens)?;
        let sin = self.rotary.sin.narrow(0, 0, tokens)?;
        let rotate = |t: &Tensor| match operations {
            Operations::Fused => rope(t, &cos, &sin),
            _ => rope_slow(t, &cos, &sin),
        };
        let q = (rotate(&split(q, config.heads)?)? / (config.head_dim as f64).sqrt())?;
        let k = self.repeat(&rotate(&split(k, config.kv_heads)?)?)?;
        let v = self.repeat(&split(v, config.kv_heads)?)?;
        let scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?.broadcast_add(&causal_mask(tokens, &q)?)?;
        let weights = match operations {
            Operations::Fused => softmax_last_dim(&scores)?,
            _ => softmax(&scores, D::Minus1)?,
        };
        weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, config.heads * config.head_dim))
    }

    /// Gives every query head its key or value head.
    fn repeat(&self, t: &Tensor) -> CandleResult<Tensor> {
        let groups = self.config.heads / self.config.kv_heads;
        if groups == 1 {
            return t.contiguous();
        }
        let (batch, heads, tokens, dim) = t.dims4()?;
        t.unsqueeze(2)?.broadcast_as((batch, heads, groups, tokens, dim))?.contiguous()?.reshape((
            batch,
            heads * groups,
            tokens,
            dim,
        ))
    }
}

/// RMSNorm (Zhang & Sennrich 2019) with a gradient.
///
/// # Errors
/// Shapes that do not fit.
pub fn differentiable_norm(x: &Tensor, weight: &Tensor, eps: f64) -> CandleResult<Tensor> {
    if Operations::differentiable(x) == Operations::Kernels {
        return x.apply_op2(weight, Norm { eps: eps as f32 });
    }
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weight)
}

/// Zero where a position may look, a large negative number where it may not.
fn causal_mask(tokens: usize, like: &Tensor) -> CandleResult<Tensor> {
    let mask: Vec<f32> = (0..tokens).flat_map(|i| (0..tokens).map(move |j| if j > i { -1e30 } else { 0.0 })).collect();
    Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use waterfill_fixture::{Shape, generate};

    use super::*;
    use crate::stream::Model;

    fn fixture_block(dtype: DType) -> (tempfile::TempDir, Block) {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { hidden: 32, intermediate: 40, layers: 1, ..Shape::default() };
        let fixture = generate(dir.path(), 5, &shape).unwrap();
        let model = Model::open_as(&fixture.model, &Device::Cpu, dtype).unwrap();
        let block = model.block(0).unwrap();
        (dir, block)
    }

    fn noise(seed: f64, shape: (usize, usize, usize)) -> Tensor {
        let count = shape.0 * shape.1 * shape.2;
        let values: Vec<f64> = (0..count).map(|i| ((i as f64 + seed) * 12.9898).sin() * 1.5).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn scalar(t: &Tensor) -> f64 {
        t.sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    }

    /// The kernels against the composed operations: output, and gradients of input and weights.
    #[test]
    fn kernels_equal_composed_operations() {
        let (_dir, block) = fixture_block(DType::F32);
        // More tokens than the kernel takes at a time.
        let tokens = 70;
        let (x, gradient) = (noise(1.0, (2, tokens, 32)), noise(7.0, (2, tokens, 32)));
        let (x, gradient) = (x.to_dtype(DType::F32).unwrap(), gradient.to_dtype(DType::F32).unwrap());
        let run = |operations| {
            let (input, norm) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&block.attention_norm).unwrap());
            let mut block = Block::from_weights(
                0,
                &block.config,
                [norm.as_tensor().clone(), block.mlp_norm.clone()],
                block.weights.clone().try_into().unwrap(),
                &block.rotary,
            );
            let query = Var::from_tensor(&block.weights[0]).unwrap();
            let key = Var::from_tensor(&block.weights[1]).unwrap();
            let up = Var::from_tensor(&block.weights[5]).unwrap();
            for (i, variable) in [(0, &query), (1, &key), (5, &up)] {
                block.weights[i] = variable.as_tensor().clone();
            }
            let output = block.run(input.as_tensor(), operations, &mut |_, _, y| Ok(y)).unwrap();
            let grads = (&output * &gradient).unwrap().sum_all().unwrap().backward().unwrap();
            let mut all: Vec<Tensor> =
                [&input, &norm, &query, &key, &up].iter().map(|v| grads.get(v.as_tensor()).unwrap().clone()).collect();
            all.push(output);
            all
        };
        for (n, (a, b)) in run(Operations::Kernels).iter().zip(run(Operations::Composed)).enumerate() {
            let largest = scalar(&b.abs().unwrap().flatten_all().unwrap().max(0).unwrap());
            let difference = scalar(&(a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap());
            assert!(difference < 1e-5 * largest, "{n}: {difference} of {largest}");
        }
    }

    /// Gradient check: the vector-Jacobian product against central differences in f64, for the
    /// block's input and for entries of every weight (dL/dW = sum_t g_t x_t^T).
    #[test]
    fn gradient_equals_finite_differences() {
        let (_dir, mut block) = fixture_block(DType::F64);
        let (x, gradient) = (noise(1.0, (2, 5, 32)), noise(7.0, (2, 5, 32)));
        let loss = |block: &Block, x: &Tensor| {
            let y = block.run(x, Operations::Composed, &mut |_, _, y| Ok(y)).unwrap();
            scalar(&(y * &gradient).unwrap())
        };
        let vjp = block.vjp(&x, &gradient).unwrap();
        let step = 1e-5;
        let close = |what: &str, got: f64, want: f64| {
            assert!((got - want).abs() < 1e-6 * (1.0 + want.abs()), "{what}: {got}, finite difference {want}");
        };

        let direction = noise(3.0, (2, 5, 32));
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
            close(LINEARS[i], got, want);
        }
    }

    #[test]
    fn fused_and_composed_operations_agree() {
        let (_dir, block) = fixture_block(DType::F32);
        let x = noise(1.0, (2, 9, 32)).to_dtype(DType::F32).unwrap();
        let fused = block.forward(&x).unwrap();
        let composed = block.run(&x, Operations::Composed, &mut |_, _, y| Ok(y)).unwrap();
        let worst = (fused - composed).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 2e-5, "largest difference {worst}");
    }

    /// Why [`Operations::Composed`] exists, and why [`Block::vjp`] checks every gradient.
    #[test]
    fn fused_operations_lose_gradients_silently() {
        let (_dir, block) = fixture_block(DType::F32);
        let input = Var::from_tensor(&noise(1.0, (1, 3, 32)).to_dtype(DType::F32).unwrap()).unwrap();
        let reaches = |operations| {
            let normed = block.norm(input.as_tensor(), &block.attention_norm, operations).unwrap();
            normed.sum_all().unwrap().backward().unwrap().get(input.as_tensor()).is_some()
        };
        assert!(reaches(Operations::Composed) && !reaches(Operations::Fused));
    }
}
