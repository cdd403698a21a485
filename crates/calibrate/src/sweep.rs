//! One pass forward and one back through the blocks, one block in memory at a time.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use ndarray::{Array1, Array2};
use rayon::prelude::*;
use waterfill_artifacts::Progress;
use waterfill_model::{EMBEDDING, LINEARS, Model, Windows, lm_head_name};

use crate::error::{CalibrateError, Result};
use crate::head::{HeadBatch, head_batch};
use crate::statistics::{MomentKind, SecondMoment, Sums, TILE, Weighting, vector};
use crate::store::{Entry, Writer};

/// Whose labels the gradients come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Drawn from the model's own distribution: the true Fisher information.
    Sampled,
    /// The text's next tokens: the empirical Fisher information.
    Data,
}

/// What to compute.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Labels of the loss.
    pub labels: Labels,
    /// Seed of sampled labels.
    pub seed: u64,
    /// Parts of the text whose tile Fisher information is kept apart.
    pub shards: usize,
    /// What is kept of the inputs' second moments.
    pub second_moment: SecondMoment,
    /// Tokens of a batch; affects rounding, so it is part of the result's identity.
    pub batch_tokens: usize,
}

/// Figures of a calibration.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Tokens used.
    pub tokens: u64,
    /// Mean negative log-likelihood of the calibration text, nats per token.
    pub nll: f64,
}

/// Computes sensitivities of all weights into the empty directory `dir`.
///
/// Results depend on the settings and the windows, not on the number of threads: every batch is
/// summed on its own and batches are added in order.
///
/// # Errors
/// Models that cannot be run, values that overflow, files that cannot be written.
pub fn calibrate(
    model: &Model,
    windows: &Windows,
    settings: &Settings,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<Summary> {
    let plan = &Plan::new(windows, settings)?;
    let pass = Pass { model, plan, settings, progress };
    let layers = model.config.layers;
    progress.start("forward", (layers * plan.batches.len()) as u64);
    // inputs[l] holds the input of block l for every batch; the last entry is the output.
    let mut inputs = vec![model.embed(&plan.batches)?];
    for index in 0..layers {
        let block = model.block(index)?;
        let previous = &inputs[index];
        let outputs = ordered(plan.batches.len(), |b| {
            let output = block.forward(&previous[b])?;
            progress.advance(1);
            Ok(output)
        })?;
        inputs.push(outputs);
    }
    let mut writer = Writer { dir, files: BTreeMap::new() };
    progress.start("head", plan.batches.len() as u64);
    let (mut gradients, head_sums, nll) = pass.head(inputs.pop().expect("an output"))?;
    if !model.config.tied {
        let name = lm_head_name(&model.config);
        writer.write("head.safetensors", &[plan.entry(name, &head_sums, true, settings, model.config.hidden)])?;
    }
    progress.start("backward", (layers * plan.batches.len()) as u64);
    for index in (0..layers).rev() {
        let input = inputs.pop().expect("one input for each block");
        gradients = pass.block(index, &input, &gradients, &mut writer)?;
    }
    let mut sums = lookup_sums(model, plan, &gradients)?;
    if model.config.tied {
        // Lookup and projection share the matrix; their information adds.
        sums.iter_mut().zip(&head_sums).for_each(|(lookup, head)| lookup.add_projection(head));
    }
    let with_moment = model.config.tied;
    writer
        .write("embedding.safetensors", &[plan.entry(EMBEDDING, &sums, with_moment, settings, model.config.hidden)])?;
    writer.finish()?;
    let tokens = plan.tokens.iter().sum::<f64>();
    Ok(Summary { tokens: tokens as u64, nll: nll / tokens })
}

/// Batches and the shard that each belongs to.
struct Plan<'a> {
    windows: &'a Windows,
    batches: Vec<Vec<&'a [u32]>>,
    /// Index of the first sequence of each batch.
    first: Vec<usize>,
    shard: Vec<usize>,
    /// Tokens of each shard.
    tokens: Vec<f64>,
}

