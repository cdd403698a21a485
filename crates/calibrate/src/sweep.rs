//! One pass forward and one back through the blocks, one block in memory at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use waterfill_model::{
    EMBEDDING, LinearTrace, Model, Projection, Windows, lm_head_name, pack, side_by_side, unpack,
};
use waterfill_store::{Pace, Progress, Work};

use crate::error::{CalibrateError, Result};
use crate::head::{head_batch, head_bytes};
use crate::lookup::add_lookup;
use crate::plan::{Plan, holds_moment};
use crate::statistics::{MomentKind, SecondMoment, Sums, Weighting};
use crate::store::{Entry, Writer};
use crate::totals::Totals;

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
    /// What is kept of the output gradients', weighted by the energy of the input; of linear layers.
    pub output_moment: MomentKind,
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
    let Totals { nll, mut sums, moments, .. } = pass.head()?;
    if !model.config.tied {
        let name = lm_head_name(&model.config);
        writer.write("head.safetensors", &[plan.entry(name, &sums[0], moments[0].as_ref(), settings)])?;
    }
    progress.start("backward", (layers * plan.batches.len()) as u64);
    for index in (0..layers).rev() {
        pass.block(index, &mut writer)?;
    }
    // Lookup and projection share the matrix when tied; their information adds.
    let mut lookup = vec![Sums::zeros(model.config.vocab, model.config.hidden); plan.tokens.len()];
    for (b, ids) in plan.batches.iter().enumerate() {
        add_lookup(&mut lookup[plan.shard[b]], ids, &pass.tensor(GRADIENT, 0, b)?)?;
    }
    // What a lookup costs does not add up over columns as what a projection costs does: told apart.
    let looked_up = lookup.iter().skip(1).fold(lookup[0].row_fisher.clone(), |sum, s| sum + &s.row_fisher);
    let moments = match model.config.tied {
        true => {
            lookup.iter_mut().zip(&mut sums[0]).for_each(|(lookup, head)| lookup.add(head));
            moments[0].as_ref()
        }
        false => None,
    };
    let entry = Entry { lookup: Some(&looked_up), ..plan.entry(EMBEDDING, &lookup, moments, settings) };
    writer.write("embedding.safetensors", &[entry])?;
    writer.finish()?;
    let tokens = plan.tokens.iter().sum::<f64>();
    Ok(Summary { tokens: tokens as u64, nll: nll / tokens })
}

/// Runs `f` for batches in parallel, results in order.
fn ordered<T: Send>(batches: Range<usize>, f: impl Fn(usize) -> Result<T> + Sync + Send) -> Result<Vec<T>> {
    batches.into_par_iter().map(f).collect()
}

