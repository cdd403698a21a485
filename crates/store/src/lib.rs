//! A store of stage results, addressed by what determines them.
//!
//! An artifact lives in `<root>/<model>/<stage>/<key>/`. The key is the digest of the stage's
//! identity: its name, code version, input digests and the part of the configuration that affects
//! the result. The same key is never computed twice, and one process at a time computes it. Work
//! happens in `.unfinished-<key>`, in the same folder as the final directory, which appears by a rename. Units that a
//! killed process had finished there ([`Work`]) are used by the next.

mod files;
mod groups;
mod lock;
mod manifest;
mod patterns;
mod progress;
mod store;
mod work;

use std::path::PathBuf;

pub use files::{hash_file, peak_memory_bytes, reset_peak_memory};
pub use groups::in_groups;
pub use lock::is_locked;
pub use manifest::{Artifact, FORMAT_VERSION, Identity, Manifest, Timings};
pub use patterns::{matching, matching_files};
pub use progress::{Progress, Silent};
pub use store::Store;
pub use work::{Pace, Work};

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, ArtifactError>;

/// Errors of the store and its artifacts.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A manifest or a file of an artifact is damaged.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The value that was found and the one that was expected.
        reason: String,
    },
}