impl<'a> Plan<'a> {
    fn new(windows: &'a Windows, settings: &Settings) -> Result<Self> {
        let (sequences, shards) = (windows.rows.len(), settings.shards.max(1));
        if shards > sequences {
            return Err(CalibrateError::Shards { shards, sequences });
        }
        let per_batch = (settings.batch_tokens / windows.context).max(1);
        let mut plan = Self { windows, batches: vec![], first: vec![], shard: vec![], tokens: vec![0.0; shards] };
        for shard in 0..shards {
            let range = shard * sequences / shards..(shard + 1) * sequences / shards;
            plan.tokens[shard] = (range.len() * windows.context) as f64;
            for first in range.clone().step_by(per_batch) {
                let rows = &windows.rows[first..(first + per_batch).min(range.end)];
                plan.batches.push(rows.iter().map(|r| &r[..windows.context]).collect());
                plan.first.push(first);
                plan.shard.push(shard);
            }
        }
        Ok(plan)
    }

    /// Adds batch sums, in order, to their shards'.
    fn add(&self, totals: &mut [Option<Sums>], batch: usize, sums: Sums) {
        match &mut totals[self.shard[batch]] {
            Some(total) => total.add(&sums),
            empty => *empty = Some(sums),
        }
    }

    fn entry<'b>(
        &'b self,
        name: &'b str,
        shards: &'b [Sums],
        with_moment: bool,
        settings: &Settings,
        width: usize,
    ) -> Entry<'b> {
        let moment_side = match settings.second_moment.kind {
            MomentKind::BlockDiagonal(side) => side,
            _ => width,
        };
        Entry { name, shards, tokens: &self.tokens, with_moment, moment_side }
    }
}

/// Runs `f` for every batch, in parallel, results in order.
fn ordered<T: Send>(batches: usize, f: impl Fn(usize) -> Result<T> + Sync + Send) -> Result<Vec<T>> {
    (0..batches).into_par_iter().map(f).collect()
}

/// As [`ordered`], but holds only as many results as there are threads and hands them on in order.
fn fold_ordered<T: Send>(
    batches: usize,
    f: impl Fn(usize) -> Result<T> + Sync,
    mut fold: impl FnMut(usize, T),
) -> Result<()> {
    let width = rayon::current_num_threads().max(1);
    for start in (0..batches).step_by(width) {
        let part = ordered(width.min(batches - start), |i| f(start + i))?;
        part.into_iter().enumerate().for_each(|(i, result)| fold(start + i, result));
    }
    Ok(())
}

fn unwrap_all(totals: Vec<Option<Sums>>) -> Vec<Sums> {
    totals.into_iter().map(|t| t.expect("every shard has a batch")).collect()
}

/// What every step of the pass needs.
struct Pass<'a> {
    model: &'a Model,
    plan: &'a Plan<'a>,
    settings: &'a Settings,
    progress: &'a dyn Progress,
}

