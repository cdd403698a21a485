//! A configuration with its model opened: identities of stages, and running one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use serde::Serialize;
use waterfill_codec::BitsPerWeight;
use waterfill_model::{Model, device};
use waterfill_store::{Artifact, Identity, Progress, Store, Work, reset_peak_memory};

use crate::config::{Config, Target};
use crate::console::Console;
use crate::device_memory;
use crate::error::Result;
use crate::estimate::{Times, available_memory, calibration_disk, gigabytes, stage_memory};
use crate::runs::Place;
use crate::sources::Source;

/// Expected memory from which on it is told, bytes.
const NOTABLE: u64 = 1 << 30;

/// What an allocation aims at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    Lambda(f64),
    Bytes(u64),
    /// Codes of this width, of a baseline.
    Width(u32),
}

impl Goal {
    /// In words.
    pub fn label(self) -> String {
        match self {
            Self::Lambda(lambda) => format!("allocate at lambda {lambda:.1e}"),
            Self::Bytes(bytes) => format!("allocate for {bytes} bytes"),
            Self::Width(bits) => format!("baseline of {bits} bits"),
        }
    }
}

/// A configuration with its model opened, ready to run stages.
pub struct Session<'a> {
    pub(crate) config: &'a Config,
    pub(crate) store: Store,
    pub(crate) console: &'a Console,
    pub(crate) model: Model,
    pub(crate) source: Source,
    /// Kind of the device, which is part of identities.
    pub(crate) device: String,
    /// The device as the user named it.
    pub(crate) device_name: String,
    model_digest: String,
    /// Which run of a sweep it is.
    pub(crate) place: Place,
    /// Folders of artifacts that were used.
    used: Mutex<BTreeSet<PathBuf>>,
}

impl<'a> Session<'a> {
    /// Opens the model of a configuration on a device (`cpu` or `cuda:N`).
    ///
    /// # Errors
    /// Models that cannot be opened and devices that are not there.
    pub fn open(config: &'a Config, store: &Store, device_name: &str, console: &'a Console) -> Result<Self> {
        Self::of_source(Source::open(config, store, console)?, config, store, device_name, console)
    }

    /// As [`Session::open`] with the model found already.
    pub(crate) fn of_source(
        source: Source,
        config: &'a Config,
        store: &Store,
        device_name: &str,
        console: &'a Console,
    ) -> Result<Self> {
        let store = store.clone();
        let device = device(device_name)?;
        let model = Model::open(&source.dir, &device)?;
        let model_digest = model.checkpoint().digest()?;
        let kind = device_name.split(':').next().unwrap_or_default().to_string();
        let device_name = device_name.into();
        let (place, used) = (Place::default(), Mutex::default());
        Ok(Self { config, store, console, model, source, model_digest, device: kind, device_name, place, used })
    }

    /// The same as a run of a sweep.
    pub(crate) fn placed(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Digest of the model's files.
    pub(crate) fn model_digest(&self) -> &str {
        &self.model_digest
    }

    /// Folders of all artifacts that were made or found.
    pub(crate) fn used(&self) -> BTreeSet<PathBuf> {
        self.used.lock().expect("no panic while held").clone()
    }

    /// Notes that an artifact was used.
    pub(crate) fn uses(&self, artifact: &Artifact) {
        self.used.lock().expect("no panic while held").insert(artifact.dir.clone());
    }

    /// Vocabulary and positions of the model.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.model.config.vocab, self.model.config.positions)
    }

    pub(crate) fn identity<const N: usize>(
        &self,
        stage: &str,
        version: u32,
        inputs: [(&str, String); N],
        config: impl Serialize,
    ) -> Identity {
        let mut all = BTreeMap::from([("model".to_string(), self.model_digest.clone())]);
        all.extend(self.source.commit.iter().map(|commit| ("commit".to_string(), commit.clone())));
        all.extend(inputs.map(|(name, digest)| (name.to_string(), digest)));
        let config = serde_json::to_value(config).expect("configurations are plain data");
        Identity { stage: stage.into(), version, inputs: all, config, seeds: BTreeMap::new() }
    }

    /// Runs or finds one artifact and tells the console.
    pub(crate) fn stage(
        &self,
        label: &str,
        identity: &Identity,
        make: impl FnOnce(&Work) -> Result<()>,
    ) -> Result<Artifact> {
        self.console.step(label);
        let start = Instant::now();
        let artifact = self.store.get_or_make(&self.config.name, identity, self.console, |work| {
            self.announce(label, &identity.stage);
            let free = device_memory::free(self);
            make(work).map_err(|error| device_memory::explained(error, self, label, &identity.stage, free))
        })?;
        self.uses(&artifact);
        let peak = artifact.timings().peak_memory_bytes;
        self.console.step_done(artifact.cached, start.elapsed().as_secs_f64(), (peak > 0).then_some(peak));
        Ok(artifact)
    }

    /// Says what a stage that takes much is expected to take.
    fn announce(&self, label: &str, stage: &str) {
        reset_peak_memory();
        let (memory, free) = (stage_memory(self, stage), available_memory());
        if memory > NOTABLE || memory > free {
            let disk = match stage {
                "calibrate" => format!(", {} on disk", gigabytes(calibration_disk(self))),
                _ => String::new(),
            };
            let memory = gigabytes(memory);
            let (seconds, _) = Times::read(self).of(self, stage);
            let time = match seconds {
                s if s < 90.0 => String::new(),
                s if s < 5400.0 => format!(", roughly {:.0} minutes", s / 60.0),
                s => format!(", roughly {:.1} hours", s / 3600.0),
            };
            self.console.note(&format!("{label}: about {memory} of memory ({} are free){disk}{time}", gigabytes(free)));
        }
    }

    /// All goals of the configuration, in its order.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        if let Some(baseline) = &self.config.baseline {
            return baseline.bits.iter().map(|&bits| Goal::Width(bits)).collect();
        }
        let a = &self.config.allocate;
        let weights = self.model.checkpoint().weights();
        let targets = a.targets.iter().map(|t| match *t {
            Target::BitsPerWeight(bits) => Goal::Bytes(BitsPerWeight(bits).bytes(weights)),
            Target::Bytes(bytes) => Goal::Bytes(bytes),
        });
        a.lambdas.iter().map(|&l| Goal::Lambda(l)).chain(targets).collect()
    }
}
