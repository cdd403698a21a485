//! What can go wrong between here and the hub, and what to do about it.

use std::path::PathBuf;

use crate::id::HubId;

/// Result of hub operations.
pub type Result<T> = std::result::Result<T, HubError>;

/// A checkpoint or a dataset that cannot be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No such model or dataset, or a private one.
    #[error("hf:{id}: the hub has no {} of that name, or it is private; check the spelling{}", .id.kind().name(), advice(.token))]
    NoSuch {
        /// As asked for.
        id: HubId,
        /// Whether a token was sent.
        token: bool,
    },
    /// It is there, the revision is not.
    #[error("hf:{id}: the {} has no revision {}; see {page}", .id.kind().name(), .id.revision())]
    NoRevision {
        /// As asked for.
        id: HubId,
        /// Page that lists the revisions.
        page: String,
    },
    /// The licence has not been accepted.
    #[error("hf:{id}: the {} is gated; accept its licence at {page}{}", .id.kind().name(), advice(.token))]
    Gated {
        /// As asked for.
        id: HubId,
        /// Its page.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// A file that is needed is not there.
    #[error("hf:{id}: the {} has no {file}{hint}", .id.kind().name())]
    NoFile {
        /// As asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// What it has instead.
        hint: String,
    },
    /// A file is not what it should be.
    #[error("hf:{id}: {file}: {reason}")]
    Malformed {
        /// As asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// No answer, or one that makes no sense.
    #[error("hf:{id}: the hub at {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// As asked for.
        id: HubId,
        /// Address.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// A download stopped.
    #[error("hf:{id}: downloading {file} stopped: {reason}; run the same command again, it goes on where it stopped")]
    Stopped {
        /// As asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// What happened.
        reason: String,
    },
    /// A file cannot be written.
    #[error("hf:{id}: {file} cannot be written to {cache}: {source}; the same command goes on where it stopped")]
    Io {
        /// As asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// The cache.
        cache: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Offline, and the cache has not all of it.
    #[error("hf:{id}: {reason} in {cache}, and HF_HUB_OFFLINE is set; download it once without")]
    NotCached {
        /// As asked for.
        id: HubId,
        /// The cache.
        cache: PathBuf,
        /// What is missing.
        reason: String,
    },
}

/// What to do about a token.
fn advice(token: &bool) -> &'static str {
    match token {
        true => ", and whether the token in HF_TOKEN (or of the hub's login) may read it",
        false => ", and give a token that may read it in HF_TOKEN",
    }
}
