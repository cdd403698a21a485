//! Errors of the hub and its cache; messages say what to do.

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
        /// The id that was asked for.
        id: HubId,
        /// True if a token was sent.
        token: bool,
    },
    /// The repository exists, the revision does not.
    #[error("hf:{id}: the {} has no revision {}; see {page}", .id.kind().name(), .id.revision())]
    NoRevision {
        /// The id that was asked for.
        id: HubId,
        /// Page that lists the revisions.
        page: String,
    },
    /// The licence has not been accepted.
    #[error("hf:{id}: the {} is gated; accept its licence at {page}{}", .id.kind().name(), advice(.token))]
    Gated {
        /// The id that was asked for.
        id: HubId,
        /// Page at which the licence can be accepted.
        page: String,
        /// True if a token was sent.
        token: bool,
    },
    /// A required file does not exist.
    #[error("hf:{id}: the {} has no {file}{hint}", .id.kind().name())]
    NoFile {
        /// The id that was asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// Hint at a file that is there instead; may be empty.
        hint: String,
    },
    /// A file has another form than expected.
    #[error("hf:{id}: {file}: {reason}")]
    Malformed {
        /// The id that was asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// The value that was found and the one that was expected.
        reason: String,
    },
    /// No answer, or one that makes no sense.
    #[error("hf:{id}: the hub at {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// The id that was asked for.
        id: HubId,
        /// Address.
        endpoint: String,
        /// Message of the network library.
        reason: String,
    },
    /// A download stopped.
    #[error("hf:{id}: downloading {file} stopped: {reason}; run the same command again, it goes on where it stopped")]
    Stopped {
        /// The id that was asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// Message of the network library.
        reason: String,
    },
    /// A file cannot be written.
    #[error("hf:{id}: {file} cannot be written to {cache}: {source}; the same command goes on where it stopped")]
    Io {
        /// The id that was asked for.
        id: HubId,
        /// Name of the file.
        file: String,
        /// The cache.
        cache: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Offline, and the cache is not complete.
    #[error("hf:{id}: {reason} in {cache}, and HF_HUB_OFFLINE is set; download it once without")]
    NotCached {
        /// The id that was asked for.
        id: HubId,
        /// The cache.
        cache: PathBuf,
        /// The file or revision that is missing.
        reason: String,
    },
}

/// Advice about the token, as the end of a message.
fn advice(token: &bool) -> &'static str {
    match token {
        true => ", and whether the token in HF_TOKEN (or of the hub's login) may read it",
        false => ", and give a token that may read it in HF_TOKEN",
    }
}
