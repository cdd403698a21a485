//! Downloads into the cache.

use std::path::Path;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use waterfill_artifacts::Progress;

use crate::error::{HubError, Result};
use crate::id::HubId;
use crate::settings::Settings;
use crate::{COMPANIONS, INDEX, NEEDED, SINGLE, Snapshot, weights_of};

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

/// One model at one commit.
struct Model<'a> {
    id: &'a HubId,
    settings: &'a Settings,
    cache: &'a Cache,
    api: Api,
    repo: Repo,
    remote: ApiRepo,
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

pub(crate) fn download(id: &HubId, settings: &Settings, cache: &Cache, progress: &dyn Progress) -> Result<Snapshot> {
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
    let repo = |revision: &str| Repo::with_revision(id.name().into(), RepoType::Model, revision.into());
    let asked = repo(id.revision());
    let info = api.repo(asked.clone()).info().map_err(|error| match status(&error) {
        Some(404) if api.repo(repo("main")).info().is_ok() => {
            let page = format!("{}/{}/tree/main", settings.endpoint, id.name());
            HubError::NoRevision { id: id.clone(), page }
        }
        Some(401 | 403 | 404) => HubError::NoModel { id: id.clone(), token },
        _ => unreachable(error.to_string()),
    })?;
    let commit = info.sha;
    if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(unreachable(format!("its answer names commit {commit:?}")));
    }
    let files: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let has = |name: &str| files.contains(&name);
    let absent = |file: &str, hint: String| Err(HubError::NoFile { id: id.clone(), file: file.into(), hint });
    if let Some(name) = NEEDED.into_iter().find(|n| !has(n)) {
        return absent(name, String::new());
    }
    if !has(INDEX) && !has(SINGLE) {
        let weights = files.iter().find(|f| f.ends_with(".bin") || f.ends_with(".gguf") || f.ends_with(".pth"));
        let hint = weights.map_or(String::new(), |f| format!(" but {f}; weights are read from safetensors only"));
        return absent(SINGLE, hint);
    }
    let repo = repo(&commit);
    let model = Model { id, settings, cache, remote: api.repo(repo.clone()), api, repo, progress };
    for name in NEEDED.into_iter().chain(COMPANIONS).chain([INDEX]).filter(|n| has(n)) {
        model.get(name)?;
    }
    let dir = cache.repo(model.repo.clone()).pointer_path(&commit);
    for name in weights_of(id, &dir)? {
        if !has(&name) {
            return absent(&name, format!(", which {INDEX} names"));
        }
        model.get(&name)?;
    }
    // What the name meant today, for days without network.
    let named = cache.repo(asked).create_ref(&commit);
    named.map_err(|source| HubError::Io {
        id: id.clone(),
        file: "refs".into(),
        cache: cache.path().clone(),
        source,
    })?;
    progress.note(&format!("hf:{id} is at commit {commit}"));
    Ok(Snapshot { dir, commit })
}

impl Model<'_> {
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

    /// True when some download of this model stopped before its end.
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
                let page = format!("{}/{}", self.settings.endpoint, id.name());
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
