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
mod policy;
mod prediction;
mod probe;

pub(crate) use allocate::Allocate;
pub(crate) use baseline::Baseline;
pub(crate) use calibrate::{calibrate, tokens_digest};
pub(crate) use corrections::{LoopCorrections, UniformCorrections};
pub(crate) use delta::{DeltaBase, DeltaSummary, LossyDelta};
pub(crate) use encode::Encode;
pub(crate) use evaluate::{ANSWERS, EvaluateText, Evaluation, Subject, answer, identity_of_answers};
pub(crate) use evaluate_part::{EvaluateHeldOut, EvaluatePart};
pub(crate) use gguf::{GgufMatrix, MeasureGguf, WriteGguf};
pub(crate) use measure::Measure;
pub(crate) use packed::{MeasurePacked, PackedGroup, WritePacked};
pub(crate) use probe::{groups, probe};

#[cfg(test)]
mod tests {
    use waterfill_config::Config;
    use waterfill_store::Store;

    use super::calibrate::Calibrate;
    use super::*;
    use crate::console::{Console, Mode};
    use crate::context::Context;
    use crate::engine::Engine;
    use crate::goal::Goal;
    use crate::stage::{ArtifactRef, Stage};

    const CONFIG: &str = r#"{
        "name": "units", "model": "fixture:7",
        "calibrate": {"text": "fixture", "context": 32, "sequences": 8, "held_out": 2, "batch_tokens": 64},
        "allocate": {"lambdas": [1e-6]},
        "encode": {"quality_layers": {"bits": [1.5]}},
        "evaluate": {"text": "fixture", "context": 32, "sequences": 6, "batch_tokens": 64}
    }"#;

    /// Makes a stage's artifact and checks that its units, as it names them before it runs, are those it leaves.
    fn make(stage: &dyn Stage, context: &Context) -> ArtifactRef {
        let identity = stage.identity(context).unwrap();
        let units = stage.units(context).unwrap();
        assert!(!units.is_empty(), "{}", stage.label());
        let made = context.store.get_or_make::<crate::PipelineError>(
            &context.config.name,
            &identity,
            context.console,
            |work| {
                assert!(units.iter().all(|unit| !work.has_unit(unit)));
                stage.run(context, work)?;
                let missing: Vec<&String> = units.iter().filter(|unit| !work.has_unit(unit)).collect();
                assert!(missing.is_empty(), "{}: {missing:?}", stage.label());
                let finished = context.store.finished_units(&context.config.name, &identity);
                assert!(units.iter().all(|unit| finished.contains(unit)));
                Ok(())
            },
        );
        ArtifactRef::found(made.unwrap())
    }

    #[test]
    fn stages_leave_the_units_that_they_name() {
        let config: Config = serde_json::from_str(CONFIG).unwrap();
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path());
        let console = Console::new(Mode::Quiet);
        let context = Context::open(&config, &store, "cpu", &console).unwrap();
        let fitted = make(&Calibrate, &context);
        let measured = make(&Measure { calibration: &fitted }, &context);
        let engine = Engine::running(&context);
        let allocate = |lambda| {
            engine.make(&Allocate { measured: &measured, corrections: None, goal: Goal::Lambda(lambda), plain: false })
        };
        let allocations = [allocate(1e-5).unwrap(), allocate(1e-6).unwrap()];
        let encode = Encode { calibration: &fitted, allocations: &allocations, sequential: None };
        let layered = make(&encode, &context);
        make(&EvaluateText { subject: Subject::Original }, &context);
        assert!(layered.path("checkpoint").join("model.safetensors").is_file());

        // A plan of the same stages finds them, and one of a new stage computes nothing.
        let planning = Engine::planning(&context);
        planning.make(&Measure { calibration: &fitted }).unwrap();
        let goal = Goal::Lambda(1e-4);
        let pending = planning.make(&Allocate { measured: &measured, corrections: None, goal, plain: false }).unwrap();
        let further =
            planning.make(&Encode { calibration: &fitted, allocations: &[pending], sequential: None }).unwrap();
        assert_eq!(further.known::<serde_json::Value>("summary.json").unwrap(), None);
        let plan = planning.into_plan();
        assert_eq!(plan.iter().map(|stage| stage.cached).collect::<Vec<_>>(), [true, false, false]);
        assert!(plan[2].units > 0 && plan[2].units_done == 0 && plan[2].memory_bytes > 0);
    }
}
