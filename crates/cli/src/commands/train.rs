//! `waterfill train`.

use std::path::Path;

use anyhow::Result;
use waterfill_config::load_train;
use waterfill_pipeline::{Console, TrainOutput, train};
use waterfill_store::Progress;

use super::show::show_figures;
use crate::arguments::Arguments;

/// Trains the model of a file.
pub fn execute(arguments: &Arguments, config: &Path, repair: bool, console: &Console) -> Result<()> {
    let output = train(&load_train(config, &|note| console.note(note))?, repair, console)?;
    console.finish("");
    show_figures(arguments, &output, render)
}

/// A trained model in words.
fn render(output: &TrainOutput) -> String {
    let s = &output.summary;
    format!(
        "{} weights, {} tokens: perplexity {:.3} on held-out text (unigram {:.1}, bigram {:.2}), answers {:.1} %\n\
         model: {}\ntexts and questions: {}\n",
        s.weights,
        s.tokens,
        s.perplexity,
        s.unigram_perplexity,
        s.bigram_perplexity,
        s.answers * 100.0,
        output.model.display(),
        output.data.display()
    )
}
