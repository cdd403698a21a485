//! Perplexity, KL and top-1 agreement on windows of text.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_model::{Head, Model, ModelConfig, Windows, side_by_side};
use waterfill_store::{ArtifactError, Progress, Work};

use crate::error::Result;
use crate::states::{States, blocks, final_states, write_states};
use crate::statistics::Estimate;

/// Elements of logits held at once for a batch.
const LOGITS: usize = 1 << 23;

/// Bytes that the comparison of a batch holds besides its states: logits of both models, twice.
pub fn comparison_bytes(vocab: usize) -> u64 {
    (LOGITS.max(vocab) * 4 * 4) as u64
}

/// Figures over all positions of the windows; standard errors are over sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextResult {
    /// Sequences evaluated.
    pub sequences: usize,
    /// Inputs of each.
    pub context: usize,
    /// Negative log-likelihood, nats per token.
    pub nll: Estimate,
    /// exp(nll).
    pub perplexity: f64,
    /// KL(original || this model), nats per token; 0 for the original itself.
    pub kl: Estimate,
    /// Share of positions whose most likely token is the original's.
    pub top1: Estimate,
    /// Paired difference of nll from the original's, nats per token.
    pub nll_change: Estimate,
}

/// Figures of every sequence, in order: what two checkpoints are compared by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sequences {
    /// Negative log-likelihood, nats per token.
    pub nll: Vec<f64>,
    /// KL(original || this model), nats per token.
    pub kl: Vec<f64>,
    /// Share of positions whose most likely token is the original's.
    pub top1: Vec<f64>,
}

/// File of an evaluation's [`Sequences`].
pub const SEQUENCES: &str = "sequences.json";

impl Sequences {
    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).expect("plain data");
        std::fs::write(path, text).map_err(|source| ArtifactError::Io { path: path.into(), source }.into())
    }
}

/// Sums over the positions of one sequence.
#[derive(Default, Clone, Copy)]
pub(crate) struct Sums {
    nll: f64,
    original_nll: f64,
    kl: f64,
    agreements: f64,
}

/// The original model, and the artifact in which its evaluation left its final states.
pub type Original<'a> = (&'a Model, &'a Path);

/// Figures at some positions of the sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// The first position, counted from 1: how many tokens the model has read there.
    pub from: usize,
    /// The last position.
    pub to: usize,
    /// Figures there; `context` is their number.
    pub text: TextResult,
}

/// Measures `model` on `windows`, compared with the original; `None` when it is the original, whose final
/// states become files of the artifact then. A block of sequences is a unit of `work`.
///
/// # Errors
/// Models that cannot be run, files that cannot be read or written.
pub fn evaluate_text(
    model: &Model,
    windows: &Windows,
    batch_tokens: usize,
    original: Option<Original>,
    work: &Work,
    progress: &dyn Progress,
) -> Result<TextResult> {
    let asked = TextInputs { name: "", windows, batch_tokens, ends: &[windows.context] };
    let sums = measure(model, &asked, original, work, progress)?;
    let over = |f: fn(&Sums) -> f64| sums.iter().map(|s| f(&s[0]) / windows.context as f64).collect();
    let sequences = Sequences { nll: over(|s| s.nll), kl: over(|s| s.kl), top1: over(|s| s.agreements) };
    sequences.write(&work.path(SEQUENCES))?;
    Ok(figures(&sums, 0, windows.context))
}

/// As [`evaluate_text`], by position: the second half of each sequence, the quarter before it, and so on in
/// `bands` bands, the first of which has what is left.
///
/// # Errors
/// As [`evaluate_text`].
pub fn evaluate_positions(
    model: &Model,
    windows: &Windows,
    bands: usize,
    batch_tokens: usize,
    original: Option<Original>,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Vec<Band>> {
    let mut ends: Vec<usize> = (0..bands).rev().map(|n| windows.context >> n).filter(|&end| end > 0).collect();
    ends.dedup();
    let asked = TextInputs { name: "long-", windows, batch_tokens, ends: &ends };
    let sums = measure(model, &asked, original, work, progress)?;
    let starts = [0].into_iter().chain(ends.iter().copied());
    let band =
        |(n, (from, &to)): (usize, (usize, &usize))| Band { from: from + 1, to, text: figures(&sums, n, to - from) };
    Ok(starts.zip(&ends).enumerate().map(band).collect())
}

/// A text, and the ends of its bands of positions.
struct TextInputs<'a> {
    /// Prefix of the names of units and files.
    name: &'a str,
    windows: &'a Windows,
    batch_tokens: usize,
    /// Where bands of positions end, ascending up to the context.
    ends: &'a [usize],
}

/// Unit of the `n`-th block of sequences.
fn unit(name: &str, n: usize) -> String {
    format!("{name}text-{n}")
}

/// Units of [`evaluate_text`]: one for each block of sequences.
pub fn text_units(config: &ModelConfig, windows: &Windows, batch_tokens: usize) -> Vec<String> {
    let batches = windows.batches(batch_tokens);
    let blocks = blocks(config, &batches, |b| b.len() * windows.context);
    (0..blocks.len()).map(|n| unit("", n)).collect()
}

