//! One pass forward and one back through the blocks, one block in memory at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Tensor;
use ndarray::{Array1, Array2};
use rayon::prelude::*;
use waterfill_artifacts::{Pace, Progress, Work};
use waterfill_model::{EMBEDDING, LINEARS, Model, Windows, linear_name, lm_head_name, pack, unpack};

use crate::error::{CalibrateError, Result};
use crate::head::head_batch;
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

/// Computes sensitivities of all weights; `work` gets one file a block, and an index.
///
/// Results depend on the settings and the windows, not on the number of threads or on
/// interruptions: every batch is summed on its own and batches are added in order. Activations and
/// gradients between blocks are units of `work`, and so are sums over the batches done so far.
///
/// # Errors
/// Models that cannot be run, values that overflow, files that cannot be written.
pub fn calibrate(
    model: &Model,
    windows: &Windows,
    settings: &Settings,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Summary> {
    let plan = &Plan::new(windows, settings)?;
    let pass = Pass { model, plan, settings, work, progress };
    let layers = model.config.layers;
    let mut writer = Writer { work, files: BTreeMap::new() };
    pass.forward()?;
    let (head_sums, nll) = pass.head()?;
    if !model.config.tied {
        let name = lm_head_name(&model.config);
        writer.write("head.safetensors", &[plan.entry(name, &head_sums, true, settings, model.config.hidden)])?;
    }
    progress.start("backward", (layers * plan.batches.len()) as u64);
    for index in (0..layers).rev() {
        pass.block(index, &mut writer)?;
    }
    let gradients = (0..plan.batches.len()).map(|b| pass.tensor(GRADIENT, 0, b)).collect::<Result<Vec<_>>>()?;
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

/// Runs `f` for batches in parallel, results in order.
fn ordered<T: Send>(batches: Range<usize>, f: impl Fn(usize) -> Result<T> + Sync + Send) -> Result<Vec<T>> {
    batches.into_par_iter().map(f).collect()
}

fn unwrap_all(totals: &[Option<Sums>]) -> Vec<Sums> {
    totals.iter().map(|t| t.clone().expect("every shard has a batch")).collect()
}

/// Units: the input of a block, and the gradient there, by block and batch.
const INPUT: &str = "input";
const GRADIENT: &str = "gradient";
/// Unit that says that all inputs are there.
const FORWARD: &str = "forward";
/// Unit with the head's sums.
const HEAD: &str = "head";

/// Sums over the first batches of a phase, for several weights and every shard.
struct Totals {
    batches: usize,
    nll: f64,
    sums: Vec<Vec<Option<Sums>>>,
}

impl Totals {
    fn new(weights: usize, shards: usize) -> Self {
        Self { batches: 0, nll: 0.0, sums: vec![vec![None; shards]; weights] }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.batches as u64).to_le_bytes().to_vec();
        bytes.extend(self.nll.to_le_bytes());
        for sums in self.sums.iter().flatten() {
            bytes.push(u8::from(sums.is_some()));
            sums.iter().for_each(|s| s.write(&mut bytes));
        }
        bytes
    }

    /// Reads [`Totals::to_bytes`] into totals of as many weights and shards.
    fn parse(mut self, mut bytes: &[u8]) -> Option<Self> {
        let (batches, rest) = bytes.split_first_chunk::<8>()?;
        let (nll, rest) = rest.split_first_chunk::<8>()?;
        (self.batches, self.nll, bytes) = (u64::from_le_bytes(*batches) as usize, f64::from_le_bytes(*nll), rest);
        for sums in self.sums.iter_mut().flatten() {
            let (&some, rest) = bytes.split_first()?;
            bytes = rest;
            *sums = match some {
                0 => None,
                _ => Some(Sums::read(&mut bytes)?),
            };
        }
        bytes.is_empty().then_some(self)
    }
}

/// What every step of the pass needs.
struct Pass<'a> {
    model: &'a Model,
    plan: &'a Plan<'a>,
    settings: &'a Settings,
    work: &'a Work,
    progress: &'a dyn Progress,
}

