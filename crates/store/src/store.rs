//! Finding and making artifacts.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::files::{collect, io, peak_memory_bytes, sync, write_json};
use crate::lock::Lock;
use crate::manifest::{Artifact, FORMAT_VERSION, Identity, MANIFEST, Manifest, TIMINGS, Timings};
use crate::progress::Progress;
use crate::work::{PARTIAL, Work};
use crate::{ArtifactError, Result};

/// A store directory. Clones share the list of artifacts whose digests have been checked.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    repair: bool,
    /// Artifacts whose digests this process has checked.
    checked: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Store {
    /// A store at `root`; created when first written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), repair: false, checked: Arc::default() }
    }

    /// The same store; with `repair`, damaged artifacts are removed and made again.
    pub fn repairing(self, repair: bool) -> Self {
        Self { repair, ..self }
    }

    /// Root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of an identity's artifact.
    pub fn dir(&self, model: &str, identity: &Identity) -> PathBuf {
        self.root.join(model).join(&identity.stage).join(identity.key())
    }

    /// Finds the finished artifact of an identity, if it exists. Each file is checked against its digest the first time.
    ///
    /// # Errors
    /// Names the first file that is damaged.
    pub fn find(&self, model: &str, identity: &Identity) -> Result<Option<Artifact>> {
        let dir = self.dir(model, identity);
        if !dir.join(MANIFEST).exists() {
            return Ok(None);
        }
        let artifact = Artifact::open(&dir)?;
        if !self.checked.lock().expect("no panic while held").contains(&dir) {
            artifact.verify()?;
            self.checked.lock().expect("no panic while held").insert(dir);
        }
        Ok(Some(artifact))
    }

    /// Names of the units of an identity that an interrupted process has finished.
    pub fn finished_units(&self, model: &str, identity: &Identity) -> BTreeSet<String> {
        let unfinished = self.root.join(model).join(&identity.stage).join(format!(".unfinished-{}", identity.key()));
        let entries = std::fs::read_dir(unfinished.join("units")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.ends_with(PARTIAL)).collect()
    }

    /// Like [`Store::find`], but a damaged artifact counts as absent when repairing; else the error says how to repair it.
    ///
    /// # Errors
    /// The file that is damaged, unless repairing.
    pub fn usable(&self, model: &str, identity: &Identity, progress: &dyn Progress) -> Result<Option<Artifact>> {
        match self.find(model, identity) {
            Err(ArtifactError::Damaged { path, reason }) if self.repair => {
                progress.note(&format!("{}: {reason}; computing it again", path.display()));
                Ok(None)
            }
            Err(ArtifactError::Damaged { path, reason }) => {
                let reason = format!("{reason}; the same command with --repair computes the artifact again");
                Err(ArtifactError::Damaged { path, reason })
            }
            other => other,
        }
    }

    /// Returns the artifact of `identity`, and makes it with `make` if it does not exist. Waits if another process is making
    /// it; if a process died while making it, `make` finds the units that it had finished.
    ///
    /// # Errors
    /// Errors of `make` and of the store.
    pub fn get_or_make<E: From<ArtifactError> + std::error::Error + 'static>(
        &self,
        model: &str,
        identity: &Identity,
        progress: &dyn Progress,
        make: impl FnOnce(&Work) -> std::result::Result<(), E>,
    ) -> std::result::Result<Artifact, E> {
        let dir = self.dir(model, identity);
        let parent = dir.parent().expect("three levels below the root");
        let lock_path = parent.join(format!(".lock-{}", identity.key()));
        let unfinished = parent.join(format!(".unfinished-{}", identity.key()));
        if let Some(found) = self.usable(model, identity, progress)? {
            // Killed after the artifact was put in its place: its units are of no use any more. A store
            // that cannot be written keeps them.
            if unfinished.exists()
                && let Ok(_lock) = Lock::take(&lock_path, progress)
            {
                let _ = std::fs::remove_dir_all(&unfinished);
            }
            return Ok(found);
        }
        std::fs::create_dir_all(parent).map_err(io(parent))?;
        let lock = Lock::take(&lock_path, progress)?;
        if let Some(found) = self.usable(model, identity, progress)? {
            return Ok(found);
        }
        if dir.exists() {
            // Damaged, or without a manifest: not an artifact.
            std::fs::remove_dir_all(&dir).map_err(io(&dir))?;
        }
        let start = Instant::now();
        let work = Work::begin(&unfinished)?;
        if !work.is_fresh() {
            progress.note("going on where an earlier process stopped");
        }
        let manifest = make(&work).and_then(|()| Ok(finish(&work, identity, start)?));
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                // When a disk is full or a share is gone, finished units wait for the next attempt. What
                // the input itself makes impossible leaves nothing.
                let again = is_io(&error) && !work.is_fresh();
                let _ = std::fs::remove_dir_all(if again { work.out() } else { &unfinished });
                if again {
                    progress.note(&format!("what is finished is kept in {}", unfinished.display()));
                }
                return Err(error);
            }
        };
        std::fs::rename(work.out(), &dir).map_err(io(&dir))?;
        sync(parent)?;
        std::fs::remove_dir_all(&unfinished).map_err(io(&unfinished))?;
        drop(lock);
        self.checked.lock().expect("no panic while held").insert(dir.clone());
        Ok(Artifact { dir, manifest, cached: false })
    }
}

