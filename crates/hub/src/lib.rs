//! Checkpoints and datasets from the Hugging Face hub.
//!
//! Files lie in the hub's own cache, shared with Python's `huggingface_hub`: either program finds what the other has
//! downloaded. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean the same to both.

mod cache;
mod data;
mod download;
mod error;
mod id;
mod settings;

use hf_hub::Cache;
use waterfill_store::Progress;

pub use cache::Snapshot;
pub use data::fetch_data;
pub use error::{HubError, Result};
pub use id::{HubId, Kind};
pub use settings::Settings;

/// Finds a checkpoint in the cache, or downloads its missing files. A download resumes where an earlier one stopped.
///
/// # Errors
/// Fails if the id, the revision or a file does not exist, the licence has not been accepted, or the network or the disk
/// fails.
pub fn fetch(id: &HubId, settings: &Settings, progress: &dyn Progress) -> Result<Snapshot> {
    let cache = Cache::new(settings.cache.clone());
    if settings.offline {
        return cache::cached(id, &cache);
    }
    let downloaded = download::model(id, settings, &cache, progress);
    cache::or_cached(downloaded, || cache::cached(id, &cache), progress)
}
