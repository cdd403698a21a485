//! What errors of the weights lose, measured on text: the original and variants of it go through the blocks together.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_model::roles::EMBEDDING;
use waterfill_model::{Model, ModelError, Projection, Windows, lm_head_name, side_by_side};
use waterfill_store::{Pace, Progress, Work, in_groups};

use crate::error::EvaluateError;
use crate::states;
use crate::text::{comparison, sequence_kl};

/// The model with errors added to some of its matrices.
pub struct Variant {
    /// Level of its errors.
    pub level: usize,
    /// Matrices that have errors; all if absent.
    pub names: Option<BTreeSet<String>>,
    /// Sequences that it is measured on, from the first; at least one batch.
    pub sequences: usize,
}

impl Variant {
    fn has(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }
}

/// Errors of a matrix at one level, row by row, and the loss predicted for them, nats per token.
pub type Errors = (Vec<f32>, f64);

/// What was measured, and what was predicted.
pub struct Probed {
    /// KL(original || variant) of each variant by sequence, nats per token.
    pub kl: Vec<Vec<f64>>,
    /// Predicted loss of each matrix' errors by level.
    pub predicted: BTreeMap<String, Vec<f64>>,
    /// Behind each block, squared deviation of each variant's states from the original's, over the batches that all have.
    pub deviations: Vec<Vec<f64>>,
}

/// Text on which variants are measured.
pub struct ProbeText<'a> {
    /// Sequences.
    pub windows: &'a Windows,
    /// Tokens of a batch.
    pub batch_tokens: usize,
    /// Bytes that making the errors of matrices may take side by side; one that takes more is alone.
    pub memory: u64,
    /// Bytes that making the errors of a matrix of so many rows and columns takes.
    pub matrix_bytes: fn(u64, u64) -> u64,
}

/// Most bytes that errors of an embedding may take until they are those of the head too.
const TIED: usize = 1 << 29;

/// Unit with the states between blocks, and the one with predicted losses.
const STATES: &str = "probe-states";
const PREDICTED: &str = "predicted.json";

/// Measures variants of `model`, whose matrices get their errors from `errors` once each. States between blocks are kept
/// where that is cheap, so that an interrupted probe goes on.
///
/// # Errors
/// Models that cannot be run, files that cannot be read or written, and those of `errors`.
pub fn probe_text<E: From<EvaluateError> + Send>(
    model: &mut Model,
    text: &ProbeText,
    variants: &[Variant],
    errors: impl Fn(&str) -> Result<Vec<Errors>, E> + Sync,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Probed, E> {
    let batches = text.windows.batches(text.batch_tokens);
    let mut pass = Pass { model, variants, known: Known::default(), tied: None };
    // Of the original first.
    let counts: Vec<usize> =
        [batches.len()].into_iter().chain(variants.iter().map(|v| covering(&batches, v.sequences))).collect();
    let layers = pass.model.config.layers;
    progress.start("probe", (layers * counts.len()) as u64);
    let total = counts.iter().sum();
    let kept = work.unit(STATES).and_then(|bytes| states::parse(&bytes, total, pass.model.device()));
    let known = work.unit(PREDICTED).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let (first, mut all) = match kept.zip(known) {
        Some(((first, flat), known)) => {
            pass.known = known;
            // These are kept first.
            pass.known.deviations.truncate(first);
            let mut flat = flat.into_iter();
            (first, counts.iter().map(|&count| flat.by_ref().take(count).collect()).collect())
        }
        None => (0, pass.embedded(&batches, &counts, &errors)?),
    };
    progress.advance((first * counts.len()) as u64);
    let mut pace = Pace::default();
    for index in first..layers {
        let names = Projection::ALL.map(|projection| projection.weight(index).name());
        let shape = |projection| pass.model.config.linear_shape(projection).map(|n| n as u64);
        let sizes = Projection::ALL.map(shape).map(|[rows, cols]| (text.matrix_bytes)(rows, cols));
        let found = in_groups(&sizes, text.memory, |n| Ok::<_, E>((names[n].clone(), errors(&names[n])?)))?;
        let own: Vec<_> = found.into_iter().map(|(name, errors)| pass.note(name, errors)).collect();
        let largest = batches.iter().map(|b| b.len() * text.windows.context).max().unwrap_or(0);
        let width = side_by_side(pass.model.device(), pass.model.config.forward_bytes(largest));
        for (n, states) in all.iter_mut().enumerate() {
            let block = pass.with(n.checked_sub(1), &own, |model| model.block(index).map_err(EvaluateError::from))?;
            for group in states.chunks_mut(width) {
                let forward = |x: &mut Tensor| -> Result<(), EvaluateError> {
                    *x = block.forward(x)?;
                    Ok(())
                };
                group.par_iter_mut().try_for_each(forward)?;
            }
            progress.advance(1);
        }
        pass.known.deviations.push(deviations(&all)?);
        pace.offer(|| -> Result<(), EvaluateError> {
            let known = serde_json::to_vec(&pass.known).expect("plain data");
            work.keep(PREDICTED, &known)?;
            let flat: Vec<Tensor> = all.iter().flatten().cloned().collect();
            states::keep(work, STATES, index + 1, &flat)
        })?;
    }
    let kl = pass.compare(text.windows, &all, &errors)?;
    Ok(Probed { kl, predicted: pass.known.predicted, deviations: pass.known.deviations })
}

/// Batches that hold so many sequences.
fn covering(batches: &[Vec<&[u32]>], sequences: usize) -> usize {
    let mut left = sequences;
    let more = batches.iter().take_while(|batch| {
        let wanted = left > 0;
        left = left.saturating_sub(batch.len());
        wanted
    });
    more.count().max(1)
}

/// Squared deviation of each variant from the original.
fn deviations(states: &[Vec<Tensor>]) -> Result<Vec<f64>, EvaluateError> {
    let count = states.iter().map(Vec::len).min().unwrap_or(0);
    let of = |variant: &Vec<Tensor>| -> Result<f64, EvaluateError> {
        let squared = |(own, original): (&Tensor, &Tensor)| -> Result<f64, EvaluateError> {
            let sum = (own - original).and_then(|d| d.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>());
            Ok(sum.map_err(ModelError::from)?)
        };
        variant.iter().zip(&states[0]).take(count).map(squared).sum()
    };
    states.iter().skip(1).map(of).collect()
}

/// What a probe has found so far.
#[derive(Default, Serialize, Deserialize)]
struct Known {
    predicted: BTreeMap<String, Vec<f64>>,
    deviations: Vec<Vec<f64>>,
}

/// The model, and what is known of its errors.
struct Pass<'a> {
    model: &'a mut Model,
    variants: &'a [Variant],
    known: Known,
    /// Errors of a small embedding that is also the head.
    tied: Option<(String, Vec<Vec<f32>>)>,
}

