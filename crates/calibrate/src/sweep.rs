//! One pass forward and one back through the blocks, one block in memory at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use waterfill_model::{EMBEDDING, LinearTrace, Model, Projection, Windows, lm_head_name, pack, side_by_side, unpack};
use waterfill_store::{Pace, Progress, Work};

use crate::error::{CalibrateError, Result};
use crate::head::{head_batch, head_bytes};
use crate::lookup::add_lookup;
use crate::plan::{Plan, holds_hessian};
use crate::settings::{CalibrateSettings, CalibrateSummary, HessianKind, HessianSettings, HessianWeighting};
use crate::statistics::Sums;
use crate::store::{Entry, Sensitivities, Writer};
use crate::totals::Totals;

/// Computes sensitivities of all weights; `work` gets one file a block, and an index. Hessians also take the inputs of
/// `further` windows, which are read forward only.
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
    further: &Windows,
    settings: &CalibrateSettings,
    work: &Work,
    progress: &dyn Progress,
) -> Result<CalibrateSummary> {
    let plan = &Plan::new(windows, further, settings)?;
    let pass = Pass { model, plan, settings, work, progress };
    let layers = model.config.layers;
    let mut writer = Writer { work, files: BTreeMap::new() };
    pass.forward()?;
    let Totals { nll, mut sums, hessians, .. } = pass.head()?;
    if !model.config.tied {
        let name = lm_head_name(&model.config);
        writer.write("head.safetensors", &[plan.entry(name, &sums[0], hessians[0].as_ref(), settings)])?;
    }
    progress.start("backward", (layers * plan.batches.len()) as u64);
    for index in (0..layers).rev() {
        pass.block(index, &mut writer)?;
    }
    // Lookup and projection share the matrix when tied; their information adds.
    let mut lookup = vec![Sums::zeros(model.config.vocab, model.config.hidden); plan.tokens.len()];
    for (b, ids) in plan.batches.iter().enumerate() {
        add_lookup(&mut lookup[plan.fold[b]], ids, &pass.tensor(GRADIENT, 0, b)?)?;
    }
    // Errors of a lookup do not add up over columns as those of a projection do, so its share is kept apart.
    let looked_up = lookup.iter().skip(1).fold(lookup[0].row_fisher.clone(), |sum, s| sum + &s.row_fisher);
    let hessian = match model.config.tied {
        true => {
            lookup.iter_mut().zip(&mut sums[0]).for_each(|(lookup, head)| lookup.add(head));
            hessians[0].as_ref()
        }
        false => None,
    };
    let entry = Entry { lookup: Some(&looked_up), ..plan.entry(EMBEDDING, &lookup, hessian, settings) };
    writer.write("embedding.safetensors", &[entry])?;
    writer.finish()?;
    let tokens = plan.tokens.iter().sum::<f64>();
    let written = Sensitivities::open(work.out())?;
    let (hessians, gradient_covariances) = (written.hessian_shrinkage()?, written.gradient_shrinkage()?);
    Ok(CalibrateSummary { tokens: tokens as u64, nll: nll / tokens, hessians, gradient_covariances })
}

/// File and unit with the sensitivities of a block.
pub fn block_file(index: usize) -> String {
    format!("block-{index:03}.safetensors")
}

/// Runs `f` for batches in parallel, results in order.
pub(crate) fn ordered<T: Send>(batches: Range<usize>, f: impl Fn(usize) -> Result<T> + Sync + Send) -> Result<Vec<T>> {
    batches.into_par_iter().map(f).collect()
}

/// Units: the input of a block, and the gradient there, by block and batch.
pub(crate) const INPUT: &str = "input";
const GRADIENT: &str = "gradient";
/// Unit with the head's sums.
const HEAD: &str = "head";

/// Inputs of every step of the pass.
pub(crate) struct Pass<'a> {
    pub model: &'a Model,
    pub plan: &'a Plan<'a>,
    pub settings: &'a CalibrateSettings,
    pub work: &'a Work,
    pub progress: &'a dyn Progress,
}

