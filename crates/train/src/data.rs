//! Windows of tokens in a seeded order, and simple models of tokens to compare with.

use rayon::prelude::*;
use waterfill_model::Text;
use waterfill_world::Source;

use crate::Result;

/// Tokens of a text; paragraphs are tokenised side by side.
pub(crate) fn tokens(text: &Text, content: &str) -> Result<Vec<u32>> {
    let paragraphs: Vec<&str> = content.split_inclusive("\n\n").collect();
    let parts = paragraphs.par_chunks(64).map(|p| Ok(text.encode(&p.concat())?)).collect::<Result<Vec<Vec<u32>>>>()?;
    Ok(parts.concat())
}

/// Starts of non-overlapping windows of `length` tokens, shuffled.
pub(crate) fn windows(tokens: usize, length: usize, seed: u64) -> Vec<usize> {
    let count = tokens / length;
    let mut order: Vec<usize> = (0..count).collect();
    let mut source = Source::new(seed);
    for i in 0..count {
        order.swap(i, source.between(i, count - 1));
    }
    order.into_iter().map(|i| i * length).collect()
}

/// Perplexities of the unigram and the bigram model of `train` on `test`. The bigram falls back on
/// the unigram with a weight of one count; the unigram has one count for every token.
pub(crate) fn baselines(train: &[u32], test: &[u32], vocab: usize) -> (f64, f64) {
    let mut unigram = vec![1.0f64; vocab];
    let mut pairs = std::collections::HashMap::<(u32, u32), f64>::new();
    let mut first = vec![0.0f64; vocab];
    train.iter().for_each(|&t| unigram[t as usize] += 1.0);
    for pair in train.windows(2) {
        *pairs.entry((pair[0], pair[1])).or_default() += 1.0;
        first[pair[0] as usize] += 1.0;
    }
    let total: f64 = unigram.iter().sum();
    let (mut one, mut two) = (0.0, 0.0);
    for pair in test.windows(2) {
        let p = unigram[pair[1] as usize] / total;
        let seen = pairs.get(&(pair[0], pair[1])).copied().unwrap_or(0.0);
        one -= p.ln();
        two -= ((seen + p) / (first[pair[0] as usize] + 1.0)).ln();
    }
    let count = test.len().saturating_sub(1).max(1) as f64;
    ((one / count).exp(), (two / count).exp())
}
