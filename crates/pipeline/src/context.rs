//! A configuration with its model opened: what every stage may read.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Serialize;
use waterfill_checkpoint::writer::companions_digest;
use waterfill_codec::BitsPerWeight;
use waterfill_config::{Config, Size};
use waterfill_evaluate::tasks::Items;
use waterfill_model::{Model, Windows, device};
use waterfill_store::{Identity, Store};

use crate::console::Console;
use crate::error::Result;
use crate::goal::Goal;
use crate::sources::{CalibrationWindows, Source};

/// A configuration with its model opened on a device.
pub struct Context<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Store of all artifacts.
    pub store: Store,
    /// Receiver of progress.
    pub console: &'a Console,
    /// The original model.
    pub model: Model,
    /// Where the model and its data come from.
    pub source: Source,
    /// `cpu` or `cuda`: results depend on it, so identities contain it.
    pub device_kind: String,
    /// The device as the user named it, such as `cuda:0`.
    pub device_name: String,
    model_digest: String,
    /// Of the files beside the weights that checkpoints written from the model get.
    pub companions_digest: String,
    calibration_windows: OnceLock<CalibrationWindows>,
    eval_inputs: OnceLock<EvalInputs>,
}

/// Everything that checkpoints are evaluated on.
pub struct EvalInputs {
    /// Windows of the text.
    pub windows: Windows,
    /// Longer windows of the same text.
    pub long: Option<Windows>,
    /// Questions of each benchmark, in the order of the configuration.
    pub questions: Vec<Items>,
}

impl<'a> Context<'a> {
    /// Opens the model of a configuration on a device (`cpu` or `cuda:N`).
    ///
    /// # Errors
    /// Models that cannot be opened and devices that are missing.
    pub fn open(config: &'a Config, store: &Store, device_name: &str, console: &'a Console) -> Result<Self> {
        Self::of_source(Source::open(config, store, console)?, config, store, device_name, console)
    }

    /// As [`Context::open`] with a model that was found already.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn of_source(
        source: Source,
        config: &'a Config,
        store: &Store,
        device_name: &str,
        console: &'a Console,
    ) -> Result<Self> {
        let model = Model::open(&source.dir, &device(device_name)?)?;
        let model_digest = model.checkpoint().digest()?;
        let companions_digest = companions_digest(&source.dir)?;
        Ok(Self {
            config,
            store: store.clone(),
            console,
            model,
            source,
            device_kind: device_name.split(':').next().unwrap_or_default().to_string(),
            device_name: device_name.into(),
            model_digest,
            companions_digest,
            calibration_windows: OnceLock::new(),
            eval_inputs: OnceLock::new(),
        })
    }

    /// Digest of the model's files, hexadecimal.
    pub fn model_digest(&self) -> &str {
        &self.model_digest
    }

    /// Vocabulary and positions of the model.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.model.config.vocab, self.model.config.positions)
    }

    /// Weights of all matrices that calibration covers.
    pub(crate) fn matrix_weights(&self) -> u64 {
        self.model.weights().iter().map(|(_, [rows, cols])| (rows * cols) as u64).sum()
    }

    /// The calibration text as token windows; it is read once.
    pub(crate) fn calibration_windows(&self) -> Result<&CalibrationWindows> {
        if let Some(windows) = self.calibration_windows.get() {
            return Ok(windows);
        }
        let windows = self.source.calibration(self.config, &self.model.config, self.console)?;
        Ok(self.calibration_windows.get_or_init(|| windows))
    }

    /// All texts and questions of the evaluation; they are read once, before anything runs, so that mistakes show early.
    pub(crate) fn eval_inputs(&self) -> Result<&EvalInputs> {
        if let Some(inputs) = self.eval_inputs.get() {
            return Ok(inputs);
        }
        let (e, sizes) = (&self.config.evaluate, self.sizes());
        let (windows, long) = self.source.evaluation(self.config, e.long_context.as_ref(), sizes, self.console)?;
        let questions =
            e.choices().map(|m| self.source.questions(m, sizes, self.console)).collect::<Result<Vec<_>>>()?;
        Ok(self.eval_inputs.get_or_init(|| EvalInputs { windows, long, questions }))
    }

    /// Identity of a stage's artifact: the model, the inputs by name and digest, and the settings that matter.
    pub fn identity(&self, stage: &str, version: u32, inputs: &[(&str, String)], config: impl Serialize) -> Identity {
        let mut all = BTreeMap::from([("model".to_string(), self.model_digest.clone())]);
        all.extend(self.source.commit.iter().map(|commit| ("commit".to_string(), commit.clone())));
        all.extend(inputs.iter().map(|(name, digest)| (name.to_string(), digest.clone())));
        let config = serde_json::to_value(config).expect("configurations are plain data");
        Identity { stage: stage.into(), version, inputs: all, config, seeds: BTreeMap::new() }
    }

    /// All goals of the configuration, in its order.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        if let Some(baseline) = &self.config.baseline {
            return baseline.bits.iter().map(|&bits| Goal::Width(bits)).collect();
        }
        let a = &self.config.allocate;
        let weights = self.model.checkpoint().weights();
        let sizes = a.sizes.iter().map(|size| match *size {
            Size::BitsPerWeight(bits) => Goal::Bytes(BitsPerWeight(bits).bytes(weights)),
            Size::Bytes(bytes) => Goal::Bytes(bytes),
            Size::ResidentBitsPerWeight(bits) => Goal::Resident(BitsPerWeight(bits).bytes(weights)),
            Size::ResidentGb(size) => Goal::Resident((size * 1e9) as u64),
            Size::Within { resident_gb, bytes } => Goal::Within { resident: (resident_gb * 1e9) as u64, file: bytes },
        });
        a.lambdas.iter().map(|&l| Goal::Lambda(l)).chain(sizes).collect()
    }
}
