//! A model that is coded part after part.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use waterfill_model::{Block, Model, ModelError, Projection, TensorRole, Windows, roles};

use crate::descent::Descent;
use crate::error::Result;
use crate::head::{Divergence, divergence};

/// Settings of the steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequentialSettings {
    /// Steps, a batch each, after each part is coded.
    pub steps: usize,
    /// Largest step of a weight, as a share of its likely coding error: the root mean square of its matrix times the
    /// relative error of the weights coded so far. Falls linearly to zero over the steps.
    pub rate: f64,
    /// Tokens of a batch.
    pub batch_tokens: usize,
}

/// Mean divergence from the original over the first and the last quarter of the steps after a part,
/// nats per token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descended {
    /// Over the first quarter.
    pub from: f64,
    /// Over the last quarter.
    pub to: f64,
}

/// A model that is coded block after block.
pub struct Adaptation<'a> {
    original: &'a Model,
    partly_coded: Model,
    settings: SequentialSettings,
    /// Parts of batches: each is a task, whatever the number of threads.
    parts: Vec<Vec<&'a [u32]>>,
    /// The original's final states, by part.
    references: Vec<Tensor>,
    /// States before block `reached` of the partly coded model, by part; empty before the embedding is
    /// coded.
    inputs: Vec<Tensor>,
    reached: usize,
    /// Weights that are not coded yet.
    left: BTreeMap<String, Descent>,
    /// Batches taken so far.
    taken: usize,
    /// Sum of squared errors of coded weights, and of their squares.
    squares: [f64; 2],
}

/// Parts of a batch.
const PARTS: usize = 2;

impl<'a> Adaptation<'a> {
    /// A model without coded weights yet; `copy` is the same model, opened again, and becomes the partly coded one. Only
    /// linear layers of blocks among `names` move.
    ///
    /// # Errors
    /// Models that cannot be run.
    pub fn new(
        original: &'a Model,
        copy: Model,
        windows: &'a Windows,
        names: &BTreeSet<String>,
        settings: SequentialSettings,
    ) -> Result<Self> {
        let parts = windows.batches((settings.batch_tokens / PARTS).max(1));
        let mut references = embedded(original, &parts)?;
        advance(original, &mut references, 0..original.config.layers)?;
        let mut left = BTreeMap::new();
        for (name, shape) in original.weights().into_iter().filter(|(name, _)| roles::is_linear(name)) {
            if names.contains(&name) {
                left.insert(name.clone(), Descent::new(original.checkpoint().read_f32(&name, &shape)?));
            }
        }
        Ok(Self {
            original,
            partly_coded: copy,
            settings,
            parts,
            references,
            inputs: Vec::new(),
            reached: 0,
            left,
            taken: 0,
            squares: [0.0; 2],
        })
    }

    /// Current values of a matrix, row-major; `None` once it is coded.
    pub fn weights(&self, name: &str) -> Option<&[f32]> {
        self.left.get(name).map(Descent::values)
    }

