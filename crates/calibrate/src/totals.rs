//! Sums over the first batches of a phase, which survive the process.

use waterfill_store::Work;

use crate::error::Result;
use crate::hessian::HessianSums;
use crate::settings::HessianSettings;
use crate::statistics::Sums;

/// Sums for several weights.
pub(crate) struct Totals {
    /// Batches that are in.
    pub batches: usize,
    /// Summed negative log-likelihood, nats.
    pub nll: f64,
    /// By weight and fold.
    pub sums: Vec<Vec<Sums>>,
    /// Input Hessians by weight, where it holds one.
    pub hessians: Vec<Option<HessianSums>>,
    /// Output-gradient covariances by weight, where it holds one.
    pub covariances: Vec<Option<HessianSums>>,
}

impl Totals {
    /// Zeros for weights of these shapes `[rows, cols]`, with Hessians where asked for.
    pub fn new(
        shapes: &[([usize; 2], bool)],
        folds: usize,
        hessian: HessianSettings,
        covariance: Option<HessianSettings>,
    ) -> Self {
        let sums = shapes.iter().map(|([rows, cols], _)| vec![Sums::zeros(*rows, *cols); folds]);
        let hessians =
            shapes.iter().map(|([_, cols], holds)| holds.then(|| HessianSums::new(*cols, hessian)).flatten());
        let covariances = shapes.iter().map(|([rows, _], _)| covariance.and_then(|kept| HessianSums::new(*rows, kept)));
        Self {
            batches: 0,
            nll: 0.0,
            sums: sums.collect(),
            hessians: hessians.collect(),
            covariances: covariances.collect(),
        }
    }

    /// Fetches what is on an accelerator.
    pub fn settle(&mut self) -> Result<()> {
        Ok(self.hessians.iter_mut().chain(&mut self.covariances).flatten().try_for_each(HessianSums::settle)?)
    }

    /// Keeps them as a unit.
    pub fn keep(&mut self, work: &Work, unit: &str) -> Result<()> {
        self.settle()?;
        let write = |sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
            sink(&(self.batches as u64).to_le_bytes())?;
            sink(&self.nll.to_le_bytes())?;
            self.sums.iter().flatten().try_for_each(|s| s.write(sink))?;
            self.hessians.iter().chain(&self.covariances).flatten().try_for_each(|m| m.write(sink))
        };
        Ok(work.keep_parts(unit, write)?)
    }

    /// Totals that [`Totals::keep`] left, or `fresh` ones where those are not usable.
    pub fn resume(work: &Work, unit: &str, fresh: impl Fn() -> Self) -> Self {
        work.unit(unit).and_then(|bytes| fresh().parse(&bytes)).unwrap_or_else(fresh)
    }

    fn parse(mut self, bytes: &[u8]) -> Option<Self> {
        let (batches, rest) = bytes.split_first_chunk::<8>()?;
        let (nll, mut rest) = rest.split_first_chunk::<8>()?;
        (self.batches, self.nll) = (u64::from_le_bytes(*batches) as usize, f64::from_le_bytes(*nll));
        self.sums.iter_mut().flatten().try_for_each(|s| s.read(&mut rest))?;
        self.hessians.iter_mut().chain(&mut self.covariances).flatten().try_for_each(|m| m.read(&mut rest))?;
        rest.is_empty().then_some(self)
    }
}
