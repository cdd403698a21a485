//! Downloads into the cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};
use waterfill_checkpoint::writer::is_companion;
use waterfill_store::{Progress, matching};

use crate::cache::{INDEX, NEEDED, SINGLE, Snapshot, repo_type, weights_of};
use crate::error::{HubError, Result};
use crate::id::HubId;
use crate::settings::Settings;

/// Attempts to take up a broken download before giving up.
const RETRIES: usize = 3;

/// Progress of one file in MiB.
struct Bytes<'a> {
    progress: &'a dyn Progress,
    /// Bytes that make no whole MiB yet.
    rest: usize,
}

impl hf_hub::api::Progress for Bytes<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.rest = 0;
        self.progress.start(&format!("download {filename}, MiB"), (size >> 20) as u64);
    }

    fn update(&mut self, size: usize) {
        self.rest += size;
        self.progress.advance((self.rest >> 20) as u64);
        self.rest &= (1 << 20) - 1;
    }

    fn finish(&mut self) {}
}

/// A model or a dataset at one commit.
struct Remote<'a> {
    id: &'a HubId,
    settings: &'a Settings,
    cache: &'a Cache,
    api: Api,
    repo: Repo,
    remote: ApiRepo,
    /// The repository at the revision that was asked for; `repo` is the same at the commit.
    asked: Repo,
    commit: String,
    /// Names of all files.
    files: Vec<String>,
    progress: &'a dyn Progress,
}

/// Status of an answer that is an error.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

/// Downloads what is missing of a checkpoint.
pub(crate) fn model(id: &HubId, settings: &Settings, cache: &Cache, progress: &dyn Progress) -> Result<Snapshot> {
    let remote = Remote::open(id, settings, cache, progress)?;
    let has = |name: &str| remote.files.iter().any(|f| f == name);
    let absent = |file: &str, hint: String| Err(HubError::NoFile { id: id.clone(), file: file.into(), hint });
    if let Some(name) = NEEDED.into_iter().find(|n| !has(n)) {
        return absent(name, String::new());
    }
    if !has(INDEX) && !has(SINGLE) {
        let mut files = remote.files.iter();
        let weights = files.find(|f| f.ends_with(".bin") || f.ends_with(".gguf") || f.ends_with(".pth"));
        let hint = weights.map_or(String::new(), |f| format!(" but {f}; weights are read from safetensors only"));
        return absent(SINGLE, hint);
    }
    let companions = remote.files.iter().map(String::as_str).filter(|name| is_companion(name));
    for name in NEEDED.into_iter().chain([INDEX]).filter(|n| has(n)).chain(companions) {
        remote.get(name)?;
    }
    for name in weights_of(id, &remote.dir())? {
        if !has(&name) {
            return absent(&name, format!(", which {INDEX} names"));
        }
        remote.get(&name)?;
    }
    remote.finish()
}

