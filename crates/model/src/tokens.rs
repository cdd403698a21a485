//! Tokenizer and token windows.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

/// A checkpoint's tokenizer.
pub struct Text {
    tokenizer: Tokenizer,
    path: PathBuf,
}

impl Text {
    /// Opens `tokenizer.json` in a checkpoint directory.
    ///
    /// # Errors
    /// A file that is missing, malformed, or has more tokens than the embedding has rows.
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let unsupported = |reason: String| ModelError::Unsupported { path: path.clone(), reason };
        let tokenizer = Tokenizer::from_file(&path).map_err(|e| unsupported(e.to_string()))?;
        let size = tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        if size > config.vocab {
            return Err(unsupported(format!("{size} tokens, the embedding has {} rows", config.vocab)));
        }
        Ok(Self { tokenizer, path })
    }

    /// Token ids of a text, without special tokens.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let failed = |e: tokenizers::Error| ModelError::Unsupported { path: self.path.clone(), reason: e.to_string() };
        Ok(self.tokenizer.encode(text, false).map_err(failed)?.get_ids().to_vec())
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
    /// Cuts ids into at most `sequences` rows; `path` is for messages.
    ///
    /// # Errors
    /// Too few tokens for one row, ids beyond the vocabulary, a context beyond the model's.
    pub fn cut(
        ids: &[u32],
        context: usize,
        sequences: usize,
        layout: Layout,
        config: &ModelConfig,
        path: &Path,
    ) -> Result<Self> {
        let data = |reason: String| ModelError::Data { path: path.to_path_buf(), reason };
        if context == 0 || context > config.positions {
            return Err(data(format!("context {context}, the model takes 1 to {} positions", config.positions)));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab) {
            return Err(data(format!("token id {id}, the vocabulary has {} tokens", config.vocab)));
        }
        let length = context + 1;
        let available = ids.len() / length;
        let count = available.min(sequences);
        if count == 0 {
            return Err(data(format!("{} tokens, one row of context {context} needs {length}", ids.len())));
        }
        let start = |i: usize| match layout {
            Layout::FromStart => i * length,
            Layout::Spread => i * available / count * length,
        };
        Ok(Self { context, rows: (0..count).map(|i| ids[start(i)..start(i) + length].to_vec()).collect() })
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
