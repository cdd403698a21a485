//! Tokens that are read forward only: their inputs count in Hessians as tokens whose gradient is not known.

use candle_core::{DType, Device, Tensor};

use crate::hessian::HessianSums;
use crate::settings::{HessianSettings, HessianWeighting};

/// Sums over the inputs of one linear layer.
pub(crate) struct FurtherSums {
    /// Tokens that are not the first of their sequence, all alike.
    others: HessianSums,
    /// Part and input of first tokens.
    firsts: Vec<(usize, Vec<f32>)>,
    width: usize,
}

impl FurtherSums {
    /// Nothing yet, for inputs of `width`; `None` where Hessians are diagonal.
    pub fn new(width: usize, settings: HessianSettings) -> Option<Self> {
        let settings = HessianSettings { weighting: HessianWeighting::Gradient, ..settings };
        Some(Self { others: HessianSums::new(width, settings)?, firsts: Vec::new(), width })
    }

    /// Adds inputs `[tokens, width]` of sequences of `context` tokens in `part` of the text.
    pub fn add(&mut self, part: usize, input: &Tensor, context: usize) -> candle_core::Result<()> {
        let tokens = input.dim(0)?;
        let alike: Vec<f32> = (0..tokens).map(|t| if t % context == 0 { 0.0 } else { 1.0 }).collect();
        let alike = Tensor::from_vec(alike, (tokens, 1), input.device())?.to_dtype(input.dtype())?;
        self.others.add(part, input, &alike, context)?;
        for t in (0..tokens).step_by(context) {
            let first = input.narrow(0, t, 1)?.flatten_all()?.to_dtype(DType::F32)?;
            self.firsts.push((part, first.to_vec1()?));
        }
        Ok(())
    }

    /// Adds all of it to the sums of a layer, each token with the mean weight of those of its kind there.
    pub fn add_to(&self, sums: &mut HessianSums) -> candle_core::Result<()> {
        let [first, other] = match sums.weighting() {
            HessianWeighting::Plain => [1.0; 2],
            HessianWeighting::Gradient => sums.weights().means(),
        };
        sums.add_scaled(&self.others, other)?;
        for (part, input) in &self.firsts {
            let input = Tensor::from_slice(input, (1, input.len()), &Device::Cpu)?;
            sums.add_weighted(*part, &(input * first.sqrt())?, (first, first * first), false)?;
        }
        Ok(())
    }

    /// Fetches sums that are on an accelerator.
    pub fn settle(&mut self) -> candle_core::Result<()> {
        self.others.settle()
    }

    /// Hands over all sums as bytes, for a state.
    pub fn write(&self, sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        self.others.write(sink)?;
        sink(&(self.firsts.len() as u64).to_le_bytes())?;
        for (part, input) in &self.firsts {
            sink(&(*part as u64).to_le_bytes())?;
            sink(&input.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        Ok(())
    }

    /// Reads what [`FurtherSums::write`] wrote into sums of the same shape; `None` where bytes end early.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Option<()> {
        self.others.read(bytes)?;
        let (count, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        for _ in 0..u64::from_le_bytes(*count) {
            let (part, rest) = bytes.split_first_chunk::<8>()?;
            let (values, rest) = rest.split_at_checked(4 * self.width)?;
            let values = values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
            self.firsts.push((u64::from_le_bytes(*part) as usize, values.collect()));
            *bytes = rest;
        }
        Some(())
    }
}
