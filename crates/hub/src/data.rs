//! Files of datasets by patterns.

use std::path::Path;

use hf_hub::Cache;
use waterfill_store::{Progress, matching_files};

use crate::error::Result;
use crate::id::HubId;
use crate::settings::Settings;
use crate::{Snapshot, cached_dir, download, not_cached, or_cached};

/// Finds files of a dataset in the cache or downloads them: of each group of `wanted` those that the first of its
/// patterns has, in which `*` stands for anything but a slash.
///
/// # Errors
/// As [`crate::fetch`], and patterns that no file has.
pub fn fetch_data(
    id: &HubId,
    wanted: &[Vec<String>],
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Snapshot> {
    let cache = Cache::new(settings.cache.clone());
    if settings.offline {
        return cached(id, wanted, &cache);
    }
    let downloaded = download::dataset((id, wanted), settings, &cache, progress);
    or_cached(downloaded, || cached(id, wanted, &cache), progress)
}

fn cached(id: &HubId, wanted: &[Vec<String>], cache: &Cache) -> Result<Snapshot> {
    let snapshot = cached_dir(id, cache)?;
    for patterns in wanted {
        let found = matching_files(&snapshot.dir, patterns);
        let missing = |reason: String| -> Result<Snapshot> { Err(not_cached(id, cache, reason)) };
        match (found.len(), found.first().and_then(|f| shards(f))) {
            (0, _) => return missing(format!("{} is not there", patterns.join(" or "))),
            // A download may have stopped between shards.
            (there, Some(all)) if there != all && patterns.iter().any(|p| p.contains('*')) => {
                return missing(format!("{there} of {all} files {} are there", patterns.join(" or ")));
            }
            _ => {}
        }
    }
    Ok(snapshot)
}

/// Number of shards that a name such as `test-00000-of-00003.parquet` tells.
fn shards(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    name.rsplit_once("-of-")?.1.split('.').next()?.parse().ok()
}
