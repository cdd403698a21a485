//! A transformer block and its forward pass.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};
use candle_nn::ops::{rms_norm, softmax, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_slow};

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels::{Attention, Norm, Swiglu};
use crate::product::product;
use crate::roles::Projection;
use crate::rope::Rotary;

/// A linear layer that is computed otherwise than by a dense matrix.
pub trait Linear: Send + Sync {
    /// Output `[tokens, out]` for `[tokens, in]`, without a bias.
    ///
    /// # Errors
    /// As the tensor library says.
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor>;

    /// Rows `[ids, in]` of the matrix: the embeddings of tokens.
    ///
    /// # Errors
    /// As the tensor library says, and rows that it does not have.
    fn rows(&self, ids: &[u32]) -> CandleResult<Tensor>;
}

/// Gives the replacement of a matrix by the name of its weight, of a linear layer, the embedding or the head; `None` keeps the
/// dense matrix.
pub type Others<'a> = dyn FnMut(&str) -> Result<Option<Arc<dyn Linear>>> + 'a;

/// Weights of one block. Linear weights are `[out, in]`.
pub struct Block {
    pub(crate) index: usize,
    pub(crate) config: ModelConfig,
    pub(crate) attention_norm: Tensor,
    pub(crate) mlp_norm: Tensor,
    /// In the order of [`Projection::ALL`].
    pub(crate) weights: Vec<Tensor>,
    /// Replacements of some of them, in a block that gives no gradients.
    pub(crate) others: Vec<Option<Arc<dyn Linear>>>,
    /// In the order of [`Projection::ALL`].
    pub(crate) biases: Vec<Option<Tensor>>,
    /// Of queries and keys, `[head_dim]`.
    pub(crate) qk_norms: Option<[Tensor; 2]>,
    pub(crate) rotary: Rotary,
}

/// candle's fused operations have no gradient. Ours have, for f32 on the CPU, and hold no matrix of
/// attention weights; elsewhere gradients go through composed operations.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Operations {
    Fused,
    /// Ours without gradients: a product is several tasks.
    Direct,
    Kernels,
    Composed,
}

impl Operations {
    /// Those with gradients, for tensors like `x`.
    pub fn differentiable(x: &Tensor) -> Self {
        if Self::has_kernels(x) { Self::Kernels } else { Self::Composed }
    }

    /// The fastest, for tensors like `x`.
    fn forward(x: &Tensor) -> Self {
        if Self::has_kernels(x) { Self::Direct } else { Self::Fused }
    }

    pub fn has_kernels(x: &Tensor) -> bool {
        x.device().is_cpu() && x.dtype() == DType::F32
    }
}

/// Called at every linear layer with its index, input and output; returns the output to go on with.
pub(crate) type Tap<'a> = dyn FnMut(usize, &Tensor, Tensor) -> CandleResult<Tensor> + 'a;

/// Attention of projected queries, keys and values.
pub(crate) type Attend<'a> = dyn FnMut(&Tensor, &Tensor, &Tensor) -> CandleResult<Tensor> + 'a;