impl Pass<'_> {
    /// Notes what is predicted for the errors of a matrix.
    fn note(&mut self, name: String, errors: Vec<Errors>) -> (String, Vec<Vec<f32>>) {
        let (values, predicted) = errors.into_iter().unzip();
        self.known.predicted.insert(name.clone(), predicted);
        (name, values)
    }

    /// Runs `f` with the model's values of a variant; of the original for none.
    fn with<T, E: From<EvaluateError>>(
        &mut self,
        variant: Option<usize>,
        errors: &[(String, Vec<Vec<f32>>)],
        f: impl FnOnce(&Model) -> Result<T, E>,
    ) -> Result<T, E> {
        let variant = variant.map(|n| &self.variants[n]);
        if let Some(variant) = variant {
            for (name, errors) in errors.iter().filter(|(name, _)| variant.has(name)) {
                let mut values = self.model.values(name).map_err(EvaluateError::from)?;
                values.iter_mut().zip(&errors[variant.level]).for_each(|(value, e)| *value += e);
                self.model.set_values(name, values);
            }
        }
        let result = f(self.model);
        errors.iter().for_each(|(name, _)| self.model.unset_values(name));
        result
    }

    /// Embeddings of the original and of every variant.
    fn embedded<E: From<EvaluateError>>(
        &mut self,
        batches: &[Vec<&[u32]>],
        counts: &[usize],
        errors: &impl Fn(&str) -> Result<Vec<Errors>, E>,
    ) -> Result<Vec<Vec<Tensor>>, E> {
        let own = [self.note(EMBEDDING.into(), errors(EMBEDDING)?)];
        let embed = |(n, &count): (usize, &usize)| {
            self.with(n.checked_sub(1), &own, |model| {
                let mut embedded = Vec::new();
                let collect = |_, x| -> Result<(), EvaluateError> {
                    embedded.push(x);
                    Ok(())
                };
                model.embed(&batches[..count], collect)?;
                Ok(embedded)
            })
        };
        let embedded = counts.iter().enumerate().map(embed).collect();
        let [(name, errors)] = own;
        let bytes = errors.iter().map(|level| 4 * level.len()).sum::<usize>();
        self.tied = (name == lm_head_name(&self.model.config) && bytes <= TIED).then_some((name, errors));
        embedded
    }

    /// KL of every variant by sequence, from states behind the last block.
    fn compare<E: From<EvaluateError>>(
        &mut self,
        windows: &Windows,
        states: &[Vec<Tensor>],
        errors: &impl Fn(&str) -> Result<Vec<Errors>, E>,
    ) -> Result<Vec<Vec<f64>>, E> {
        let name = lm_head_name(&self.model.config);
        let own = [match self.tied.take() {
            Some(tied) => tied,
            None => self.note(name.into(), errors(name)?),
        }];
        let original = self.model.head().map_err(EvaluateError::from)?;
        let count = self.variants.len();
        let variant = |n: usize| {
            let head = self.with(Some(n), &own, |model| model.head().map_err(EvaluateError::from))?;
            let own = &states[n + 1];
            let sums = comparison(windows, (&original, &states[0][..own.len()]), (&head, own))?;
            Ok(sequence_kl(&sums, windows.context))
        };
        (0..count).map(variant).collect()
    }
}
