//! Baselines: codes of one width for all matrices.

use waterfill_calibrate::Sensitivities;
use waterfill_config::BaselineMethod;
use waterfill_quantize as quantize;
use waterfill_store::{Identity, Work};

use crate::context::Context;
use crate::error::Result;
use crate::estimate::PROGRAM;
use crate::goal::Goal;
use crate::results::write_json;
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of the artifact; raised when results change.
const VERSION: u32 = 2;

/// A checkpoint with codes of `bits` bits for all matrices.
pub(crate) struct Baseline<'a> {
    pub calibration: &'a ArtifactRef,
    pub bits: u32,
}

impl Stage for Baseline<'_> {
    fn label(&self) -> String {
        Goal::Width(self.bits).label()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let settings = context.config.baseline.as_ref().map(|b| (b.method, b.group));
        let settings = serde_json::json!({"bits": self.bits, "settings": settings});
        let inputs = [("calibrate", self.calibration.digest()), ("companions", context.companions_digest.clone())];
        Ok(context.identity("baseline", VERSION, &inputs, settings))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let operations = context.model.checkpoint().weights() as f64 * 2e3;
        Estimate { operations, memory: PROGRAM, disk: 0 }
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let settings = context.config.baseline.as_ref().expect("only baselines have widths");
        let baseline = match settings.method {
            BaselineMethod::Absmax => quantize::Baseline::Absmax,
            BaselineMethod::Fp8 => quantize::Baseline::Fp8,
            BaselineMethod::Gptq => {
                let sensitivities = Sensitivities::open(self.calibration.dir())?.damped(Some(0.0));
                quantize::Baseline::Gptq { group: settings.group, sensitivities }
            }
        };
        let names = context.model.weights().into_iter().map(|(name, _)| name).collect();
        let source = context.model.checkpoint();
        let summary = quantize::encode_baseline(source, &names, &baseline, self.bits, work, context.console)?;
        write_json(&work.path("summary.json"), &summary)
    }
}
