//! Memory of batches on an accelerator, and which batches would fit where one did not.

use waterfill_model::{ModelConfig, free_device_memory};

use crate::context::Context;
use crate::error::PipelineError;
use crate::estimate::gigabytes;
use crate::stage::{BatchMemory, Stage};

/// Share of free memory that a stage may fill: libraries take some, and freed blocks leave gaps.
const FILL: f64 = 0.85;

/// Free memory of the context's accelerator before anything is computed, bytes; `None` on the CPU.
pub(crate) fn free(context: &Context) -> Option<u64> {
    free_device_memory(context.model.device())
}

/// The error with advice, where an accelerator was full; `free` bytes were free before.
pub(crate) fn explain(error: PipelineError, context: &Context, stage: &dyn Stage, free: Option<u64>) -> PipelineError {
    match stage.batch_memory(context) {
        Some(memory) if error.is_out_of_device_memory() => {
            let BatchMemory { section, context: length, tokens, needed } = memory;
            let advice = advice(section, length, tokens, free, needed);
            PipelineError::DeviceMemory { stage: stage.label(), device: context.device_name.clone(), advice }
        }
        _ => error,
    }
}

/// Bytes of the attention scores of a batch.
pub(crate) fn attention_scores(model: &ModelConfig, tokens: usize, context: usize) -> u64 {
    (model.heads * tokens * context * 4) as u64
}

/// The most tokens of a batch below `tokens` that fit, halved from there down to a sequence.
fn advice(section: &str, context: usize, tokens: usize, free: Option<u64>, needed: impl Fn(usize) -> u64) -> String {
    let takes = format!("batches of {tokens} tokens take about {}", gigabytes(needed(tokens.max(context))));
    let Some(free) = free else {
        return format!("{takes}; lower {section}.batch_tokens or {section}.context");
    };
    let limit = (free as f64 * FILL) as u64;
    let mut smaller = std::iter::successors(Some(tokens / 2), |t| Some(t / 2)).take_while(|&t| t >= context);
    let takes = format!("{takes}, {} were free", gigabytes(free));
    match smaller.find(|&t| needed(t) <= limit) {
        Some(fits) => format!("{takes}; {section}.batch_tokens: {fits} would fit"),
        None if needed(context) <= limit && context < tokens => {
            format!("{takes}; {section}.batch_tokens: {context} would fit")
        }
        None => {
            let one = format!("even one sequence of {context} tokens takes about {}", gigabytes(needed(context)));
            format!("{takes}, {one}; lower {section}.context, or leave --device out to compute on the CPU")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_fits_is_named() {
        let needed = |tokens: usize| 2_000_000_000 + 4_000_000 * tokens as u64;
        let of = |context, tokens, gigabytes: u64| {
            advice("calibrate", context, tokens, Some(gigabytes * 1_000_000_000), needed)
        };
        assert_eq!(
            of(256, 2048, 8),
            "batches of 2048 tokens take about 10.2 GB, 8.0 GB were free; calibrate.batch_tokens: 1024 would fit"
        );
        assert!(of(256, 2048, 4).ends_with("calibrate.batch_tokens: 256 would fit"));
        assert!(of(200, 2048, 4).ends_with("calibrate.batch_tokens: 256 would fit"));
        assert!(of(300, 2000, 4).ends_with("calibrate.batch_tokens: 300 would fit"));
        let none = of(2048, 2048, 8);
        assert!(
            none.contains("even one sequence of 2048 tokens takes about 10.2 GB; lower calibrate.context"),
            "{none}"
        );
        assert!(advice("evaluate", 8, 64, None, needed).ends_with("lower evaluate.batch_tokens or evaluate.context"));
    }
}