/// Sums of every sequence for each band.
fn measure(
    model: &Model,
    &TextInputs { name, windows, batch_tokens, ends }: &TextInputs,
    original: Option<Original>,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Sums>>> {
    let batches = windows.batches(batch_tokens);
    progress.start(&format!("{name}text"), (model.config.layers * batches.len()) as u64);
    let (mut sums, mut first): (Vec<Vec<Sums>>, usize) = (Vec::new(), 0);
    for (n, block) in blocks(&model.config, &batches, |b| b.len() * windows.context).into_iter().enumerate() {
        let (unit, file) = (unit(name, n), format!("{name}states-{n:03}.safetensors"));
        let batches = &batches[block];
        let rows: usize = batches.iter().map(Vec::len).sum();
        let part = match work.unit(&unit).and_then(|bytes| parse(&bytes, rows, ends.len())) {
            Some(part) => {
                progress.advance((model.config.layers * batches.len()) as u64);
                part
            }
            None => {
                let states = final_states(model, batches, (work, &format!("{name}text-states")), progress)?;
                // Heads are large, and not needed while blocks are in memory.
                let head = model.head()?;
                let part = match &original {
                    None => {
                        work.file(&file, |path| write_states(&states, path))?;
                        let own = |b: usize| Ok(states[b].clone());
                        compare_block((windows, ends), first, (&head, &own), None, states.len())?
                    }
                    Some((original, dir)) => {
                        let kept = States::open(&dir.join(&file))?;
                        let reference = |b: usize| kept.read(b, model.device());
                        let original = original.head()?;
                        let compressed = Some((&head, states.as_slice()));
                        compare_block((windows, ends), first, (&original, &reference), compressed, states.len())?
                    }
                };
                work.keep(&unit, &part.iter().flatten().copied().flat_map(Sums::to_bytes).collect::<Vec<u8>>())?;
                part
            }
        };
        if original.is_none() {
            work.adopt(&file)?;
        }
        first += rows;
        sums.extend(part);
    }
    Ok(sums)
}

/// Figures of a band of so many positions.
fn figures(sums: &[Vec<Sums>], band: usize, positions: usize) -> TextResult {
    let over =
        |f: fn(&Sums) -> f64| Estimate::of(&sums.iter().map(|s| f(&s[band]) / positions as f64).collect::<Vec<_>>());
    let nll = over(|s| s.nll);
    TextResult {
        sequences: sums.len(),
        context: positions,
        nll,
        perplexity: nll.mean.exp(),
        kl: over(|s| s.kl),
        top1: over(|s| s.agreements),
        nll_change: over(|s| s.nll - s.original_nll),
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.nll += other.nll;
        self.original_nll += other.original_nll;
        self.kl += other.kl;
        self.agreements += other.agreements;
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let values = [self.nll, self.original_nll, self.kl, self.agreements];
        bytes.chunks_exact_mut(8).zip(values).for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes()));
        bytes
    }

    fn parse(b: &[u8]) -> Self {
        let number = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("eight bytes"));
        Self {
            nll: number(&b[..8]),
            original_nll: number(&b[8..16]),
            kl: number(&b[16..24]),
            agreements: number(&b[24..]),
        }
    }
}

/// Sums of every band of every row.
fn parse(bytes: &[u8], rows: usize, bands: usize) -> Option<Vec<Vec<Sums>>> {
    let row = |b: &[u8]| b.chunks_exact(32).map(Sums::parse).collect();
    (bytes.len() == 32 * bands * rows).then(|| bytes.chunks_exact(32 * bands).map(row).collect())
}

/// Sums of every sequence of batches, of a model against the original, from their states behind the last block.
pub(crate) fn comparison(
    windows: &Windows,
    (original, reference): (&Head, &[Tensor]),
    (head, states): (&Head, &[Tensor]),
) -> Result<Vec<Vec<Sums>>> {
    let own = |b: usize| Ok(reference[b].clone());
    compare_block((windows, &[windows.context]), 0, (original, &own), Some((head, states)), states.len())
}

/// KL of every sequence of `positions` tokens, nats per token.
pub(crate) fn sequence_kl(sums: &[Vec<Sums>], positions: usize) -> Vec<f64> {
    sums.iter().map(|bands| bands[0].kl / positions as f64).collect()
}

/// Final states of a batch.
type Batch<'a> = dyn Fn(usize) -> Result<Tensor> + Sync + 'a;