    /// Takes the decoded values of matrices, by name, and moves the weights that are not coded yet; `None` where there
    /// are none.
    ///
    /// # Errors
    /// Models that cannot be run.
    pub fn coded(&mut self, decoded: BTreeMap<String, Vec<f32>>) -> Result<Option<Descended>> {
        for (name, values) in decoded {
            let target = match self.left.remove(&name) {
                Some(descent) => descent.into_values(),
                None => self.original.values(&name)?,
            };
            for (value, target) in values.iter().zip(target) {
                self.squares[0] += f64::from(value - target).powi(2);
                self.squares[1] += f64::from(target).powi(2);
            }
            self.partly_coded.set_values(&name, values);
        }
        let relative_error = (self.squares[0] / self.squares[1].max(f64::MIN_POSITIVE)).sqrt();
        let layers = self.partly_coded.config.layers;
        let Some(first) = self.left.keys().filter_map(|name| block_of_linear(name)).min() else { return Ok(None) };
        if self.inputs.is_empty() {
            self.inputs = embedded(&self.partly_coded, &self.parts)?;
        }
        // Blocks before the first weight that is left stay as they are.
        advance(&self.partly_coded, &mut self.inputs, self.reached..first)?;
        self.reached = first;
        let [original, coded] = [self.original.head()?, self.partly_coded.head()?];
        let mut losses = Vec::new();
        for step in 0..self.settings.steps {
            for (name, descent) in &self.left {
                self.partly_coded.set_values(name, descent.values().to_vec());
            }
            let blocks = (first..layers).map(|i| self.partly_coded.block(i)).collect::<Result<Vec<_>>>()?;
            let chosen: Vec<usize> =
                (0..PARTS.min(self.parts.len())).map(|i| self.part(PARTS * self.taken + i)).collect();
            let results = chosen
                .par_iter()
                .map(|&p| {
                    let reference = (&original, &self.references[p]);
                    self.gradients(first, &blocks, self.inputs[p].clone(), |x| divergence(reference, (&coded, x)))
                })
                .collect::<Result<Vec<_>>>()?;
            self.taken += 1;
            let tokens = chosen.iter().flat_map(|&p| &self.parts[p]).map(|row| row.len()).sum::<usize>() as f64;
            losses.push(results.iter().map(|r| r.0).sum::<f64>() / tokens);
            let rate = self.settings.rate * relative_error * (1.0 - step as f64 / self.settings.steps as f64);
            self.left.par_iter_mut().for_each(|(name, descent)| {
                let gradients: Vec<&[f32]> = results.iter().map(|r| r.1[name].as_slice()).collect();
                descent.step(&gradients, (1.0 / tokens) as f32, rate);
            });
        }
        let quarter = losses.len().div_ceil(4);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        Ok(Some(Descended { from: mean(&losses[..quarter]), to: mean(&losses[losses.len() - quarter..]) }))
    }

    /// Which part comes `n`-th: all before any again, neighbours far apart.
    fn part(&self, n: usize) -> usize {
        let count = self.parts.len();
        let apart = (count * 5 / 13..).find(|&k| gcd(k, count) == 1).unwrap_or(1);
        n % count * apart % count
    }

    /// Divergence of a part, summed over its tokens, and its gradient by the weights that are left.
    fn gradients(
        &self,
        first: usize,
        blocks: &[Block],
        input: Tensor,
        divergence: impl Fn(&Tensor) -> Result<Divergence>,
    ) -> Result<(f64, BTreeMap<String, Vec<f32>>)> {
        let mut inputs = Vec::with_capacity(blocks.len());
        let mut x = input;
        for block in blocks {
            let output = block.forward(&x)?;
            inputs.push(std::mem::replace(&mut x, output));
        }
        let Divergence { sum, mut gradient } = divergence(&x)?;
        let mut found = BTreeMap::new();
        for (n, block) in blocks.iter().enumerate().rev() {
            let vjp = block.vjp(&inputs[n], &gradient)?;
            inputs.truncate(n);
            gradient = vjp.input_gradient;
            for (projection, trace) in Projection::ALL.into_iter().zip(vjp.linears) {
                let name = projection.weight(first + n).name();
                if self.left.contains_key(&name) {
                    let by_weight = trace.gradient.t()?.matmul(&trace.input)?;
                    found.insert(name, by_weight.flatten_all()?.to_vec1()?);
                }
            }
        }
        Ok((sum, found))
    }
}

/// States of every part before the first block.
fn embedded(model: &Model, parts: &[Vec<&[u32]>]) -> Result<Vec<Tensor>> {
    let mut states = Vec::new();
    model.embed(parts, |_, x| -> Result<()> {
        states.push(x);
        Ok(())
    })?;
    Ok(states)
}

/// Takes states of every part through some blocks.
fn advance(model: &Model, states: &mut [Tensor], blocks: Range<usize>) -> Result<()> {
    let blocks = blocks.map(|i| model.block(i)).collect::<Result<Vec<_>>>()?;
    states.par_iter_mut().try_for_each(|x| {
        blocks.iter().try_for_each(|block| {
            *x = block.forward(x)?;
            Ok::<_, ModelError>(())
        })
    })
}

/// Block of the weight of a linear layer; `None` for other tensors, which do not move.
fn block_of_linear(name: &str) -> Option<usize> {
    TensorRole::parse(name).filter(|role| role.projection().is_some())?.block()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