impl Pass<'_> {
    fn keep(&self, kind: &str, block: usize, batch: usize, t: &Tensor) -> Result<()> {
        Ok(self.work.keep(&format!("{kind}-{block}-{batch}"), &pack(t)?)?)
    }

    fn tensor(&self, kind: &str, block: usize, batch: usize) -> Result<Tensor> {
        let name = format!("{kind}-{block}-{batch}");
        let unit = self.work.unit(&name).and_then(|bytes| unpack(&bytes, self.model.device()));
        unit.ok_or_else(|| CalibrateError::File {
            path: self.work.out().with_file_name("units").join(name),
            reason: "is missing or damaged; remove this directory and start again".into(),
        })
    }

    /// Inputs of all blocks, and the last one's output, become units.
    fn forward(&self) -> Result<()> {
        let (layers, batches) = (self.model.config.layers, &self.plan.batches);
        self.progress.start("forward", (layers * batches.len()) as u64);
        if self.work.unit(FORWARD).is_some() {
            self.progress.advance((layers * batches.len()) as u64);
            return Ok(());
        }
        for (b, input) in self.model.embed(batches)?.iter().enumerate() {
            self.keep(INPUT, 0, b, input)?;
        }
        for index in 0..layers {
            let block = self.model.block(index)?;
            ordered(0..batches.len(), |b| {
                if self.work.unit(&format!("{INPUT}-{}-{b}", index + 1)).is_none() {
                    self.keep(INPUT, index + 1, b, &block.forward(&self.tensor(INPUT, index, b)?)?)?;
                }
                self.progress.advance(1);
                Ok(())
            })?;
        }
        Ok(self.work.keep(FORWARD, &[])?)
    }

    /// Goes through the batches that `phase` has not done, as many at a time as there are threads;
    /// `fold` adds their results in order.
    fn phase<T: Send>(
        &self,
        phase: &str,
        weights: usize,
        batch: impl Fn(usize) -> Result<T> + Sync,
        mut fold: impl FnMut(&mut Totals, usize, T),
    ) -> Result<Totals> {
        let empty = || Totals::new(weights, self.plan.tokens.len());
        let mut totals = self.work.unit(phase).and_then(|b| empty().parse(&b)).unwrap_or_else(empty);
        self.progress.advance(totals.batches as u64);
        let (count, width) = (self.plan.batches.len(), rayon::current_num_threads().max(1));
        let mut pace = Pace::default();
        while totals.batches < count {
            let first = totals.batches;
            let part = ordered(first..(first + width).min(count), |b| {
                let result = batch(b)?;
                self.progress.advance(1);
                Ok(result)
            })?;
            for result in part {
                let batch = totals.batches;
                fold(&mut totals, batch, result);
                totals.batches += 1;
            }
            pace.offer(|| self.work.keep(phase, &totals.to_bytes()))?;
        }
        Ok(totals)
    }

    /// Keeps gradients below the head; the head's sums by shard, and the text's summed nll.
    fn head(&self) -> Result<(Vec<Sums>, f64)> {
        let Self { plan, settings, .. } = self;
        let head = self.model.head()?;
        let layers = self.model.config.layers;
        self.progress.start("head", plan.batches.len() as u64);
        let batch = |b: usize| {
            let rows = plan.first[b]..plan.first[b] + plan.batches[b].len();
            let targets: Vec<&[u32]> = rows.clone().map(|i| plan.windows.targets(i)).collect();
            let (labels, seed) = (settings.labels, settings.seed);
            let output = self.tensor(INPUT, layers, b)?;
            let result = head_batch(&head, &output, &targets, rows.start, labels, seed, settings.second_moment)?;
            self.keep(GRADIENT, layers, b, &result.gradient)?;
            Ok((result.sums, result.nll))
        };
        let totals = self.phase(HEAD, 1, batch, |totals, b, (sums, nll)| {
            plan.add(&mut totals.sums[0], b, sums);
            totals.nll += nll;
        })?;
        // Needed again at the very end, so this one is kept whatever it costs.
        self.work.keep(HEAD, &totals.to_bytes())?;
        Ok((unwrap_all(&totals.sums[0]), totals.nll))
    }

    /// Writes the sums of block `index` and keeps the gradients below it.
    fn block(&self, index: usize, writer: &mut Writer) -> Result<()> {
        let Self { plan, settings, .. } = self;
        let (file, phase) = (format!("block-{index:03}.safetensors"), format!("block-{index}"));
        let names: Vec<String> = (0..LINEARS.len()).map(|i| linear_name(index, i)).collect();
        if writer.has(&file, &names) {
            self.progress.advance(plan.batches.len() as u64);
            return Ok(());
        }
        let block = self.model.block(index)?;
        let batch = |b: usize| {
            let vjp = block.vjp(&self.tensor(INPUT, index, b)?, &self.tensor(GRADIENT, index + 1, b)?)?;
            let moment = |i| holds_moment(i, settings).then_some(settings.second_moment);
            let traces = vjp.linears.iter().enumerate();
            let sums = traces.map(|(i, trace)| Ok(Sums::of_trace(trace, moment(i))?)).collect::<Result<Vec<Sums>>>()?;
            self.keep(GRADIENT, index, b, &vjp.input_gradient)?;
            Ok(sums)
        };
        let totals = self.phase(&phase, LINEARS.len(), batch, |totals, b, sums| {
            sums.into_iter().zip(&mut totals.sums).for_each(|(s, total)| plan.add(total, b, s));
        })?;
        let totals: Vec<Vec<Sums>> = totals.sums.iter().map(|t| unwrap_all(t)).collect();
        let entries: Vec<Entry> = (0..LINEARS.len())
            .map(|i| {
                let width = totals[i][0].col_x2.len();
                plan.entry(&names[i], &totals[i], holds_moment(i, settings), settings, width)
            })
            .collect();
        writer.write(&file, &entries)?;
        self.work.forget(&phase);
        for b in 0..plan.batches.len() {
            self.work.forget(&format!("{INPUT}-{index}-{b}"));
            self.work.forget(&format!("{GRADIENT}-{}-{b}", index + 1));
        }
        Ok(())
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
