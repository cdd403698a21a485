//! The model as trainable arrays: loss and gradients of a batch.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use waterfill_model::{
    Block, EMBEDDING, FINAL_NORM, ModelConfig, Projection, Rotary, TensorRole, differentiable_norm, lm_head_name,
};
use waterfill_world::Source;

use crate::loss::CrossEntropy;
use crate::optimizer::Parameter;
use crate::{Result, TrainError};

/// Names and shapes of a model's arrays, in a fixed order.
pub(crate) fn layout(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    config.tensors().into_iter().map(|(role, shape)| (role.name(), shape)).collect()
}

/// Random beginnings: matrices with standard deviation 0.02, those that write to the residual
/// stream divided by the root of their number (GPT-2), norms one.
pub(crate) fn initial(config: &ModelConfig, seed: u64) -> Vec<Parameter> {
    let mut source = Source::new(seed);
    let residual = 1.0 / (2.0 * config.layers as f32).sqrt();
    let array = |(name, shape): (String, Vec<usize>)| {
        let count = shape.iter().product();
        let projection = TensorRole::parse(&name).and_then(TensorRole::projection);
        let into_residual = matches!(projection, Some(Projection::Output | Projection::Down));
        let scale = if into_residual { 0.02 * residual } else { 0.02 };
        let value = match shape.len() {
            1 => vec![1.0; count],
            _ => (0..count).map(|_| source.normal() * scale).collect(),
        };
        Parameter { name, shape, value, first: vec![0.0; count], second: vec![0.0; count] }
    };
    layout(config).into_iter().map(array).collect()
}

/// One set of variables, shared by all batches of a step.
pub(crate) struct Network {
    config: ModelConfig,
    variables: Vec<Var>,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Tensor,
}

/// Losses of a batch.
pub(crate) struct Outcome {
    /// Weighted sum of negative log-likelihoods, nats.
    pub loss: f64,
    /// Sum of the weights.
    pub weight: f64,
    /// Sum of negative log-likelihoods without weights, nats.
    pub nll: f64,
    /// Number of positions.
    pub positions: usize,
}

impl Network {
    pub fn new(config: &ModelConfig, parameters: &[Parameter]) -> Result<Self> {
        let mut variables = Vec::new();
        let mut named = HashMap::new();
        for p in parameters {
            let variable = Var::from_vec(p.value.clone(), p.shape.as_slice(), &Device::Cpu)?;
            named.insert(p.name.as_str(), variable.as_tensor().clone());
            variables.push(variable);
        }
        let mut take = |name: &str| named.remove(name).ok_or_else(|| TrainError::Parameter { name: name.into() });
        let embedding = take(EMBEDDING)?;
        let rotary = Rotary::new(config, &embedding);
        let mut blocks = Vec::new();
        for index in 0..config.layers {
            let [attention, mlp] = [TensorRole::AttentionNorm { block: index }, TensorRole::MlpNorm { block: index }];
            let norms = [take(&attention.name())?, take(&mlp.name())?];
            let weights = Projection::ALL.iter().map(|p| take(&p.weight(index).name())).collect::<Result<Vec<_>>>()?;
            let weights: [Tensor; 7] = weights.try_into().expect("as many as there are linear layers");
            blocks.push(Block::from_weights(index, config, norms, weights, &rotary));
        }
        let norm = take(FINAL_NORM)?;
        let head = if config.tied { embedding.clone() } else { take(lm_head_name(config))? };
        Ok(Self { config: config.clone(), variables, embedding, blocks, norm, head })
    }

    /// Logits `[tokens, vocab]` of the next tokens after every input of equally long rows.
    fn logits(&self, rows: &[&[u32]]) -> Result<Tensor> {
        let tokens = rows[0].len();
        let ids = Tensor::from_vec(rows.concat(), rows.len() * tokens, &Device::Cpu)?;
        let mut x = self.embedding.embedding(&ids)?.reshape((rows.len(), tokens, self.config.hidden))?;
        for block in &self.blocks {
            x = block.forward_differentiable(&x)?;
        }
        let x = differentiable_norm(&x, &self.norm, self.config.norm_eps)?.reshape(((), self.config.hidden))?;
        Ok(x.matmul(&self.head.t()?)?)
    }