impl Block {
    /// A block without biases and norms of queries and keys, from its weights: the two norms, then
    /// the linear layers in the order of [`Projection::ALL`].
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
            others: vec![None; Projection::ALL.len()],
            biases: vec![None; Projection::ALL.len()],
            qk_norms: None,
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
        Ok(self.run(x, Operations::forward(x), &mut |_, _, y| Ok(y))?)
    }

    /// As [`Block::forward`], with the input `[batch * tokens, in]` of each linear layer in the order of
    /// [`Projection::ALL`].
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_traced(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let mut inputs = Vec::new();
        let output = self.run(x, Operations::forward(x), &mut |_, input, y| {
            inputs.push(input.flatten_to(1)?);
            Ok(y)
        })?;
        Ok((output, inputs))
    }

    /// As [`Block::forward`], with `attend` in place of attention among the tokens of `x`.
    pub(crate) fn attended(&self, x: &Tensor, attend: &mut Attend) -> CandleResult<Tensor> {
        let operations = Operations::forward(x);
        self.run_with(x, operations, &mut |_, _, y| Ok(y), &mut |q, k, v| {
            let normed = self.norm_heads(q, k, operations)?;
            let [q, k] = normed.as_ref().map_or([q, k], |[q, k]| [q, k]);
            attend(q, k, v)
        })
    }

    pub(crate) fn run(&self, x: &Tensor, operations: Operations, tap: &mut Tap) -> CandleResult<Tensor> {
        self.run_with(x, operations, tap, &mut |q, k, v| self.attend(q, k, v, operations))
    }

    fn run_with(&self, x: &Tensor, operations: Operations, tap: &mut Tap, attend: &mut Attend) -> CandleResult<Tensor> {
        use Projection::{Down, Gate, Key, Output, Query, Up, Value};
        let mut linear = |projection: Projection, input: &Tensor| {
            let i = projection as usize;
            let (batch, tokens, width) = input.dims3()?;
            let flat = input.reshape((batch * tokens, width))?;
            let y = self.linear(i, &flat, operations)?.reshape((batch, tokens, ()))?;
            tap(i, input, y)
        };
        let normed = self.norm(x, &self.attention_norm, operations)?;
        let (q, k, v) = (linear(Query, &normed)?, linear(Key, &normed)?, linear(Value, &normed)?);
        let attended = attend(&q, &k, &v)?;
        let x = (x + linear(Output, &attended)?)?;
        let normed = self.norm(&x, &self.mlp_norm, operations)?;
        let (gate, up) = (linear(Gate, &normed)?, linear(Up, &normed)?);
        let gated = match operations {
            Operations::Kernels => gate.apply_op2(&up, Swiglu)?,
            Operations::Direct => gate.apply_op2_no_bwd(&up, &Swiglu)?,
            _ => (gate.silu()? * up)?,
        };
        x + linear(Down, &gated)?
    }

    /// Output `[tokens, out]` of linear layer `i` for `[tokens, in]`.
    pub(crate) fn linear(&self, i: usize, x: &Tensor, operations: Operations) -> CandleResult<Tensor> {
        let y = match (&self.others[i], operations) {
            (Some(other), _) => other.forward(x)?,
            (None, Operations::Direct) => product(x, &self.weights[i].t()?)?,
            (None, _) => x.matmul(&self.weights[i].t()?)?,
        };
        match &self.biases[i] {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    pub(crate) fn norm(&self, x: &Tensor, weight: &Tensor, operations: Operations) -> CandleResult<Tensor> {
        let eps = self.config.norm_eps;
        match operations {
            Operations::Fused => rms_norm(&x.contiguous()?, weight, eps as f32),
            Operations::Direct => x.apply_op2_no_bwd(weight, &Norm { eps: eps as f32 }),
            _ => differentiable_norm(x, weight, eps),
        }
    }

    /// The attention kernel for contexts of `tokens`.
    pub(crate) fn kernel(&self, tokens: usize) -> CandleResult<Attention> {
        let config = &self.config;
        if tokens > config.positions {
            candle_core::bail!("{tokens} tokens, the model has {} positions", config.positions);
        }
        let tables = self.rotary.tables(tokens)?;
        let [cos, sin] = tables.plain;
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        Ok(Attention { heads, kv_heads, dim, tokens, window: config.window_of(self.index), cos, sin })
    }

    /// Queries and keys `[.., heads * head_dim]` after their norms, where the model has those.
    pub(crate) fn norm_heads(
        &self,
        q: &Tensor,
        k: &Tensor,
        operations: Operations,
    ) -> CandleResult<Option<[Tensor; 2]>> {
        let Some(weights) = &self.qk_norms else { return Ok(None) };
        let norm = |t: &Tensor, weight: &Tensor| {
            let heads = t.reshape(((), self.config.head_dim))?;
            self.norm(&heads, weight, operations)?.reshape(t.shape())
        };
        Ok(Some([norm(q, &weights[0])?, norm(k, &weights[1])?]))
    }

    /// Causal grouped-query attention of projections `[batch, tokens, heads * head_dim]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, operations: Operations) -> CandleResult<Tensor> {
        let normed = self.norm_heads(q, k, operations)?;
        let [q, k] = normed.as_ref().map_or([q, k], |[q, k]| [q, k]);
        let config = &self.config;
        let (batch, tokens, _) = q.dims3()?;
        let kernel = self.kernel(tokens)?;
        match operations {
            Operations::Kernels => return q.apply_op3(k, v, kernel),
            Operations::Direct => return q.apply_op3_no_bwd(k, v, &kernel),
            _ => {}
        }
        let split =
            |t: &Tensor, heads| t.reshape((batch, tokens, heads, config.head_dim))?.transpose(1, 2)?.contiguous();
        let tables = self.rotary.tables(tokens)?;
        let (cos, sin) = (tables.cos.narrow(0, 0, tokens)?, tables.sin.narrow(0, 0, tokens)?);
        let rotate = |t: &Tensor| match operations {
            Operations::Fused => rope(t, &cos, &sin),
            _ => rope_slow(t, &cos, &sin),
        };
        let q = (rotate(&split(q, config.heads)?)? / (config.head_dim as f64).sqrt())?;
        let k = self.repeat(&rotate(&split(k, config.kv_heads)?)?)?;
        let v = self.repeat(&split(v, config.kv_heads)?)?;
        let mask = causal_mask(tokens, kernel.window, &q)?;
        let scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?.broadcast_add(&mask)?;
        let weights = match operations {
            Operations::Fused => softmax_last_dim(&scores)?,
            _ => softmax(&scores, D::Minus1)?,
        };
        weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, config.heads * config.head_dim))
    }

    /// Gives every query head its key or value head.
    pub(crate) fn repeat(&self, t: &Tensor) -> CandleResult<Tensor> {
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
    if Operations::has_kernels(x) {
        return x.apply_op2(weight, Norm { eps: eps as f32 });
    }
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weight)
}

