//! The mark in the metadata of a compressed shard, by which any damage to the directory is noticed: checks of the
//! shard's header, of every plain tensor, and of the other files of the directory. Coded tensors carry their own
//! (section 12 of `docs/BITSTREAM.md`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use waterfill_codec::syntax::header::check_of;

use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::types::{Element, QualityLayerMark, Storage, TensorInfo};

/// Version of the bitstream and of the directory's layout.
pub const VERSION: &str = "1-draft";
/// Placeholder of the header digest until [`ShardMark::seal`].
const BLANK: &str = "00000000000000000000000000000000";

/// The value of the metadata key [`MARK_KEY`](crate::MARK_KEY), as JSON. Checks are in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMark {
    /// Bitstream version.
    pub version: String,
    /// BLAKE3, truncated to 16 bytes, of the shard's header and the length before it, with zeros in
    /// place of this digest.
    pub header: String,
    /// Checks (8 bytes) of the plain tensors, one after the other in order of their names.
    pub plain: String,
    /// Checks of the other files of the directory, by name.
    pub files: BTreeMap<String, String>,
    /// Number of the quality layer; none in a base shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<QualityLayerMark>,
}

/// Check of bytes, in hexadecimal.
pub(crate) fn hex_check(bytes: &[u8]) -> String {
    format!("{:016x}", check_of(&[bytes]))
}

/// Check of a file.
pub(crate) fn file_check(path: &Path) -> Result<String> {
    Ok(hex_check(&std::fs::read(path).at(path)?))
}

/// Digest of the header digests of several shards.
pub(crate) fn digest_of_marks<'a>(marks: impl Iterator<Item = &'a ShardMark>) -> String {
    let mut hasher = blake3::Hasher::new();
    for mark in marks {
        hasher.update(mark.header.as_bytes());
    }
    hasher.finalize().to_hex()[..BLANK.len()].to_string()
}

impl ShardMark {
    /// A mark without its header digest, which [`ShardMark::seal`] fills in.
    pub(crate) fn blank(plain: String, files: &BTreeMap<String, String>) -> Self {
        Self { version: VERSION.into(), header: BLANK.into(), plain, files: files.clone(), layer: None }
    }

    pub(crate) fn parse(text: &str) -> std::result::Result<Self, FileError> {
        let version =
            serde_json::from_str::<serde_json::Value>(text).ok().and_then(|v| Some(v.get("version")?.clone()));
        match version.as_ref().and_then(|v| v.as_str()) {
            Some(VERSION) => {}
            Some(found) => {
                let (found, expected) = (found.to_string(), VERSION.to_string());
                return Err(FileError::Version { kind: "bitstream", found, expected });
            }
            None => return Err(FileError::MarkVersion),
        }
        serde_json::from_str(text).map_err(|error| FileError::Mark { error })
    }

    /// Checks the header that the mark is from: `prefix` is the shard's, length included.
    pub(crate) fn check_header(&self, prefix: &[u8]) -> std::result::Result<(), FileError> {
        let computed = header_digest(prefix, &self.header);
        match &computed {
            Some(computed) if *computed == self.header || cfg!(fuzzing) => Ok(()),
            _ => Err(FileError::HeaderDigest { found: computed, expected: self.header.clone() }),
        }
    }

    /// Assigns their checks to the plain tensors of a shard.
    pub(crate) fn assign_checks(&self, tensors: &mut [TensorInfo]) -> std::result::Result<(), FileError> {
        let mut plain: Vec<&mut TensorInfo> = tensors.iter_mut().filter(|t| t.storage == Storage::Plain).collect();
        plain.sort_by(|a, b| a.name.cmp(&b.name));
        if self.plain.len() != 16 * plain.len() || !self.plain.is_ascii() {
            // A coded tensor whose first bytes are damaged looks like plain bytes.
            let bytes = plain.iter().find(|t| t.element == Element::U8);
            return Err(match bytes {
                Some(tensor) => FileError::DamagedStart { tensor: tensor.name.clone() },
                None => FileError::PlainChecks { tensors: plain.len(), checks: self.plain.len() / 16 },
            });
        }
        for (n, tensor) in plain.into_iter().enumerate() {
            tensor.check = Some(self.plain[16 * n..16 * n + 16].to_string());
        }
        Ok(())
    }

    /// Writes the header digest into a shard that was written with a blank one.
    pub(crate) fn seal(path: &Path) -> Result<()> {
        let mut file = File::options().read(true).write(true).open(path).at(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).at(path)?;
        let mut prefix = length.to_vec();
        prefix.resize(8 + u64::from_le_bytes(length) as usize, 0);
        file.read_exact(&mut prefix[8..]).at(path)?;
        let (at, digest) = find(&prefix, BLANK)
            .and_then(|at| Some((at, header_digest(&prefix, BLANK)?)))
            .ok_or_else(|| CheckpointError::file(path, FileError::Unsealed))?;
        file.seek(SeekFrom::Start(at as u64)).at(path)?;
        file.write_all(digest.as_bytes()).at(path)
    }
}

/// Position of a mark's digest in a header, after `"header":"` escaped as JSON in JSON.
fn find(prefix: &[u8], digest: &str) -> Option<usize> {
    let pattern = format!("\\\"header\\\":\\\"{digest}");
    let at = prefix.windows(pattern.len()).position(|w| w == pattern.as_bytes())?;
    Some(at + pattern.len() - digest.len())
}

fn header_digest(prefix: &[u8], digest: &str) -> Option<String> {
    let at = find(prefix, digest).filter(|_| digest.len() == BLANK.len())?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prefix[..at]).update(BLANK.as_bytes()).update(&prefix[at + BLANK.len()..]);
    Some(hasher.finalize().to_hex()[..32].to_string())
}
