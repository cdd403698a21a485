//! Identities and manifests of artifacts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{hash_file, io};
use crate::{ArtifactError, Result};

/// Layout version of manifests.
pub const FORMAT_VERSION: u32 = 1;
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const TIMINGS: &str = "timings.json";

/// Everything that determines an artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Stage name, such as `calibrate`.
    pub stage: String,
    /// Version of the stage's code and file format; raised when results change.
    pub version: u32,
    /// Digests of inputs by name.
    pub inputs: BTreeMap<String, String>,
    /// Resolved configuration that affects the result.
    pub config: serde_json::Value,
    /// Seeds of everything random.
    pub seeds: BTreeMap<String, u64>,
}

impl Identity {
    /// Key of the artifact: 16 hexadecimal digits.
    pub fn key(&self) -> String {
        // serde_json keeps maps sorted, so that equal identities have equal text.
        let text = serde_json::to_string(self).expect("an identity is plain data");
        blake3::hash(text.as_bytes()).to_hex()[..16].to_string()
    }
}

/// `manifest.json`: identity and digests of the artifact's files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout version.
    pub format_version: u32,
    /// Key, equal to the directory's name.
    pub key: String,
    /// Everything that determines the artifact.
    pub identity: Identity,
    /// BLAKE3 digests by file name, relative to the artifact.
    pub files: BTreeMap<String, String>,
}

/// `timings.json`: what it took; not part of the identity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Peak resident memory of the process so far, bytes; 0 where unknown.
    pub peak_memory_bytes: u64,
}

/// A finished artifact.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Directory of the artifact.
    pub dir: PathBuf,
    /// Manifest of the artifact.
    pub manifest: Manifest,
    /// True if it existed before.
    pub cached: bool,
}

impl Artifact {
    /// Path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Digest of the artifact's content, for use as an input of the next stage.
    pub fn digest(&self) -> String {
        let text = serde_json::to_string(&self.manifest.files).expect("strings");
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// Opens an artifact directory.
    ///
    /// # Errors
    /// Fails if there is no manifest, or one of another version.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(io(&path))?;
        let damaged = |reason| ArtifactError::Damaged { path: path.clone(), reason };
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if manifest.format_version != FORMAT_VERSION {
            let found = manifest.format_version;
            return Err(damaged(format!("manifest format {found}, this build reads {FORMAT_VERSION}")));
        }
        if manifest.identity.key() != manifest.key {
            return Err(damaged(format!("key {} does not belong to the identity in the same file", manifest.key)));
        }
        Ok(Self { dir: dir.to_path_buf(), manifest, cached: true })
    }

    /// Timings of the run that made it.
    pub fn timings(&self) -> Timings {
        let text = std::fs::read_to_string(self.path(TIMINGS)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Checks every file against its digest.
    ///
    /// # Errors
    /// Names the first file that is missing or differs.
    pub fn verify(&self) -> Result<()> {
        for (name, expected) in &self.manifest.files {
            let path = self.path(name);
            let found = match hash_file(&path) {
                Err(ArtifactError::Io { path, source }) if source.kind() == std::io::ErrorKind::NotFound => {
                    return Err(ArtifactError::Damaged { path, reason: "is missing, the manifest lists it".into() });
                }
                other => other?,
            };
            if found != *expected {
                let reason = format!("digest {found}, the manifest says {expected}");
                return Err(ArtifactError::Damaged { path, reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers must be read back exactly, or the key in a manifest differs from that of its identity.
    #[test]
    fn a_key_survives_reading_back() {
        for n in 1..2000u32 {
            let lambda = 0.002 * f64::from(n).sqrt() / 7_344_384.0;
            let identity = Identity {
                stage: "allocate".into(),
                version: 1,
                inputs: BTreeMap::new(),
                config: serde_json::json!({"lambda": lambda}),
                seeds: BTreeMap::new(),
            };
            let read: Identity = serde_json::from_str(&serde_json::to_string(&identity).unwrap()).unwrap();
            assert_eq!(read.key(), identity.key(), "{lambda:e}");
        }
    }
}
