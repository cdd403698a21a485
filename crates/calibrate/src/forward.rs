//! The pass forward: inputs of all blocks become units, and Hessians of further text are summed on the way.

use candle_core::Tensor;
use rayon::prelude::*;
use waterfill_model::{Block, Projection};

use crate::error::Result;
use crate::further::FurtherSums;
use crate::sweep::{INPUT, Pass, ordered};

/// Unit that says that all inputs are there.
const FORWARD: &str = "forward";
/// Units: the state of a batch of further text before a block, and sums of inputs of a block's layers.
const STATE: &str = "further";
const SUMS: &str = "further-hessians";

/// The layers of a block whose inputs differ.
const READERS: [Projection; 4] = [Projection::Query, Projection::Output, Projection::Gate, Projection::Down];

impl Pass<'_> {
    /// Inputs of all blocks, and the last one's output, become units.
    pub fn forward(&self) -> Result<()> {
        let (config, batches) = (&self.model.config, &self.plan.batches);
        let layers = config.layers;
        self.progress.start("forward", (layers * (batches.len() + self.plan.further.len())) as u64);
        if self.work.unit(FORWARD).is_some() {
            self.progress.advance((layers * (batches.len() + self.plan.further.len())) as u64);
            return Ok(());
        }
        self.model.embed(batches, |b, input| self.keep(INPUT, 0, b, &input))?;
        if !self.work.has_unit(&format!("{SUMS}-0")) {
            self.model.embed(&self.plan.further, |b, input| self.keep(STATE, 0, b, &input))?;
        }
        for index in 0..layers {
            let block = self.model.block(index)?;
            for group in self.groups(0, batches.len(), config.forward_bytes(self.plan.batch_tokens())) {
                ordered(group, |b| {
                    if !self.work.has_unit(&format!("{INPUT}-{}-{b}", index + 1)) {
                        self.keep(INPUT, index + 1, b, &block.forward(&self.tensor(INPUT, index, b)?)?)?;
                    }
                    self.progress.advance(1);
                    Ok(())
                })?;
            }
            self.further(index, &block)?;
        }
        if !self.plan.further.is_empty() && !self.work.has_unit(&format!("{SUMS}-{layers}")) {
            self.further_head()?;
        }
        Ok(self.work.keep(FORWARD, &[])?)
    }

    /// Sums of the further text's inputs of the layers of block `index`, which become a unit, and its states behind it.
    fn further(&self, index: usize, block: &Block) -> Result<()> {
        let count = self.plan.further.len();
        if count == 0 || self.work.has_unit(&format!("{SUMS}-{index}")) {
            self.progress.advance(count as u64);
            return Ok(());
        }
        let mut sums = self.no_sums(index);
        let config = &self.model.config;
        let bytes = config.vjp_bytes(self.plan.further_tokens());
        for group in self.groups(0, count, bytes) {
            let first = group.start;
            let inputs = ordered(group, |b| {
                let (output, inputs) = block.forward_traced(&self.tensor(STATE, index, b)?)?;
                self.keep(STATE, index + 1, b, &output)?;
                self.progress.advance(1);
                Ok(inputs)
            })?;
            sums.par_iter_mut().zip(READERS).try_for_each(|(sums, reader)| -> Result<()> {
                let Some(sums) = sums else { return Ok(()) };
                for (n, inputs) in inputs.iter().enumerate() {
                    sums.add(self.plan.further_part[first + n], &inputs[reader as usize], self.plan.windows.context)?;
                }
                Ok(())
            })?;
        }
        self.keep_sums(index, &mut sums)?;
        (0..count).for_each(|b| self.work.forget(&format!("{STATE}-{index}-{b}")));
        Ok(())
    }

    /// The same of the head's input.
    fn further_head(&self) -> Result<()> {
        let (layers, count) = (self.model.config.layers, self.plan.further.len());
        let head = self.model.head()?;
        let mut sums = self.no_sums(layers);
        for b in 0..count {
            let input: Tensor = head.normalise(&self.tensor(STATE, layers, b)?)?.flatten_to(1)?;
            if let Some(sums) = &mut sums[0] {
                sums.add(self.plan.further_part[b], &input, self.plan.windows.context)?;
            }
        }
        self.keep_sums(layers, &mut sums)?;
        (0..count).for_each(|b| self.work.forget(&format!("{STATE}-{layers}-{b}")));
        Ok(())
    }

    /// Empty sums of each layer of a block whose input differs, or of the head behind the last block.
    fn no_sums(&self, index: usize) -> Vec<Option<FurtherSums>> {
        let config = &self.model.config;
        let widths: Vec<usize> = match index < config.layers {
            true => READERS.map(|reader| config.linear_shape(reader)[1]).into(),
            false => vec![config.hidden],
        };
        widths.into_iter().map(|width| FurtherSums::new(width, self.settings.hessian)).collect()
    }

    fn keep_sums(&self, index: usize, sums: &mut [Option<FurtherSums>]) -> Result<()> {
        sums.iter_mut().flatten().try_for_each(FurtherSums::settle)?;
        let write = |sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
            sums.iter().flatten().try_for_each(|sums| sums.write(sink))
        };
        Ok(self.work.keep_parts(&format!("{SUMS}-{index}"), write)?)
    }

    /// The further text's sums for the layers of block `index`, in the order of [`Projection::ALL`], or of the head behind
    /// the last block; empty where there is no further text.
    pub fn further_sums(&self, index: usize) -> Result<FurtherInputs> {
        if self.plan.further.is_empty() {
            return Ok(FurtherInputs(Vec::new()));
        }
        let name = format!("{SUMS}-{index}");
        let mut sums = self.no_sums(index);
        let bytes = self.work.unit(&name);
        let read = bytes.and_then(|bytes| {
            let mut rest = bytes.as_slice();
            sums.iter_mut().flatten().try_for_each(|sums| sums.read(&mut rest))?;
            rest.is_empty().then_some(())
        });
        read.map(|()| FurtherInputs(sums)).ok_or_else(|| self.damaged(&name))
    }

    /// Drops them.
    pub fn forget_further(&self, index: usize) {
        self.work.forget(&format!("{SUMS}-{index}"));
    }
}

/// Sums of the further text by input.
pub(crate) struct FurtherInputs(Vec<Option<FurtherSums>>);

impl FurtherInputs {
    /// Those of a layer's input.
    pub fn of(&self, projection: Projection) -> Option<&FurtherSums> {
        let reader = READERS.iter().position(|reader| *reader == projection.first_of_input())?;
        self.0.get(reader)?.as_ref()
    }

    /// Those of the head's input.
    pub fn head(&self) -> Option<&FurtherSums> {
        self.0.first()?.as_ref()
    }
}
