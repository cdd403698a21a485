//! Tokenizer and token windows.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

/// A checkpoint's tokenizer.
pub struct Text {
    tokenizer: Tokenizer,
    path: PathBuf,
    prefix: Vec<u32>,
}

/// The part of `tokenizer_config.json` about the beginning of a text.
#[derive(Default, Deserialize)]
struct Rules {
    tokenizer_class: Option<String>,
    add_bos_token: Option<bool>,
    /// The token, or an object with it.
    bos_token: Option<serde_json::Value>,
}

impl Text {
    /// Opens `tokenizer.json` in a checkpoint directory, and `tokenizer_config.json` where there is one.
    ///
    /// # Errors
    /// Files that are missing or malformed, more tokens than the embedding has rows, and a beginning
    /// of text that is no token.
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self> {
        Self::open_sized(dir, config.vocab)
    }

    /// As [`Text::open`] for an embedding of `vocab` rows.
    ///
    /// # Errors
    /// As [`Text::open`].
    pub fn open_sized(dir: &Path, vocab: usize) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let unsupported = |reason: String| ModelError::Unsupported { path: path.clone(), reason };
        if !path.exists() && dir.join("tokenizer.model").exists() {
            let reason =
                "is not there; tokenizer.model alone is not read: save it as a fast tokenizer with transformers";
            return Err(unsupported(reason.into()));
        }
        let tokenizer = Tokenizer::from_file(&path).map_err(|e| unsupported(e.to_string()))?;
        let size = tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        if size > vocab {
            return Err(unsupported(format!(
                "{size} tokens, the embedding has {vocab} rows: tokenizer and weights are of different models"
            )));
        }
        let prefix = prefix(&tokenizer, dir).map_err(unsupported)?;
        Ok(Self { tokenizer, path, prefix })
    }

    /// Tokens that the model expects before every text, such as the beginning of text.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Token ids of a text, without those before it. Special tokens written out in the text count.
    ///
    /// # Errors
    /// As the tokenizer reports.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let failed = |e: tokenizers::Error| ModelError::Unsupported { path: self.path.clone(), reason: e.to_string() };
        Ok(self.tokenizer.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// Text of token ids, special ones left out.
    ///
    /// # Errors
    /// As the tokenizer reports.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let failed = |e: tokenizers::Error| ModelError::Unsupported { path: self.path.clone(), reason: e.to_string() };
        self.tokenizer.decode(ids, true).map_err(failed)
    }
}

/// Tokens before every text. The template in `tokenizer.json` says it; `add_bos_token` has the
/// last word in the classes that build the template from it when they are loaded.
fn prefix(tokenizer: &Tokenizer, dir: &Path) -> std::result::Result<Vec<u32>, String> {
    let path = dir.join("tokenizer_config.json");
    let rules: Rules = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| format!("tokenizer_config.json beside it: {e}"))?,
        Err(_) => Rules::default(),
    };
    let ids =
        |special: bool| tokenizer.encode_fast("a", special).map(|e| e.get_ids().to_vec()).map_err(|e| e.to_string());
    let (with, without) = (ids(true)?, ids(false)?);
    let own = match with.windows(without.len().max(1)).position(|w| w == without) {
        Some(at) => with[..at].to_vec(),
        None => vec![],
    };
    let builds = rules.tokenizer_class.as_deref().is_some_and(|c| !c.starts_with("PreTrainedTokenizer"));
    match (rules.add_bos_token.filter(|_| builds), rules.bos_token) {
        (Some(false), _) => Ok(vec![]),
        (Some(true), Some(token)) if own.is_empty() => {
            let name = token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default();
            let id = tokenizer.token_to_id(name);
            id.map(|id| vec![id])
                .ok_or_else(|| format!("has no token {name:?}, the bos_token of tokenizer_config.json"))
        }
        _ => Ok(own),
    }
}

/// Rows of `context` inputs and one more token, so that every input has a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    /// Inputs of a row.
    pub context: usize,
    /// Rows of `context + 1` ids.
    pub rows: Vec<Vec<u32>>,
}