/// Zero where a position may look, a large negative number where it may not.
fn causal_mask(tokens: usize, window: usize, like: &Tensor) -> CandleResult<Tensor> {
    let hidden = |i: usize, j: usize| j > i || i - j >= window;
    let row = |i: usize| (0..tokens).map(move |j| if hidden(i, j) { -1e30 } else { 0.0 });
    let mask: Vec<f32> = (0..tokens).flat_map(row).collect();
    Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::Var;
    use waterfill_fixture::{FAMILIES, small_config_of, write_random};

    use super::*;
    use crate::stream::Model;

    /// Block 1 of a small instance of a family.
    pub fn small_block(name: &str, dtype: DType) -> Block {
        let dir = tempfile::tempdir().unwrap();
        let mut config = small_config_of(name).unwrap();
        if name == "mistral-7b" {
            config["sliding_window"] = 9.into();
        }
        if name == "llama2-7b" {
            config["attention_bias"] = true.into();
            config["mlp_bias"] = true.into();
        }
        write_random(dir.path(), &config, 5).unwrap();
        Model::open_as(dir.path(), &Device::Cpu, dtype).unwrap().block(1).unwrap()
    }

    pub fn noise(seed: f64, shape: (usize, usize, usize)) -> Tensor {
        let count = shape.0 * shape.1 * shape.2;
        let values: Vec<f64> = (0..count).map(|i| ((i as f64 + seed) * 12.9898).sin() * 1.5).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    pub fn largest(t: &Tensor) -> f64 {
        t.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    }

    /// The kernels against the composed operations: output, and gradients of input and weights.
    #[test]
    fn kernels_equal_composed_operations() {
        for name in FAMILIES {
            let block = small_block(name, DType::F32);
            // More tokens than the kernel takes at a time.
            let tokens = 70;
            let [x, gradient] = [1.0, 7.0].map(|s| noise(s, (2, tokens, 64)).to_dtype(DType::F32).unwrap());
            let run = |operations| {
                let mut changed = Block { weights: block.weights.clone(), ..small_block(name, DType::F32) };
                let input = Var::from_tensor(&x).unwrap();
                let norm = Var::from_tensor(&block.attention_norm).unwrap();
                changed.attention_norm = norm.as_tensor().clone();
                let [query, key, up] = [0, 1, 5].map(|i| Var::from_tensor(&block.weights[i]).unwrap());
                for (i, variable) in [(0, &query), (1, &key), (5, &up)] {
                    changed.weights[i] = variable.as_tensor().clone();
                }
                let output = changed.run(input.as_tensor(), operations, &mut |_, _, y| Ok(y)).unwrap();
                let grads = (&output * &gradient).unwrap().sum_all().unwrap().backward().unwrap();
                let variables = [&input, &norm, &query, &key, &up];
                let mut all: Vec<Tensor> =
                    variables.iter().map(|v| grads.get(v.as_tensor()).unwrap().clone()).collect();
                all.push(output);
                all
            };
            for (n, (a, b)) in run(Operations::Kernels).iter().zip(run(Operations::Composed)).enumerate() {
                let difference = largest(&(a - &b).unwrap());
                assert!(difference < 2e-5 * largest(&b), "{name} {n}: {difference} of {}", largest(&b));
            }
        }
    }

    #[test]
    fn all_forward_passes_agree() {
        for name in FAMILIES {
            let block = small_block(name, DType::F32);
            // More tokens than a task of a product has.
            let x = noise(1.0, (12, 50, 64)).to_dtype(DType::F32).unwrap();
            let run = |operations| block.run(&x, operations, &mut |_, _, y| Ok(y)).unwrap();
            let composed = run(Operations::Composed);
            for operations in [Operations::Fused, Operations::Direct, Operations::Kernels] {
                let worst = largest(&(run(operations) - &composed).unwrap());
                assert!(worst < 2e-5 * largest(&composed), "{name}: largest difference {worst}");
            }
        }
    }

    /// Why [`Operations::Composed`] exists, and why gradients that did not arrive are an error.
    #[test]
    fn fused_operations_lose_gradients_silently() {
        let block = small_block("llama3-8b", DType::F32);
        let input = Var::from_tensor(&noise(1.0, (1, 3, 64)).to_dtype(DType::F32).unwrap()).unwrap();
        let reaches = |operations| {
            let normed = block.norm(input.as_tensor(), &block.attention_norm, operations).unwrap();
            normed.sum_all().unwrap().backward().unwrap().get(input.as_tensor()).is_some()
        };
        assert!(reaches(Operations::Composed) && !reaches(Operations::Fused));
    }
}
