//! The one description of a stage from which plan, dry run, estimates, resumption and the run itself follow.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use waterfill_store::{Artifact, Identity, Work};

use crate::context::Context;
use crate::error::Result;
use crate::results::read_json;

/// A stage with its inputs: one artifact in the store, made or still to be made.
///
/// A value that implements this holds the [`ArtifactRef`]s of its inputs and the settings that the flow decides; all
/// other settings it reads from the context's configuration. A new stage is a new file in `stages/`, and a call of
/// [`crate::engine::Engine::make`] in the flow that needs its artifact.
pub trait Stage {
    /// The stage in words, for progress and plans.
    fn label(&self) -> String;

    /// Everything that determines the artifact's bytes. Its `stage` names the folder in the store.
    ///
    /// # Errors
    /// Inputs outside the store that cannot be read.
    fn identity(&self, context: &Context) -> Result<Identity>;

    /// Cost of making the artifact.
    fn estimate(&self, context: &Context) -> Estimate;

    /// Names of the pieces that outlive an interrupted process, in [`Work`]; they can be made in any order. Empty where
    /// the stage is one piece, or where the pieces are known only while it runs.
    ///
    /// # Errors
    /// Inputs that cannot be read.
    fn units(&self, _context: &Context) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Memory of the stage's batches on an accelerator; `None` for a stage that runs on the CPU alone.
    fn batch_memory(&self, _context: &Context) -> Option<BatchMemory> {
        None
    }

    /// Makes the artifact in [`Work::out`]. All inputs are in the store by then.
    ///
    /// # Errors
    /// Whatever stops the stage.
    fn run(&self, context: &Context, work: &Work) -> Result<()>;
}

/// Cost of a stage before it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// Floating-point operations.
    pub operations: f64,
    /// Peak memory of the process, bytes.
    pub memory: u64,
    /// Bytes on disk while it runs, beyond the artifact's inputs.
    pub disk: u64,
}

/// Memory that a stage's batches take on an accelerator.
pub struct BatchMemory {
    /// Section of the configuration that has `batch_tokens` and `context`.
    pub section: &'static str,
    /// Tokens of a sequence.
    pub context: usize,
    /// Tokens of a batch.
    pub tokens: usize,
    /// Bytes of the stage with batches of so many tokens.
    pub needed: Box<dyn Fn(usize) -> u64>,
}

/// The artifact of a stage: in the store, or, in a plan, still to be made.
#[derive(Debug, Clone)]
pub struct ArtifactRef {
    digest: String,
    artifact: Option<Artifact>,
}

impl ArtifactRef {
    /// An artifact in the store.
    pub(crate) fn found(artifact: Artifact) -> Self {
        Self { digest: artifact.digest(), artifact: Some(artifact) }
    }

    /// An artifact to be made: its key stands for the digest, since it depends on the same things.
    pub(crate) fn pending(key: &str) -> Self {
        Self { digest: format!("pending:{key}"), artifact: None }
    }

    /// Digest of the artifact, for the identities of stages that read it.
    pub fn digest(&self) -> String {
        self.digest.clone()
    }

    /// Folder of the artifact.
    ///
    /// # Panics
    /// Where it is still to be made: stages run after their inputs.
    pub fn dir(&self) -> &Path {
        &self.artifact.as_ref().expect("stages run after their inputs").dir
    }

    /// Path of a file of the artifact; panics as [`ArtifactRef::dir`].
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir().join(file)
    }

    /// A JSON file of the artifact; panics as [`ArtifactRef::dir`].
    ///
    /// # Errors
    /// Files that cannot be read or have other fields.
    pub(crate) fn read<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        read_json(&self.path(file))
    }

    /// A JSON file of the artifact; `None` where it is still to be made.
    ///
    /// # Errors
    /// As [`ArtifactRef::read`].
    pub(crate) fn known<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>> {
        self.artifact.as_ref().map(|_| self.read(file)).transpose()
    }
}
