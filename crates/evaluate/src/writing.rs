//! Greedy generation after a prompt.

use rayon::prelude::*;
use waterfill_model::other::OtherModel;
use waterfill_model::{Generator, Reader, Text, greedy};
use waterfill_store::{Progress, Work};

use crate::answering::Answering;
use crate::error::Result;
use crate::tasks::Exercise;

/// Most tokens of an answer, as in the harness; half of what the model takes where that is less.
const MOST: usize = 256;
/// Exercises of a unit.
const UNIT: usize = 64;

/// A model in memory.
enum Loaded<'a> {
    Streamed(Box<Generator>),
    Whole(&'a OtherModel),
}

impl Loaded<'_> {
    /// A text of no tokens yet.
    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(match self {
            Self::Streamed(generator) => Box::new(generator.sequence()),
            Self::Whole(model) => Box::new(model.reader()?),
        })
    }
}

/// Text that `model` writes greedily after each prompt up to the first of its stops, and whether the prompt lost its
/// beginning. The whole model is in memory.
///
/// # Errors
/// Models that cannot be loaded or run.
pub(crate) fn write_answers(
    model: Answering,
    (text, prefix): (&Text, &[u32]),
    exercises: &[Exercise],
    (work, name): (&Work, &str),
    progress: &dyn Progress,
) -> Result<Vec<(String, bool)>> {
    progress.start(name, exercises.len() as u64);
    let loaded = match model {
        Answering::Streamed(model) => Loaded::Streamed(Box::new(Generator::new(model)?)),
        Answering::Whole(model) => Loaded::Whole(model),
    };
    let positions = model.positions();
    let most = MOST.min(positions / 2).max(1);
    let one = |exercise: &Exercise| -> Result<(String, bool)> {
        let prompt = [prefix, &text.encode(&exercise.prompt)?].concat();
        let start = prompt.len().saturating_sub(positions - most);
        let mut failed = None;
        let ended = |written: &str| exercise.stops.iter().filter_map(|stop| written.find(stop.as_str())).min();
        let written = greedy(&mut *loaded.reader()?, &prompt[start..], most, |made| match text.decode(made) {
            Ok(written) => ended(&written).is_some(),
            Err(error) => {
                failed = Some(error);
                true
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        progress.advance(1);
        let written = text.decode(&written)?;
        let end = ended(&written).unwrap_or(written.len());
        Ok((written[..end].to_string(), start > 0))
    };
    let mut all = Vec::with_capacity(exercises.len());
    for (n, exercises) in exercises.chunks(UNIT).enumerate() {
        let unit = format!("{name}-{n}");
        let kept: Option<Vec<(String, bool)>> = work.unit(&unit).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(kept) = kept.filter(|kept| kept.len() == exercises.len()) {
            progress.advance(kept.len() as u64);
            all.extend(kept);
            continue;
        }
        let done = exercises.par_iter().map(one).collect::<Result<Vec<_>>>()?;
        work.keep(&unit, &serde_json::to_vec(&done).expect("texts"))?;
        all.extend(done);
    }
    Ok(all)
}
