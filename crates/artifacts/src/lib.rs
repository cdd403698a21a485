//! A store of stage results, addressed by what determines them.
//!
//! An artifact lives in `<root>/<model>/<stage>/<key>/`. The key is the digest of the stage's
//! identity: its name, code version, input digests and the part of the configuration that affects
//! the result. The same key is never computed twice. Writes go to a temporary directory beside
//! the final one, are synced, and appear by a rename; a process that dies leaves nothing that
//! looks finished.

mod progress;

pub use progress::{Progress, Silent};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Layout version of manifests.
pub const FORMAT_VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";
const TIMINGS: &str = "timings.json";

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, ArtifactError>;

/// What can be wrong with the store or an artifact in it.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A manifest or a file of an artifact is not as it should be.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ArtifactError + '_ {
    move |source| ArtifactError::Io { path: path.to_path_buf(), source }
}

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
    /// What determines the artifact.
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
    /// Its directory.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// True when it was there already.
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
    /// No manifest, or one of another version.
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
            return Err(damaged(format!("key {} does not belong to the identity beside it", manifest.key)));
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
    /// The first file that is missing or differs.
    pub fn verify(&self) -> Result<()> {
        for (name, expected) in &self.manifest.files {
            let path = self.path(name);
            let found = hash_file(&path)?;
            if found != *expected {
                let reason = format!("digest {found}, the manifest says {expected}");
                return Err(ArtifactError::Damaged { path, reason });
            }
        }
        Ok(())
    }
}

/// A store directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// A store at `root`; created when first written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory that an identity's artifact has.
    pub fn dir(&self, model: &str, identity: &Identity) -> PathBuf {
        self.root.join(model).join(&identity.stage).join(identity.key())
    }

    /// The artifact of an identity when it is finished.
    ///
    /// # Errors
    /// A manifest that is damaged.
    pub fn find(&self, model: &str, identity: &Identity) -> Result<Option<Artifact>> {
        let dir = self.dir(model, identity);
        if !dir.join(MANIFEST).exists() {
            return Ok(None);
        }
        Artifact::open(&dir).map(Some)
    }

    /// Returns the artifact of `identity`, computing it with `make` (which fills the directory it
    /// is given) when it is not there.
    ///
    /// # Errors
    /// Those of `make`, and of the store.
    pub fn get_or_make<E: From<ArtifactError>>(
        &self,
        model: &str,
        identity: &Identity,
        make: impl FnOnce(&Path) -> std::result::Result<(), E>,
    ) -> std::result::Result<Artifact, E> {
        if let Some(found) = self.find(model, identity)? {
            return Ok(found);
        }
        let start = Instant::now();
        let dir = self.dir(model, identity);
        let parent = dir.parent().expect("three levels below the root");
        std::fs::create_dir_all(parent).map_err(io(parent))?;
        let temporary = tempfile::Builder::new()
            .prefix(".unfinished-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(io(parent))?;
        make(temporary.path())?;
        let mut files = BTreeMap::new();
        collect(temporary.path(), "", &mut files)?;
        let manifest =
            Manifest { format_version: FORMAT_VERSION, key: identity.key(), identity: identity.clone(), files };
        let timings = Timings { seconds: start.elapsed().as_secs_f64(), peak_memory_bytes: peak_memory_bytes() };
        write_json(&temporary.path().join(TIMINGS), &timings)?;
        write_json(&temporary.path().join(MANIFEST), &manifest)?;
        sync(temporary.path())?;
        let temporary = temporary.keep();
        if let Err(source) = std::fs::rename(&temporary, &dir) {
            // Another process may have finished the same artifact meanwhile: its copy is as good.
            let _ = std::fs::remove_dir_all(&temporary);
            return match self.find(model, identity)? {
                Some(found) => Ok(found),
                None => Err(ArtifactError::Io { path: dir, source }.into()),
            };
        }
        sync(parent)?;
        Ok(Artifact { dir, manifest, cached: false })
    }
}

/// Digest of a file's bytes.
///
/// # Errors
/// Read errors.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(io(path))?).map_err(io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Peak resident memory of this process in bytes, 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    let mut file = File::create(path).map_err(io(path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io(path))
}

/// Digests of all files below `dir`, synced on the way.
fn collect(dir: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(io(dir))?.collect::<std::io::Result<Vec<_>>>().map_err(io(dir))?;
    for entry in entries {
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files)?;
            sync(&path)?;
        } else {
            files.insert(name, hash_file(&path)?);
            sync(&path)?;
        }
    }
    Ok(())
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seed: u64) -> Identity {
        Identity {
            stage: "stage".into(),
            version: 1,
            inputs: BTreeMap::from([("model".into(), "00".into())]),
            config: serde_json::json!({"b": 1, "a": [1.5, "x"]}),
            seeds: BTreeMap::from([("labels".into(), seed)]),
        }
    }

    fn make(store: &Store, seed: u64, text: &str) -> Result<Artifact> {
        store.get_or_make("m", &identity(seed), |dir| {
            std::fs::create_dir(dir.join("sub")).map_err(io(dir))?;
            std::fs::write(dir.join("sub/data"), text).map_err(io(dir))
        })
    }

    #[test]
    fn the_same_identity_is_computed_once() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        assert!(!make(&store, 1, "first").unwrap().cached);
        let again = make(&store, 1, "second").unwrap();
        assert!(again.cached);
        assert_eq!(std::fs::read_to_string(again.path("sub/data")).unwrap(), "first");
        assert!(!make(&store, 2, "other").unwrap().cached);
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let failed = store.get_or_make("m", &identity(1), |dir| {
            std::fs::write(dir.join("half"), "x").unwrap();
            Err(ArtifactError::Damaged { path: dir.into(), reason: "on purpose".into() })
        });
        assert!(failed.is_err());
        assert!(store.find("m", &identity(1)).unwrap().is_none());
        assert_eq!(std::fs::read_dir(root.path().join("m/stage")).unwrap().count(), 0);
    }

    #[test]
    fn damage_is_named() {
        let root = tempfile::tempdir().unwrap();
        let artifact = make(&Store::new(root.path()), 1, "good").unwrap();
        artifact.verify().unwrap();
        std::fs::write(artifact.path("sub/data"), "evil").unwrap();
        let message = artifact.verify().unwrap_err().to_string();
        assert!(message.contains("sub/data") && message.contains("digest"), "{message}");
    }
}
