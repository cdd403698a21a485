//! Encoding: the compressed checkpoint of one allocation, or of one for each quality layer.

use waterfill_allocate::Allocation;
use waterfill_calibrate::Sensitivities;
use waterfill_codec::Format;
use waterfill_config::{self as config, QualityLayers, Sequential};
use waterfill_model::Model;
use waterfill_quantize::{EncodeOptions, ErrorFeedback, encode, encode_bytes};
use waterfill_sequential as sequential;
use waterfill_store::{Identity, Work};

use crate::context::Context;
use crate::error::Result;
use crate::estimate::{PROGRAM, coding_memory};
use crate::results::write_json;
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of the artifact; raised when results change.
pub(super) const VERSION: u32 = 17;

/// The compressed checkpoint of allocations, in `checkpoint/` of the artifact: the base's, and one for each refinement.
pub(crate) struct Encode<'a> {
    pub calibration: &'a ArtifactRef,
    /// The base first; one without quality layers.
    pub allocations: &'a [ArtifactRef],
    /// Whether weights that are not coded yet are adjusted.
    pub sequential: Option<Sequential>,
}

impl Stage for Encode<'_> {
    fn label(&self) -> String {
        "encode".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let Some((allocation, coarser)) = self.allocations.split_last() else { unreachable!("there is a base") };
        let quality_layers = context.config.encode.quality_layers.clone().filter(|_| !coarser.is_empty());
        let encode = config::Encode { sequential: self.sequential, quality_layers, ..context.config.encode.clone() };
        let mut settings = settings(context);
        settings["encode"] = serde_json::to_value(encode).expect("plain data");
        if self.sequential.is_some() {
            settings["sequential"] = sequential::VERSION.into();
        }
        // Moments are read from the calibration, not from the allocation.
        let mut identity = context.identity("encode", VERSION, &[("allocate", allocation.digest())], settings);
        identity.inputs.insert("calibrate".into(), self.calibration.digest());
        identity.inputs.insert("companions".into(), context.companions_digest.clone());
        let layers = coarser.iter().enumerate();
        identity.inputs.extend(layers.map(|(n, allocation)| (format!("allocate-{n}"), allocation.digest())));
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let (model, c) = (&context.model.config, &context.config.calibrate);
        let weights = context.model.checkpoint().weights();
        let shapes = context.model.weights().into_iter().map(|w| w.1);
        let coding = encode_bytes(shapes, context.config.encode.feedback, coding_memory());
        let batch = config::BATCH_TOKENS;
        let steps = self.sequential.map_or(0, |s| s.steps * model.layers);
        // Values twice, both moments and two gradients of every weight, tensors of the blocks, final states of both
        // models, and two batches on their way.
        let adjusting = 28 * weights
            + 2 * model.state_bytes(c.sequences * c.context)
            + 2 * (model.vjp_bytes(batch) + model.layers as u64 * model.state_bytes(batch));
        Estimate {
            operations: weights as f64 * (4e3 + 3.0 * (steps * batch) as f64),
            memory: PROGRAM + coding + if self.sequential.is_some() { adjusting } else { 0 },
            disk: 0,
        }
    }

    fn units(&self, context: &Context) -> Result<Vec<String>> {
        let coded: Vec<String> = context.model.weights().into_iter().map(|(name, _)| name).collect();
        let layers = |name: &String| if coded.contains(name) { self.allocations.len() } else { 1 };
        let tensors = context.model.checkpoint().tensors().enumerate();
        Ok(tensors
            .flat_map(|(n, info)| (0..layers(&info.name)).map(move |layer| waterfill_quantize::unit(n, layer)))
            .collect())
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let open = |a: &ArtifactRef| Allocation::open(&a.path("allocation.safetensors"));
        let maps = self.allocations.iter().map(open).collect::<std::result::Result<Vec<_>, _>>()?;
        let options = options(context, self.calibration)?;
        let windows = &context.calibration_windows()?.fitted;
        let adaptation = self.sequential.map(|s| {
            let settings =
                sequential::SequentialSettings { steps: s.steps, rate: s.rate, batch_tokens: config::BATCH_TOKENS };
            let copy = Model::open(&context.source.dir, context.model.device())?;
            let names = maps.last().map(Allocation::names).unwrap_or_default();
            sequential::Adaptation::new(&context.model, copy, windows, &names.into_iter().collect(), settings)
        });
        let (source, adaptation) = (context.model.checkpoint(), adaptation.transpose()?);
        let summary = encode(source, &maps, &options, adaptation, work, context.console)?;
        write_json(&work.path("summary.json"), &summary)
    }
}

/// Options of tensor coding.
pub(crate) fn options(context: &Context, calibration: &ArtifactRef) -> Result<EncodeOptions> {
    let e = &context.config.encode;
    let open = |a: &ArtifactRef| -> Result<Sensitivities> { Ok(Sensitivities::open(a.dir())?.damped(e.damping)) };
    let feedback = match e.feedback {
        true => Some(ErrorFeedback {
            sensitivities: open(calibration)?,
            trellis: e.trellis(),
            rounding: e.rounding,
            error_penalty: e.quality_layers.as_ref().map_or(0.0, QualityLayers::error_penalty),
            sparse: e.quality_layers.as_ref().is_some_and(|l| l.structure.is_some()),
        }),
        false => None,
    };
    Ok(EncodeOptions {
        tools: e.tools(),
        bit_shift: e.bit_shift(),
        allow_int8: allows(context, Format::Int8),
        allow_lossless: allows(context, Format::Lossless),
        feedback,
        memory: coding_memory(),
    })
}

/// Settings that coded tensors depend on.
pub(super) fn settings(context: &Context) -> serde_json::Value {
    let mut settings = serde_json::json!({"bitstream": waterfill_checkpoint::VERSION, "encode": context.config.encode});
    note_freedom(context, &mut settings);
    settings
}

/// Adds to settings which formats encoding may give to tiles by itself.
pub(super) fn note_freedom(context: &Context, settings: &mut serde_json::Value) {
    settings["allow_int8"] = allows(context, Format::Int8).into();
    settings["allow_lossless"] = allows(context, Format::Lossless).into();
}

/// Whether encoding may give a tile a wider format than allocated: where the format is allowed and bits in memory do not
/// count.
fn allows(context: &Context, format: Format) -> bool {
    let a = &context.config.allocate;
    a.rate().resident == 0.0 && a.formats.iter().any(|f| f.0 == format)
}
