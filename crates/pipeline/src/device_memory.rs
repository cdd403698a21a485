//! What stages hold in an accelerator's memory, and which batches would fit where they did not.

use waterfill_calibrate::head_bytes;
use waterfill_evaluate::{block_tokens, comparison_bytes};
use waterfill_model::{ModelConfig, free_device_memory};

use crate::error::PipelineError;
use crate::estimate::{gigabytes, moment_bytes};
use crate::session::Session;

/// Share of free memory that a stage may fill: libraries take some, and blocks of memory leave gaps.
const FILL: f64 = 0.85;

/// Free memory of the session's accelerator before anything is computed, bytes.
pub(crate) fn free(session: &Session) -> Option<u64> {
    free_device_memory(session.model.device())
}

/// The error with what to do about it where an accelerator was full; `free` bytes were there before.
pub(crate) fn explained(
    error: PipelineError,
    session: &Session,
    label: &str,
    stage: &str,
    free: Option<u64>,
) -> PipelineError {
    if !error.is_out_of_device_memory() {
        return error;
    }
    let (c, e) = (&session.config.calibrate, &session.config.evaluate);
    let (section, context, tokens) = match stage {
        "calibrate" => ("calibrate", c.context, c.batch_tokens),
        _ => ("evaluate", e.context, e.batch_tokens),
    };
    let advice = advice(section, context, tokens, free, |tokens| needed(session, stage, context, tokens));
    PipelineError::DeviceMemory { stage: label.into(), device: session.device_name.clone(), advice }
}

/// Bytes of a stage with batches of `tokens` tokens.
fn needed(session: &Session, stage: &str, context: usize, tokens: usize) -> u64 {
    let model = &session.model.config;
    let (block, table, states) = (model.block_bytes(), model.table_bytes(), model.state_bytes(tokens));
    match stage {
        "calibrate" => {
            // Automatic differentiation holds what kernels compute again, and the weights' gradients with them.
            let batch = 2 * model.vjp_bytes(tokens) + 2 * states + 8 * scores(model, tokens, context);
            let head = table + head_bytes(model.vocab, tokens) + 4 * states;
            head.max(2 * block + moment_bytes(session) + batch)
        }
        _ => {
            let batch = model.forward_bytes(tokens) + 4 * scores(model, tokens, context);
            let held = model.state_bytes(block_tokens(model));
            held + (block + batch).max(2 * table + comparison_bytes(model.vocab))
        }
    }
}

/// Attention scores of a batch.
fn scores(model: &ModelConfig, tokens: usize, context: usize) -> u64 {
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