/// Downloads what is missing of the wanted files of a dataset: of each group the first pattern that any have.
pub(crate) fn dataset(
    (id, wanted): (&HubId, &[Vec<String>]),
    settings: &Settings,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Snapshot> {
    let remote = Remote::open(id, settings, cache, progress)?;
    for patterns in wanted {
        let found = matching(patterns, &remote.files);
        if found.is_empty() {
            let hint = format!("; see {}/tree/{}", id.page(&settings.endpoint), remote.commit);
            return Err(HubError::NoFile { id: id.clone(), file: patterns.join(" or "), hint });
        }
        found.into_iter().try_for_each(|name| remote.get(name))?;
    }
    remote.finish()
}

impl<'a> Remote<'a> {
    /// Asks what the revision means today.
    fn open(id: &'a HubId, settings: &'a Settings, cache: &'a Cache, progress: &'a dyn Progress) -> Result<Self> {
        let token = settings.token.is_some();
        let unreachable =
            |reason: String| HubError::Unreachable { id: id.clone(), endpoint: settings.endpoint.clone(), reason };
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_retries(RETRIES)
            .with_progress(false)
            .build()
            .map_err(|e| unreachable(e.to_string()))?;
        let repo = |revision: &str| Repo::with_revision(id.name().into(), repo_type(id), revision.into());
        let asked = repo(id.revision());
        let info = api.repo(asked.clone()).info().map_err(|error| match status(&error) {
            Some(404) if api.repo(repo("main")).info().is_ok() => {
                let page = format!("{}/tree/main", id.page(&settings.endpoint));
                HubError::NoRevision { id: id.clone(), page }
            }
            Some(401 | 403 | 404) => HubError::NoSuch { id: id.clone(), token },
            _ => unreachable(error.to_string()),
        })?;
        let commit = info.sha;
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(unreachable(format!("its answer names commit {commit:?}")));
        }
        // Names become paths.
        let plain = |name: &String| !name.split(['/', '\\']).any(|part| part == ".." || part.is_empty());
        let files = info.siblings.into_iter().map(|s| s.rfilename).filter(plain).collect();
        let repo = repo(&commit);
        Ok(Self { id, settings, cache, remote: api.repo(repo.clone()), api, repo, asked, commit, files, progress })
    }

    /// Directory with its files in the cache.
    fn dir(&self) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(&self.commit)
    }

    /// Notes what the revision meant today, for days without network.
    fn finish(self) -> Result<Snapshot> {
        let named = self.cache.repo(self.asked.clone()).create_ref(&self.commit);
        named.map_err(|source| HubError::Io {
            id: self.id.clone(),
            file: "refs".into(),
            cache: self.cache.path().clone(),
            source,
        })?;
        self.progress.note(&format!("hf:{} is at commit {}", self.id, self.commit));
        Ok(Snapshot { dir: self.dir(), commit: self.commit })
    }

    /// Finds or downloads one file.
    fn get(&self, file: &str) -> Result<()> {
        if self.cache.repo(self.repo.clone()).get(file).is_some() {
            return Ok(());
        }
        let download = || -> std::result::Result<(), ApiError> {
            if self.has_parts() {
                let metadata = self.api.metadata(&self.remote.url(file))?;
                let blob = self.cache.repo(self.repo.clone()).blob_path(metadata.etag());
                trim_part(&blob.with_extension("part"), metadata.size() as u64)?;
            }
            self.remote.download_with_progress(file, Bytes { progress: self.progress, rest: 0 })?;
            Ok(())
        };
        download().map_err(|error| self.explain(file, error))
    }

    /// True if the cache has the part of a download that stopped before its end.
    fn has_parts(&self) -> bool {
        let blobs = self.cache.repo(self.repo.clone()).blob_path("");
        let mut names = std::fs::read_dir(blobs).into_iter().flatten().flatten();
        names.any(|entry| entry.path().extension().is_some_and(|e| e == "part"))
    }

    fn explain(&self, file: &str, error: ApiError) -> HubError {
        let id = self.id.clone();
        let file = file.to_string();
        match (status(&error), error) {
            (Some(401 | 403), _) => {
                let page = id.page(&self.settings.endpoint);
                HubError::Gated { id, page, token: self.settings.token.is_some() }
            }
            (Some(404), _) => HubError::NoFile { id, file, hint: ", though it is listed".into() },
            (_, ApiError::IoError(source)) if is_local(&source) => {
                HubError::Io { id, file, cache: self.cache.path().clone(), source }
            }
            (_, ApiError::TooManyRetries(error)) => match *error {
                ApiError::IoError(source) if is_local(&source) => {
                    HubError::Io { id, file, cache: self.cache.path().clone(), source }
                }
                other => HubError::Stopped { id, file, reason: other.to_string() },
            },
            (_, ApiError::LockAcquisition(path)) => {
                let reason = format!("another process holds {}", path.display());
                HubError::Stopped { id, file, reason }
            }
            (_, other) => HubError::Stopped { id, file, reason: other.to_string() },
        }
    }
}

/// True when an error comes from the file system and not from the network.
fn is_local(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | PermissionDenied | QuotaExceeded | ReadOnlyFilesystem)
}

/// Makes a partial download shorter than the file: a server has nothing to send behind its end. A
/// process that died just before it renamed a complete file leaves such a one.
fn trim_part(part: &Path, size: u64) -> std::io::Result<()> {
    match part.metadata() {
        Ok(found) if found.len() >= size => {
            std::fs::OpenOptions::new().write(true).open(part)?.set_len(size.saturating_sub(1))
        }
        _ => Ok(()),
    }
}