    /// Negative log-likelihoods `[targets]` of rows of `context + 1` tokens, and the logits.
    fn forward(&self, rows: &[&[u32]]) -> Result<(Tensor, Tensor)> {
        let inputs: Vec<&[u32]> = rows.iter().map(|r| &r[..r.len() - 1]).collect();
        let targets = rows.iter().flat_map(|r| &r[1..]).copied().collect();
        let logits = self.logits(&inputs)?;
        Ok((logits.apply_op1(CrossEntropy { targets })?, logits))
    }

    /// Loss and its gradients, in the parameters' order. `weight` says how much a target counts, from
    /// the row and the target's index in it.
    pub fn gradients(
        &self,
        rows: &[&[u32]],
        weight: &dyn Fn(&[u32], usize) -> f32,
    ) -> Result<(Outcome, Vec<Vec<f32>>)> {
        let (nll, _) = self.forward(rows)?;
        let weights: Vec<f32> = rows.iter().flat_map(|r| (1..r.len()).map(|i| weight(r, i))).collect();
        let total = weights.iter().map(|&w| f64::from(w)).sum();
        let loss = (&nll * Tensor::from_vec(weights, nll.shape(), &Device::Cpu)?)?.sum_all()?;
        let outcome =
            Outcome { loss: scalar(&loss)?, weight: total, nll: scalar(&nll.sum_all()?)?, positions: nll.elem_count() };
        let store = loss.backward()?;
        let gradients = self.variables.iter().map(|v| {
            let missing = || TrainError::Parameter { name: format!("shape {:?} (no gradient)", v.shape()) };
            Ok(store.get(v.as_tensor()).ok_or_else(missing)?.flatten_all()?.to_vec1::<f32>()?)
        });
        Ok((outcome, gradients.collect::<Result<_>>()?))
    }

    /// Negative log-likelihood of rows, and how many of their answers are likelier than the other
    /// letters: right and all.
    pub fn evaluate(&self, rows: &[&[u32]], letters: &Letters) -> Result<(f64, usize, usize)> {
        let (nll, logits) = self.forward(rows)?;
        let (mut right, mut all) = (0, 0);
        for (n, row) in rows.iter().enumerate() {
            for i in (1..row.len()).filter(|&i| letters.is_answer(row, i)) {
                let scores: Vec<f32> = logits.get(n * (row.len() - 1) + i - 1)?.to_vec1()?;
                let best = letters.tokens.iter().max_by(|a, b| scores[**a as usize].total_cmp(&scores[**b as usize]));
                right += usize::from(best == Some(&row[i]));
                all += 1;
            }
        }
        Ok((scalar(&nll.sum_all()?)?, right, all))
    }
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_scalar::<f32>()?))
}

/// Token sequences that mark the letters of answers.
#[derive(Debug, Clone)]
pub(crate) struct Letters {
    /// Tokens before the letter of an answer.
    pub answer: Vec<u32>,
    /// Tokens before the letter of a reason.
    pub reason: Vec<u32>,
    /// The four letters.
    pub tokens: Vec<u32>,
}

impl Letters {
    /// True when token `i` of `row` is the letter of an answer.
    pub fn is_answer(&self, row: &[u32], i: usize) -> bool {
        self.tokens.contains(&row[i]) && row[..i].ends_with(&self.answer)
    }

    /// True when token `i` of `row` is the letter of a reason.
    pub fn is_reason(&self, row: &[u32], i: usize) -> bool {
        self.tokens.contains(&row[i]) && row[..i].ends_with(&self.reason)
    }
}