/// How windows are laid over a token sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The first rows, one after another: the usual way to measure perplexity.
    FromStart,
    /// Rows spread evenly over the whole text: the usual way to calibrate.
    Spread,
}

impl Windows {
    /// Cuts ids into at most `sequences` rows, each of which begins with `prefix`; `path` is for
    /// messages.
    ///
    /// # Errors
    /// Too few tokens for one row, ids beyond the vocabulary, a context beyond the model's.
    pub fn cut(
        (prefix, ids): (&[u32], &[u32]),
        context: usize,
        sequences: usize,
        layout: Layout,
        (vocab, positions): (usize, usize),
        path: &Path,
    ) -> Result<Self> {
        let data = |reason: String| ModelError::Data { path: path.to_path_buf(), reason };
        if context > positions {
            return Err(data(format!(
                "context {context}, the model takes {positions} positions: lower it to that or less"
            )));
        }
        if context <= prefix.len() {
            let expected = prefix.len() + 1;
            return Err(data(format!("context {context}, expected at least {expected}: rows begin with {prefix:?}")));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(data(format!("token id {id}, the vocabulary has {vocab} tokens")));
        }
        let length = context + 1 - prefix.len();
        let available = ids.len() / length;
        let count = available.min(sequences);
        if count == 0 {
            return Err(data(format!("{} tokens, one row of context {context} needs {length}", ids.len())));
        }
        let start = |i: usize| match layout {
            Layout::FromStart => i * length,
            Layout::Spread => i * available / count * length,
        };
        let row = |i: usize| [prefix, &ids[start(i)..start(i) + length]].concat();
        Ok(Self { context, rows: (0..count).map(row).collect() })
    }

    /// Sets `apart` rows apart, evenly among the others: the others, and those.
    pub fn split(self, apart: usize) -> (Self, Self) {
        let count = self.rows.len();
        let mut parts = [(); 2].map(|()| Self { context: self.context, rows: Vec::new() });
        for (i, row) in self.rows.into_iter().enumerate() {
            // The i-th row crosses a multiple of count / apart.
            let crosses = (i + 1) * apart / count > i * apart / count;
            parts[usize::from(crosses)].rows.push(row);
        }
        let [others, apart] = parts;
        (others, apart)
    }

    /// The rows of several texts, each text's spread evenly over the whole, and the text that each row is from.
    pub fn interleave(context: usize, texts: Vec<Self>) -> (Self, Vec<usize>) {
        let place = |i: usize, count: usize| (2 * i + 1) as f64 / count as f64;
        let of_text = |(n, text): (usize, Self)| {
            let count = text.rows.len();
            text.rows.into_iter().enumerate().map(move |(i, row)| (place(i, count), n, row))
        };
        let mut all: Vec<(f64, usize, Vec<u32>)> = texts.into_iter().enumerate().flat_map(of_text).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (from, rows) = all.into_iter().map(|(_, text, row)| (text, row)).unzip();
        (Self { context, rows }, from)
    }

    /// Groups inputs into batches of about `tokens` tokens; the grouping depends on nothing else.
    pub fn batches(&self, tokens: usize) -> Vec<Vec<&[u32]>> {
        let per_batch = (tokens / self.context).max(1);
        self.rows.chunks(per_batch).map(|rows| rows.iter().map(|r| &r[..self.context]).collect()).collect()
    }

    /// Targets of row `i`.
    pub fn targets(&self, i: usize) -> &[u32] {
        &self.rows[i][1..]
    }
}

/// Reads a file of little-endian u16 token ids.
///
/// # Errors
/// Read errors and an odd number of bytes.
pub fn read_u16_tokens(path: &Path) -> Result<Vec<u32>> {
    let data = |reason: String| ModelError::Data { path: path.to_path_buf(), reason };
    let bytes = std::fs::read(path).map_err(|e| data(e.to_string()))?;
    if bytes.len() % 2 != 0 {
        return Err(data(format!("{} bytes, expected an even number (u16 ids)", bytes.len())));
    }
    Ok(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect())
}