impl Pass<'_> {
    pub fn keep(&self, kind: &str, block: usize, batch: usize, t: &Tensor) -> Result<()> {
        Ok(self.work.keep(&format!("{kind}-{block}-{batch}"), &pack(t)?)?)
    }

    pub fn tensor(&self, kind: &str, block: usize, batch: usize) -> Result<Tensor> {
        let name = format!("{kind}-{block}-{batch}");
        let unit = self.work.unit(&name).and_then(|bytes| unpack(&bytes, self.model.device()));
        unit.ok_or_else(|| self.damaged(&name))
    }

    /// A unit that cannot be used.
    pub fn damaged(&self, name: &str) -> CalibrateError {
        CalibrateError::File {
            path: self.work.out().with_file_name("units").join(name),
            reason: "is missing or damaged; remove this directory and start again".into(),
        }
    }

    /// Batches from `first` to `count` in groups that are computed side by side, each of which takes `bytes` for every batch.
    pub fn groups(&self, first: usize, count: usize, bytes: u64) -> impl Iterator<Item = Range<usize>> {
        let width = side_by_side(self.model.device(), bytes);
        (first..count).step_by(width).map(move |first| first..(first + width).min(count))
    }

    /// Goes through the batches that `phase` has not done, some side by side, each of which takes
    /// `bytes`; `fold` adds their results in order.
    fn phase<T: Send>(
        &self,
        phase: &str,
        shapes: &[([usize; 2], bool)],
        covariance: Option<HessianSettings>,
        bytes: u64,
        batch: impl Fn(usize) -> Result<T> + Sync,
        fold: impl Fn(&mut Totals, usize, T) -> Result<()>,
    ) -> Result<Totals> {
        let empty = || Totals::new(shapes, self.plan.tokens.len(), self.settings.hessian, covariance);
        let mut totals = Totals::resume(self.work, phase, empty);
        self.progress.advance(totals.batches as u64);
        let mut pace = Pace::default();
        for group in self.groups(totals.batches, self.plan.batches.len(), bytes) {
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

    /// Keeps gradients below the head; the head's sums by fold, and the text's summed nll.
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
                totals.sums[0][plan.fold[b]].add(&result.sums);
                if let Some(hessian) = &mut totals.hessians[0] {
                    hessian.add(plan.part[b], &result.input, &result.energy, plan.windows.context)?;
                }
                totals.nll += result.nll;
                Ok(())
            })?;
        // Needed again at the very end, so this one is kept whatever it costs.
        totals.keep(self.work, HEAD)?;
        if let (Some(hessian), Some(further)) = (&mut totals.hessians[0], self.further_sums(config.layers)?.head()) {
            further.add_to(hessian)?;
        }
        Ok(totals)
    }

    /// Writes the sums of block `index` and keeps the gradients below it.
    fn block(&self, index: usize, writer: &mut Writer) -> Result<()> {
        let Self { plan, settings, .. } = self;
        let (file, phase) = (block_file(index), format!("block-{index}"));
        let names: Vec<String> = Projection::ALL.map(|p| p.weight(index).name()).into();
        if writer.has(&file, &names) {
            self.progress.advance(plan.batches.len() as u64);
            return Ok(());
        }
        let covariance = match settings.gradient_covariance {
            HessianKind::Diagonal => None,
            kind => {
                Some(HessianSettings { kind, weighting: HessianWeighting::Gradient, block: settings.hessian.block })
            }
        };
        let block = self.model.block(index)?;
        let batch = |b: usize| {
            let vjp = block.vjp(&self.tensor(INPUT, index, b)?, &self.tensor(GRADIENT, index + 1, b)?)?;
            self.keep(GRADIENT, index, b, &vjp.input_gradient)?;
            let statistics = |(i, trace): (usize, LinearTrace)| {
                let g2 = trace.gradient.sqr()?;
                let energy = g2.sum_keepdim(1)?;
                let sums = Sums::of(&g2, &trace.input)?;
                let output = match covariance {
                    Some(_) => Some((trace.gradient, trace.input.sqr()?.sum_keepdim(1)?)),
                    None => None,
                };
                Ok((sums, holds_hessian(Projection::ALL[i], settings).then_some((trace.input, energy)), output))
            };
            vjp.linears.into_par_iter().enumerate().map(statistics).collect::<Result<Vec<_>>>()
        };
        let config = &self.model.config;
        let shapes = Projection::ALL.map(|p| (config.linear_shape(p), holds_hessian(p, settings)));
        let bytes = config.vjp_bytes(plan.batch_tokens());
        let mut totals = self.phase(&phase, &shapes, covariance, bytes, batch, |totals, b, traces| {
            for (i, (sums, kept, output)) in traces.into_iter().enumerate() {
                totals.sums[i][plan.fold[b]].add(&sums);
                if let (Some(hessian), Some((input, energy))) = (&mut totals.hessians[i], kept) {
                    hessian.add(plan.part[b], &input, &energy, plan.windows.context)?;
                }
                if let (Some(covariance), Some((gradient, energy))) = (&mut totals.covariances[i], output) {
                    covariance.add(plan.part[b], &gradient, &energy, plan.windows.context)?;
                }
            }
            Ok(())
        })?;
        let further = self.further_sums(index)?;
        for (projection, hessian) in Projection::ALL.into_iter().zip(&mut totals.hessians) {
            if let (Some(hessian), Some(further)) = (hessian, further.of(projection)) {
                further.add_to(hessian)?;
            }
        }
        let entry = |i: usize| Entry {
            gradient_covariance: totals.covariances[i].as_ref(),
            ..plan.entry(&names[i], &totals.sums[i], totals.hessians[i].as_ref(), settings)
        };
        writer.write(&file, &(0..names.len()).map(entry).collect::<Vec<Entry>>())?;
        self.work.forget(&phase);
        self.forget_further(index);
        for b in 0..plan.batches.len() {
            self.work.forget(&format!("{INPUT}-{index}-{b}"));
            self.work.forget(&format!("{GRADIENT}-{}-{b}", index + 1));
        }
        Ok(())
    }
}