impl Pass<'_> {
    /// Gradients below the head by batch, the head's sums by shard, and the text's summed nll.
    fn head(&self, outputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Vec<Sums>, f64)> {
        let Self { plan, settings, .. } = self;
        let head = self.model.head()?;
        let mut totals = vec![None; plan.tokens.len()];
        let (mut gradients, mut nll) = (Vec::new(), 0.0);
        let batch = |b: usize| {
            let rows = plan.first[b]..plan.first[b] + plan.batches[b].len();
            let targets: Vec<&[u32]> = rows.clone().map(|i| plan.windows.targets(i)).collect();
            let (labels, seed) = (settings.labels, settings.seed);
            let result = head_batch(&head, &outputs[b], &targets, rows.start, labels, seed, settings.second_moment)?;
            self.progress.advance(1);
            Ok(result)
        };
        fold_ordered(plan.batches.len(), batch, |b, HeadBatch { sums, gradient, nll: part }| {
            plan.add(&mut totals, b, sums);
            gradients.push(gradient);
            nll += part;
        })?;
        Ok((gradients, unwrap_all(totals), nll))
    }

    /// Writes the sums of block `index` and returns the gradients below it, by batch.
    fn block(&self, index: usize, inputs: &[Tensor], above: &[Tensor], writer: &mut Writer) -> Result<Vec<Tensor>> {
        let Self { plan, settings, .. } = self;
        let block = self.model.block(index)?;
        let mut totals = vec![vec![None; plan.tokens.len()]; LINEARS.len()];
        let mut below = Vec::new();
        let batch = |b: usize| {
            let vjp = block.vjp(&inputs[b], &above[b])?;
            let moment = |i| holds_moment(i, settings).then_some(settings.second_moment);
            let traces = vjp.linears.iter().enumerate();
            let sums = traces.map(|(i, trace)| Ok(Sums::of_trace(trace, moment(i))?)).collect::<Result<Vec<Sums>>>()?;
            self.progress.advance(1);
            Ok((vjp.input_gradient, sums))
        };
        fold_ordered(plan.batches.len(), batch, |b, (gradient, sums)| {
            below.push(gradient);
            sums.into_iter().zip(&mut totals).for_each(|(s, total)| plan.add(total, b, s));
        })?;
        let totals: Vec<Vec<Sums>> = totals.into_iter().map(unwrap_all).collect();
        let names: Vec<String> = LINEARS.iter().map(|l| format!("model.layers.{index}.{l}.weight")).collect();
        let entries: Vec<Entry> = (0..LINEARS.len())
            .map(|i| {
                let width = totals[i][0].col_x2.len();
                plan.entry(&names[i], &totals[i], holds_moment(i, settings), settings, width)
            })
            .collect();
        writer.write(&format!("block-{index:03}.safetensors"), &entries)?;
        Ok(below)
    }
}

/// q, k and v have one input, gate and up another: its plain second moment is kept once.
fn holds_moment(linear: usize, settings: &Settings) -> bool {
    settings.second_moment.weighting == Weighting::Gradient
        || !["self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"].contains(&LINEARS[linear])
}

/// Sums of the embedding as a lookup: row v of the matrix is an output only where token v occurs.
fn lookup_sums(model: &Model, plan: &Plan, gradients: &[Tensor]) -> Result<Vec<Sums>> {
    let (vocab, hidden) = (model.config.vocab, model.config.hidden);
    let empty = Sums {
        tile_fisher: Array2::zeros((vocab.div_ceil(TILE), hidden.div_ceil(TILE))),
        row_fisher: Array1::zeros(vocab),
        col_fisher: Array1::zeros(hidden),
        row_g2: Array1::zeros(vocab),
        col_x2: Array1::zeros(hidden),
        moment: Vec::new(),
        moment_weight: 0.0,
    };
    let mut shards = vec![empty; plan.tokens.len()];
    for (b, gradient) in gradients.iter().enumerate() {
        let sums = &mut shards[plan.shard[b]];
        let g2 = vector(&gradient.sqr()?)?;
        let rows = g2.as_slice().expect("one dimension").chunks_exact(hidden);
        for (&id, g2) in plan.batches[b].iter().copied().flatten().zip(rows) {
            let id = id as usize;
            for (j, &v) in g2.iter().enumerate() {
                sums.tile_fisher[[id / TILE, j / TILE]] += v;
                sums.row_fisher[id] += v;
                sums.col_fisher[j] += v;
            }
            // The gradient's energy belongs to the row that was looked up; its input is a one.
            sums.row_g2[id] += g2.iter().sum::<f64>() / hidden as f64;
        }
    }
    Ok(shards)
}

impl Sums {
    /// Adds the same matrix's information as an output projection.
    fn add_projection(&mut self, head: &Sums) {
        let moment = std::mem::take(&mut self.moment);
        if moment.is_empty() {
            self.moment = vec![0.0; head.moment.len()];
        }
        self.add(head);
    }
}
