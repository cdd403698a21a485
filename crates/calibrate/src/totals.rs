//! Sums over the first batches of a phase, which survive the process.

use waterfill_store::Work;

use crate::error::Result;
use crate::moments::Moments;
use crate::statistics::{SecondMoment, Sums};

/// Sums for several weights.
pub(crate) struct Totals {
    /// Batches that are in.
    pub batches: usize,
    /// Summed negative log-likelihood, nats.
    pub nll: f64,
    /// By weight and shard.
    pub sums: Vec<Vec<Sums>>,
    /// By weight, where it holds one.
    pub moments: Vec<Option<Moments>>,
    /// Second moments of output gradients, by weight, where it holds one.
    pub outputs: Vec<Option<Moments>>,
}

impl Totals {
    /// Zeros for weights of these shapes `[rows, cols]`, with second moments where asked for; `output` is
    /// what is kept of their output gradients'.
    pub fn new(
        shapes: &[([usize; 2], bool)],
        shards: usize,
        moment: SecondMoment,
        output: Option<SecondMoment>,
    ) -> Self {
        let sums = shapes.iter().map(|([rows, cols], _)| vec![Sums::zeros(*rows, *cols); shards]);
        let moments = shapes.iter().map(|([_, cols], holds)| holds.then(|| Moments::new(*cols, moment)).flatten());
        let outputs = shapes.iter().map(|([rows, _], _)| output.and_then(|kept| Moments::new(*rows, kept)));
        Self { batches: 0, nll: 0.0, sums: sums.collect(), moments: moments.collect(), outputs: outputs.collect() }
    }

    /// Fetches what is on an accelerator.
    pub fn settle(&mut self) -> Result<()> {
        Ok(self.moments.iter_mut().chain(&mut self.outputs).flatten().try_for_each(Moments::settle)?)
    }

    /// Keeps them as a unit.
    pub fn keep(&mut self, work: &Work, unit: &str) -> Result<()> {
        self.settle()?;
        let write = |sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
            sink(&(self.batches as u64).to_le_bytes())?;
            sink(&self.nll.to_le_bytes())?;
            self.sums.iter().flatten().try_for_each(|s| s.write(sink))?;
            self.moments.iter().chain(&self.outputs).flatten().try_for_each(|m| m.write(sink))
        };
        Ok(work.keep_parts(unit, write)?)
    }

    /// What [`Totals::keep`] left, or `fresh` totals where that is nothing usable.
    pub fn resume(work: &Work, unit: &str, fresh: impl Fn() -> Self) -> Self {
        work.unit(unit).and_then(|bytes| fresh().parse(&bytes)).unwrap_or_else(fresh)
    }

    fn parse(mut self, bytes: &[u8]) -> Option<Self> {
        let (batches, rest) = bytes.split_first_chunk::<8>()?;
        let (nll, mut rest) = rest.split_first_chunk::<8>()?;
        (self.batches, self.nll) = (u64::from_le_bytes(*batches) as usize, f64::from_le_bytes(*nll));
        self.sums.iter_mut().flatten().try_for_each(|s| s.read(&mut rest))?;
        self.moments.iter_mut().chain(&mut self.outputs).flatten().try_for_each(|m| m.read(&mut rest))?;
        rest.is_empty().then_some(self)
    }
}
