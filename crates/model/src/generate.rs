//! Greedy continuation of a text, a token at a time, with keys and values kept.

use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb::rope;

use crate::block::{Block, Linear, Others};
use crate::error::Result;
use crate::head::Head;
use crate::roles::{EMBEDDING, HEAD};
use crate::stream::Model;

/// Rotated keys, and values, of the tokens a block has seen: `[1, kv_heads, tokens, head_dim]`.
#[derive(Default, Clone)]
struct Cache(Option<[Tensor; 2]>);

impl Cache {
    fn tokens(&self) -> CandleResult<usize> {
        self.0.as_ref().map_or(Ok(0), |[keys, _]| keys.dim(2))
    }

    /// Appends and returns all.
    fn extend(&mut self, keys: Tensor, values: Tensor) -> CandleResult<[Tensor; 2]> {
        let all = match self.0.take() {
            Some([k, v]) => [Tensor::cat(&[&k, &keys], 2)?, Tensor::cat(&[&v, &values], 2)?],
            None => [keys, values],
        };
        self.0 = Some(all.clone());
        Ok(all)
    }
}

/// A model that has read a text and predicts the token after it.
pub trait Reader {
    /// Reads more tokens; returns the logits `[vocab]` of the token after them.
    ///
    /// # Errors
    /// No tokens, more than the model has positions, ids beyond the vocabulary.
    fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;
}

/// Greedy continuation of `prompt`: the likeliest token, again and again, until `done` returns true for the tokens so far
/// or there are `most`.
///
/// # Errors
/// As [`Reader::read`].
pub fn greedy(
    reader: &mut dyn Reader,
    prompt: &[u32],
    most: usize,
    mut done: impl FnMut(&[u32]) -> bool,
) -> Result<Vec<u32>> {
    let mut logits = reader.read(prompt)?;
    let mut made = Vec::new();
    while made.len() < most {
        let mut best = 0;
        (0..logits.len()).for_each(|i| best = if logits[i] > logits[best] { i } else { best });
        made.push(best as u32);
        if done(&made) || made.len() == most {
            break;
        }
        logits = reader.read(&[best as u32])?;
    }
    Ok(made)
}

/// A whole model in memory.
pub struct Generator {
    embedding: Embedding,
    blocks: Vec<Block>,
    output: Output,
}

/// The embedding of tokens.
enum Embedding {
    Dense(Tensor),
    Other(Arc<dyn Linear>),
}

impl Embedding {
    /// States `[tokens, hidden]`.
    fn of(&self, tokens: &[u32]) -> CandleResult<Tensor> {
        match self {
            Self::Dense(table) => table.index_select(&Tensor::new(tokens, table.device())?, 0),
            Self::Other(matrix) => matrix.rows(tokens),
        }
    }
}

/// Final norm and output head.
enum Output {
    Dense(Head),
    Other { norm: Tensor, eps: f32, matrix: Arc<dyn Linear> },
}

impl Output {
    /// Logits `[tokens, vocab]` of states `[tokens, hidden]`.
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(head) => head.logits(&head.normalise(x)?),
            Self::Other { norm, eps, matrix } => Ok(matrix.forward(&rms_norm(&x.contiguous()?, norm, *eps)?)?),
        }
    }
}

/// A text that a [`Generator`] has read.
pub struct Sequence<'a> {
    generator: &'a Generator,
    caches: Vec<Cache>,
}

impl Generator {
    /// Loads all weights.
    ///
    /// # Errors
    /// As [`Model::block`].
    pub fn new(model: &Model) -> Result<Self> {
        Self::with(model, &mut |_| Ok(None))
    }

    /// As [`Generator::new`], with the replacements that `others` gives for matrices by the names of their weights.
    ///
    /// # Errors
    /// As [`Model::block_with`].
    pub fn with(model: &Model, others: &mut Others) -> Result<Self> {
        let (other, tied) = (others(EMBEDDING)?, model.config.tied);
        let other_head = if tied { other.clone() } else { others(HEAD)? };
        let output = match other_head {
            Some(matrix) => Output::Other { norm: model.final_norm()?, eps: model.config.norm_eps as f32, matrix },
            None => Output::Dense(model.head()?),
        };
        let embedding = match (other, &output) {
            (Some(matrix), _) => Embedding::Other(matrix),
            (None, Output::Dense(head)) if tied => Embedding::Dense(head.weight.clone()),
            (None, _) => Embedding::Dense(model.embedding()?),
        };
        let blocks = (0..model.config.layers).map(|i| model.block_with(i, others)).collect::<Result<_>>()?;
        Ok(Self { embedding, blocks, output })
    }

    /// A text of no tokens yet.
    pub fn sequence(&self) -> Sequence<'_> {
        Sequence { generator: self, caches: vec![Cache::default(); self.blocks.len()] }
    }
}