/// Units: the input of a block, and the gradient there, by block and batch.
const INPUT: &str = "input";
const GRADIENT: &str = "gradient";
/// Unit that says that all inputs are there.
const FORWARD: &str = "forward";
/// Unit with the head's sums.
const HEAD: &str = "head";

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

    /// Batches in groups that are computed side by side, each of which takes `bytes` for every batch.
    fn groups(&self, first: usize, bytes: u64) -> impl Iterator<Item = Range<usize>> {
        let (count, width) = (self.plan.batches.len(), side_by_side(self.model.device(), bytes));
        (first..count).step_by(width).map(move |first| first..(first + width).min(count))
    }

    /// Inputs of all blocks, and the last one's output, become units.
    fn forward(&self) -> Result<()> {
        let (config, batches) = (&self.model.config, &self.plan.batches);
        let layers = config.layers;
        self.progress.start("forward", (layers * batches.len()) as u64);
        if self.work.unit(FORWARD).is_some() {
            self.progress.advance((layers * batches.len()) as u64);
            return Ok(());
        }
        let embed = |b: usize, input: Tensor| self.keep(INPUT, 0, b, &input);
        self.model.embed(batches, embed)?;
        for index in 0..layers {
            let block = self.model.block(index)?;
            for group in self.groups(0, config.forward_bytes(self.plan.batch_tokens())) {
                ordered(group, |b| {
                    if !self.work.has_unit(&format!("{INPUT}-{}-{b}", index + 1)) {
                        self.keep(INPUT, index + 1, b, &block.forward(&self.tensor(INPUT, index, b)?)?)?;
                    }
                    self.progress.advance(1);
                    Ok(())
                })?;
            }
        }
        Ok(self.work.keep(FORWARD, &[])?)
    }

    /// Goes through the batches that `phase` has not done, some side by side, each of which takes
    /// `bytes`; `fold` adds their results in order.
    fn phase<T: Send>(
        &self,
        phase: &str,
        shapes: &[([usize; 2], bool)],
        output: Option<SecondMoment>,
        bytes: u64,
        batch: impl Fn(usize) -> Result<T> + Sync,
        fold: impl Fn(&mut Totals, usize, T) -> Result<()>,
    ) -> Result<Totals> {
        let empty = || Totals::new(shapes, self.plan.tokens.len(), self.settings.second_moment, output);
        let mut totals = Totals::resume(self.work, phase, empty);
        self.progress.advance(totals.batches as u64);
        let mut pace = Pace::default();
        for group in self.groups(totals.batches, bytes) {
            for result in ordered(group, &batch)? {
                let b = totals.batches;
                fold(&mut totals, b, result)?;
                totals.batches += 1;
                self.progress.advance(1);
            }
            if totals.batches < self.plan.batches.len() {
                pace.offer(|| totals.keep(self.work, phase))?;
            }
        }
        totals.settle()?;
        Ok(totals)
    }

    /// Keeps gradients below the head; the head's sums by shard, and the text's summed nll.
    fn head(&self) -> Result<Totals> {
        let Self { plan, settings, .. } = self;
        let config = &self.model.config;
        let head = self.model.head()?;
        self.progress.start("head", plan.batches.len() as u64);
        let batch = |b: usize| {
            let rows = plan.first[b]..plan.first[b] + plan.batches[b].len();
            let targets: Vec<&[u32]> = rows.clone().map(|i| plan.windows.targets(i)).collect();
            let output = self.tensor(INPUT, config.layers, b)?;
            let result = head_batch(&head, &output, &targets, rows.start, settings.labels, settings.seed)?;
            self.keep(GRADIENT, config.layers, b, &result.gradient)?;
            Ok(result)
        };
        let bytes = head_bytes(config.vocab, plan.batch_tokens()) + 4 * config.state_bytes(plan.batch_tokens());
        let mut totals =
            self.phase(HEAD, &[([config.vocab, config.hidden], true)], None, bytes, batch, |totals, b, result| {
                totals.sums[0][plan.shard[b]].add(&result.sums);
                if let Some(moments) = &mut totals.moments[0] {
                    moments.add(&result.input, &result.energy)?;
                }
                totals.nll += result.nll;
                Ok(())
            })?;
        // Needed again at the very end, so this one is kept whatever it costs.
        totals.keep(self.work, HEAD)?;
        Ok(totals)
    }

    /// Writes the sums of block `index` and keeps the gradients below it.
    fn block(&self, index: usize, writer: &mut Writer) -> Result<()> {
        let Self { plan, settings, .. } = self;
        let (file, phase) = (format!("block-{index:03}.safetensors"), format!("block-{index}"));
        let names: Vec<String> = Projection::ALL.map(|p| p.weight(index).name()).into();
        if writer.has(&file, &names) {
            self.progress.advance(plan.batches.len() as u64);
            return Ok(());
        }
        let output = match settings.output_moment {
            MomentKind::Diagonal => None,
            kind => Some(SecondMoment { kind, weighting: Weighting::Gradient }),
        };
        let block = self.model.block(index)?;
        let batch = |b: usize| {
            let vjp = block.vjp(&self.tensor(INPUT, index, b)?, &self.tensor(GRADIENT, index + 1, b)?)?;
            self.keep(GRADIENT, index, b, &vjp.input_gradient)?;
            let statistics = |(i, trace): (usize, LinearTrace)| {
                let g2 = trace.gradient.sqr()?;
                let energy = g2.sum_keepdim(1)?;
                let sums = Sums::of(&g2, &trace.input)?;
                let output = match output {
                    Some(_) => Some((trace.gradient, trace.input.sqr()?.sum_keepdim(1)?)),
                    None => None,
                };
                Ok((sums, holds_moment(Projection::ALL[i], settings).then_some((trace.input, energy)), output))
            };
            vjp.linears.into_par_iter().enumerate().map(statistics).collect::<Result<Vec<_>>>()
        };
        let config = &self.model.config;
        let shapes = Projection::ALL.map(|p| (config.linear_shape(p), holds_moment(p, settings)));
        let bytes = config.vjp_bytes(plan.batch_tokens());
        let totals = self.phase(&phase, &shapes, output, bytes, batch, |totals, b, traces| {
            for (i, (sums, kept, output)) in traces.into_iter().enumerate() {
                totals.sums[i][plan.shard[b]].add(&sums);
                if let (Some(moments), Some((input, energy))) = (&mut totals.moments[i], kept) {
                    moments.add(&input, &energy)?;
                }
                if let (Some(moments), Some((gradient, energy))) = (&mut totals.outputs[i], output) {
                    moments.add(&gradient, &energy)?;
                }
            }
            Ok(())
        })?;
        let entry = |i: usize| Entry {
            output: totals.outputs[i].as_ref(),
            ..plan.entry(&names[i], &totals.sums[i], totals.moments[i].as_ref(), settings)
        };
        writer.write(&file, &(0..names.len()).map(entry).collect::<Vec<Entry>>())?;
        self.work.forget(&phase);
        for b in 0..plan.batches.len() {
            self.work.forget(&format!("{INPUT}-{index}-{b}"));
            self.work.forget(&format!("{GRADIENT}-{}-{b}", index + 1));
        }
        Ok(())
    }
}
