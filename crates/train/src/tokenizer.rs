//! Byte-level BPE from a text.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{TokenizerBuilder, TokenizerImpl};

use crate::{Result, TrainError};

/// Learns a vocabulary of `size` tokens from `text` and writes it as `tokenizer.json` to `path`.
/// Words are split as GPT-2 splits them; every byte is a token, so that no text is unknown.
///
/// # Errors
/// Fails if the tokenizer library does, or if the file cannot be written.
pub fn train_tokenizer(text: &str, size: usize, path: &Path) -> Result<()> {
    let failed = |e: tokenizers::Error| TrainError::Tokenizer(e.to_string());
    let pre_tokenizer = ByteLevel::new(false, true, true);
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(size)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, ByteLevelDecoder> =
        TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(pre_tokenizer))
            .with_post_processor(None)
            .with_decoder(Some(pre_tokenizer))
            .build()
            .map_err(failed)?;
    tokenizer.train(&mut trainer, text.split_inclusive("\n\n")).map_err(failed)?;
    let json = tokenizer.to_string(true).map_err(failed)?;
    Ok(waterfill_checkpoint::writer::write_file(path, json.as_bytes())?)
}
