//! The stages, one file each.

mod allocate;
mod baseline;
mod calibrate;
pub(crate) mod corrections;
pub(crate) mod delta;
mod encode;
mod evaluate;
mod evaluate_part;
pub(crate) mod gguf;
mod measure;
pub(crate) mod packed;

pub(crate) use allocate::Allocate;
pub(crate) use baseline::Baseline;
pub(crate) use calibrate::{Calibration, tokens_digest};
pub(crate) use corrections::{AloneCorrections, LoopCorrections, TogetherCorrections, UniformCorrections};
pub(crate) use delta::{DeltaBase, DeltaSummary, LossyDelta};
pub(crate) use encode::Encode;
pub(crate) use evaluate::{ANSWERS, EvaluateText, Evaluation, Subject, answer, identity_of_answers};
pub(crate) use evaluate_part::{EvaluateHeldOut, EvaluatePart};
pub(crate) use gguf::{GgufMatrix, MeasureGguf, WriteGguf};
pub(crate) use measure::Measure;
pub(crate) use packed::{MeasurePacked, PackedGroup, WritePacked};