/// Sums of every band of every sequence of a block of `count` batches from batch `first` on.
fn compare_block(
    (windows, ends): (&Windows, &[usize]),
    first: usize,
    original: (&Head, &Batch),
    compressed: Option<(&Head, &[Tensor])>,
    count: usize,
) -> Result<Vec<Vec<Sums>>> {
    let load = |b: usize| -> Result<Vec<(Tensor, Option<Tensor>)>> {
        let reference = original.0.normalise(&original.1(b)?)?;
        let other = compressed.map(|(head, states)| head.normalise(&states[b])).transpose()?;
        let row = |n: usize| Ok((reference.get(n)?, other.as_ref().map(|t| t.get(n)).transpose()?));
        (0..reference.dim(0)?).map(row).collect()
    };
    let (mut all, width) = (Vec::new(), side_by_side(original.0.device(), comparison_bytes(original.0.vocab()?)));
    // Batches side by side; the sequence that a batch begins with follows from those before it.
    let batches: Vec<usize> = (0..count).collect();
    let mut sequence = first;
    for group in batches.chunks(width) {
        let rows = group.iter().map(|&b| load(b)).collect::<Result<Vec<_>>>()?;
        let starts: Vec<usize> = rows
            .iter()
            .map(|r| {
                sequence += r.len();
                sequence - r.len()
            })
            .collect();
        let batch = |(rows, start): (&Vec<(Tensor, Option<Tensor>)>, &usize)| {
            let row = |(i, (reference, other)): (usize, &(Tensor, Option<Tensor>))| {
                let compressed = compressed.map(|t| t.0).zip(other.as_ref());
                compare((windows.targets(start + i), ends), (original.0, reference), compressed)
            };
            rows.iter().enumerate().map(row).collect::<Result<Vec<Vec<Sums>>>>()
        };
        let sums = rows.par_iter().zip(&starts).map(batch).collect::<Result<Vec<_>>>()?;
        all.extend(sums.into_iter().flatten());
    }
    Ok(all)
}

/// Sums of every band of a sequence.
fn compare(
    (targets, ends): (&[u32], &[usize]),
    original: (&Head, &Tensor),
    compressed: Option<(&Head, &Tensor)>,
) -> Result<Vec<Sums>> {
    let vocab = original.0.vocab()?;
    let chunk = (LOGITS / vocab).max(1);
    let mut sums = vec![Sums::default(); ends.len()];
    for start in (0..targets.len()).step_by(chunk) {
        let count = chunk.min(targets.len() - start);
        let logits = |(head, states): (&Head, &Tensor)| -> Result<Vec<f32>> {
            let logits = head.logits(&states.narrow(0, start, count)?)?;
            Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
        };
        let reference = logits(original)?;
        let other = compressed.map(logits).transpose()?;
        let position = |(i, &target): (usize, &u32)| {
            let row = i * vocab..(i + 1) * vocab;
            let mut sums = Sums::default();
            let other = other.as_ref().map(|o| &o[row.clone()]);
            add_position(&mut sums, target as usize, &reference[row], other);
            sums
        };
        let positions: Vec<Sums> = targets[start..start + count].par_iter().enumerate().map(position).collect();
        for (i, position) in positions.iter().enumerate() {
            sums[ends.partition_point(|&end| end <= start + i)].add(position);
        }
    }
    Ok(sums)
}

/// Log of the sum of exponentials, and the largest entry with its index.
pub(crate) fn log_sum_exp(logits: &[f32]) -> (f64, usize) {
    let (mut largest, mut at) = (f32::NEG_INFINITY, 0);
    for (i, &l) in logits.iter().enumerate() {
        if l > largest {
            (largest, at) = (l, i);
        }
    }
    let sum: f64 = logits.iter().map(|&l| f64::from((l - largest).exp())).sum();
    (sum.ln() + f64::from(largest), at)
}

fn add_position(sums: &mut Sums, target: usize, reference: &[f32], other: Option<&[f32]>) {
    let (norm, best) = log_sum_exp(reference);
    let original = norm - f64::from(reference[target]);
    sums.original_nll += original;
    let Some(other) = other else {
        sums.nll += original;
        sums.agreements += 1.0;
        return;
    };
    let (other_norm, other_best) = log_sum_exp(other);
    sums.nll += other_norm - f64::from(other[target]);
    sums.agreements += f64::from(u8::from(best == other_best));
    let mut kl = 0.0;
    for (&r, &o) in reference.iter().zip(other) {
        let log_p = f64::from(r) - norm;
        kl += f64::from((log_p as f32).exp()) * (log_p - (f64::from(o) - other_norm));
    }
    sums.kl += kl;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_and_nll_equal_their_definitions() {
        let (p, q) = ([1.0f32, 0.0, -1.0, 2.0], [0.5f32, 0.3, -0.2, 1.0]);
        let softmax = |l: &[f32; 4]| {
            let sum: f64 = l.iter().map(|&x| f64::from(x).exp()).sum();
            l.map(|x| f64::from(x).exp() / sum)
        };
        let (sp, sq) = (softmax(&p), softmax(&q));
        let kl: f64 = sp.iter().zip(&sq).map(|(a, b)| a * (a / b).ln()).sum();
        let mut sums = Sums::default();
        add_position(&mut sums, 1, &p, Some(&q));
        assert!((sums.kl - kl).abs() < 1e-7, "{} {kl}", sums.kl);
        assert!((sums.nll + sq[1].ln()).abs() < 1e-6);
        assert!((sums.original_nll + sp[1].ln()).abs() < 1e-6);
        assert_eq!(sums.agreements, 1.0);
    }
}