/// True if an error comes from the operating system.
fn is_io(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        if error.is::<std::io::Error>() {
            return true;
        }
        at = error.source();
    }
    false
}

/// Digests the files of a finished artifact, and writes its timings and its manifest.
fn finish(work: &Work, identity: &Identity, start: Instant) -> Result<Manifest> {
    let mut files = BTreeMap::new();
    collect(work.out(), "", &mut files)?;
    let manifest = Manifest { format_version: FORMAT_VERSION, key: identity.key(), identity: identity.clone(), files };
    let timings = Timings { seconds: start.elapsed().as_secs_f64(), peak_memory_bytes: peak_memory_bytes() };
    write_json(&work.path(TIMINGS), &timings)?;
    write_json(&work.path(MANIFEST), &manifest)?;
    sync(work.out())?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

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
        store.get_or_make("m", &identity(seed), &Silent, |work| {
            std::fs::create_dir(work.path("sub")).map_err(io(work.out()))?;
            std::fs::write(work.path("sub/data"), text).map_err(io(work.out()))
        })
    }

    fn broken(store: &Store, full_disk: bool, make: impl FnOnce(&Work)) {
        let failed = store.get_or_make("m", &identity(1), &Silent, |work| {
            make(work);
            let path = work.out().into();
            Err(match full_disk {
                true => ArtifactError::Io { path, source: std::io::ErrorKind::StorageFull.into() },
                false => ArtifactError::Damaged { path, reason: "on purpose".into() },
            })
        });
        assert!(failed.is_err() && store.find("m", &identity(1)).unwrap().is_none());
    }

    #[test]
    fn the_same_identity_is_computed_once() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        assert!(!make(&store, 1, "first").unwrap().cached);
        let again = make(&store, 1, "second").unwrap();
        assert!(again.cached);
        assert_eq!(std::fs::read_to_string(again.path("sub/data")).unwrap(), "first");
        // A process was killed before it could tidy up.
        let left = again.dir.with_file_name(format!(".unfinished-{}", identity(1).key()));
        std::fs::create_dir_all(left.join("units")).unwrap();
        std::fs::write(left.join("units/unit"), "unit").unwrap();
        assert!(make(&store, 1, "third").unwrap().cached && !left.exists());
        assert!(!make(&store, 2, "other").unwrap().cached);
    }

    #[test]
    fn two_threads_that_want_the_same_make_it_once() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let artifact = store.get_or_make::<ArtifactError>("m", &identity(1), &Silent, |work| {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(50));
                        std::fs::write(work.path("data"), "x").map_err(io(work.out()))
                    });
                    assert!(artifact.unwrap().path("data").exists());
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_full_disk_leaves_finished_units_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        broken(&store, true, |work| std::fs::write(work.path("half"), "x").unwrap());
        assert_eq!(std::fs::read_dir(root.path().join("m/stage")).unwrap().count(), 0);
        broken(&store, false, |work| work.keep("one", b"1").unwrap());
        assert_eq!(std::fs::read_dir(root.path().join("m/stage")).unwrap().count(), 0);
        broken(&store, true, |work| {
            work.keep("one", b"1").unwrap();
            work.file::<ArtifactError>("two", |p| std::fs::write(p, "2").map_err(io(p))).unwrap();
            std::fs::write(work.path("half"), "x").unwrap();
        });
        let artifact = store.get_or_make::<ArtifactError>("m", &identity(1), &Silent, |work| {
            assert_eq!(work.unit("one").unwrap(), b"1");
            assert!(!work.path("half").exists());
            work.file::<ArtifactError>("two", |_| panic!("was finished")).unwrap();
            work.adopt("two")
        });
        assert_eq!(std::fs::read_to_string(artifact.unwrap().path("two")).unwrap(), "2");
        assert_eq!(std::fs::read_dir(root.path().join("m/stage")).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_unit_is_no_unit() {
        let dir = tempfile::tempdir().unwrap();
        let work = Work::begin(dir.path()).unwrap();
        work.keep("u", b"some bytes").unwrap();
        let path = dir.path().join("units/u");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(work.unit("u").is_none() && work.unit("absent").is_none());
    }

    #[test]
    fn damage_is_named_and_repaired_on_request() {
        let root = tempfile::tempdir().unwrap();
        let artifact = make(&Store::new(root.path()), 1, "good").unwrap();
        artifact.verify().unwrap();
        std::fs::write(artifact.path("sub/data"), "evil").unwrap();
        let message = make(&Store::new(root.path()), 1, "good").unwrap_err().to_string();
        assert!(
            message.contains("sub/data") && message.contains("digest") && message.contains("--repair"),
            "{message}"
        );
        let repaired = make(&Store::new(root.path()).repairing(true), 1, "good").unwrap();
        assert!(!repaired.cached);
        repaired.verify().unwrap();
        assert_eq!(std::fs::read_to_string(repaired.path("sub/data")).unwrap(), "good");
    }
}
