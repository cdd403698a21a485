//! Files of datasets by patterns.

use std::path::Path;

use hf_hub::Cache;
use waterfill_store::{Progress, matching_files};

use crate::cache::{Snapshot, cached_dir, not_cached, or_cached};
use crate::download;
use crate::error::Result;
use crate::id::HubId;
use crate::settings::Settings;

/// Finds files of a dataset in the cache, or downloads them. Each group of `wanted` is a list of patterns, in which `*`
/// stands for anything but a slash; the first pattern that matches a file decides which files are fetched.
///
/// # Errors
/// As [`crate::fetch`], and if no file matches any pattern of a group.
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

/// The number of files that a name such as `test-00000-of-00003.parquet` belongs to.
fn shards(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    name.rsplit_once("-of-")?.1.split('.').next()?.parse().ok()
}