impl Reader for Sequence<'_> {
    fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let Generator { embedding, blocks, output } = self.generator;
        let mut x = embedding.of(tokens)?.unsqueeze(0)?;
        for (block, cache) in blocks.iter().zip(&mut self.caches) {
            x = block.attended(&x, &mut |q, k, v| attend(block, [q, k, v], cache))?;
        }
        let last = x.get(0)?.narrow(0, tokens.len() - 1, 1)?;
        let logits = output.logits(&last)?;
        Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    }
}

/// Causal attention of projections `[1, tokens, heads * head_dim]` of new tokens to all.
fn attend(block: &Block, [q, k, v]: [&Tensor; 3], cache: &mut Cache) -> CandleResult<Tensor> {
    let config = &block.config;
    let (_, tokens, _) = q.dims3()?;
    let before = cache.tokens()?;
    let all = before + tokens;
    if all > config.positions {
        candle_core::bail!("{all} tokens, the model has {} positions", config.positions);
    }
    let split = |t: &Tensor, heads| t.reshape((1, tokens, heads, config.head_dim))?.transpose(1, 2)?.contiguous();
    let tables = block.rotary.tables(all)?;
    let [cos, sin] = [&tables.cos, &tables.sin].map(|t| t.narrow(0, before, tokens)?.contiguous());
    let (cos, sin) = (cos?, sin?);
    let q = (rope(&split(q, config.heads)?, &cos, &sin)? / (config.head_dim as f64).sqrt())?;
    let [keys, values] = cache.extend(rope(&split(k, config.kv_heads)?, &cos, &sin)?, split(v, config.kv_heads)?)?;
    let window = config.window_of(block.index);
    let hidden = |i: usize, j: usize| j > before + i || before + i - j >= window;
    let mask = (0..tokens).flat_map(|i| (0..all).map(move |j| if hidden(i, j) { -1e30f32 } else { 0.0 }));
    let mask = Tensor::from_vec(mask.collect(), (tokens, all), &Device::Cpu)?;
    let mask = mask.to_dtype(q.dtype())?.to_device(q.device())?;
    let scores = q.matmul(&block.repeat(&keys)?.transpose(2, 3)?.contiguous()?)?.broadcast_add(&mask)?;
    let attended = softmax_last_dim(&scores)?.matmul(&block.repeat(&values)?)?;
    attended.transpose(1, 2)?.contiguous()?.reshape((1, tokens, config.heads * config.head_dim))
}

impl Model {
    fn embedding(&self) -> Result<Tensor> {
        self.load(EMBEDDING, &[self.config.vocab, self.config.hidden])
    }
}

#[cfg(test)]
mod tests {
    use waterfill_fixture::{FAMILIES, small_config_of, write_random};

    use super::*;

    /// Logits of every prefix, read in pieces, equal those of the whole.
    #[test]
    fn kept_keys_and_values_change_nothing() {
        for name in FAMILIES {
            let dir = tempfile::tempdir().unwrap();
            let mut config = small_config_of(name).unwrap();
            if name == "mistral-7b" {
                config["sliding_window"] = 5.into();
            }
            write_random(dir.path(), &config, 3).unwrap();
            let model = Model::open(dir.path(), &Device::Cpu).unwrap();
            let tokens: Vec<u32> = (0..23u32).map(|i| (i * 7 + 3) % model.config.vocab as u32).collect();
            let generator = Generator::new(&model).unwrap();
            let mut sequence = generator.sequence();
            let mut at = 0;
            for piece in [7, 1, 1, 9, 5] {
                let logits = sequence.read(&tokens[at..at + piece]).unwrap();
                at += piece;
                let mut x = None;
                let keep = |_, state| -> Result<()> {
                    x = Some(state);
                    Ok(())
                };
                model.embed(&[vec![&tokens[..at]]], keep).unwrap();
                let mut x = x.unwrap();
                for i in 0..model.config.layers {
                    x = model.block(i).unwrap().forward(&x).unwrap();
                }
                let head = model.head().unwrap();
                let whole = head.logits(&head.normalise(&x.get(0).unwrap()).unwrap()).unwrap();
                let whole: Vec<f32> = whole.get(at - 1).unwrap().to_vec1().unwrap();
                let worst = logits.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-4, "{name} at {at}: {worst}");
            }
            let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            let made = greedy(&mut generator.sequence(), &tokens, 3, |_| false).unwrap();
            let mut again = generator.sequence();
            let next = best(&again.read(&tokens).unwrap()) as u32;
            assert_eq!((made.len(), made[0]), (3, next), "{name}");
            assert_eq!(made[1], best(&again.read(&[next]).unwrap()) as u32, "{name}");
            let two = greedy(&mut generator.sequence(), &tokens, 9, |made| made.len() == 2).unwrap();
            assert_eq!(two, made[..2], "{name}");
        }
    }
}
