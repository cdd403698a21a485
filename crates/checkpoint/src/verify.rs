//! Digests: of a whole checkpoint, and whether everything in it matches its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use waterfill_codec::CodedTensor;

use crate::container::names::check_name;
use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::open::{Checkpoint, Shard};
use crate::safetensors_file::Source;
use crate::shard_mark::file_check;
use crate::types::Storage;

impl Checkpoint {
    /// Files next to the shards that determine the model; none for a single file.
    fn companions(&self) -> Vec<PathBuf> {
        let all = ["config.json", "tokenizer.json"].map(|name| self.dir().join(name));
        all.into_iter().filter(|path| self.whole && path.exists()).collect()
    }

    /// Digest of everything that determines the model: all shards, `config.json` and
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// Read errors.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut add = |path: &Path, source: &Source| -> Result<()> {
            let mut file = blake3::Hasher::new();
            match source {
                // A handle of its own: others may read at the same time.
                Source::File(_) => {
                    let reader = File::open(path).at(path)?;
                    file.update_reader(reader).at(path)?;
                }
                Source::Memory(bytes) => drop(file.update(bytes)),
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(format!("{name} {}\n", file.finalize().to_hex()).as_bytes());
            Ok(())
        };
        self.shards.iter().try_for_each(|shard| add(&shard.path, &shard.file))?;
        for path in self.companions() {
            let file = File::open(&path).at(&path)?;
            add(&path, &Source::File(Arc::new(file)))?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Checks every coded tensor and the digests of plain tensors and tensor tables; returns what
    /// was checked, a line each.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for shard in &self.shards {
            let path = shard.path.display();
            if shard.mark.is_none() {
                lines.push(format!("{path}: a plain shard without digests; its layout is consistent"));
                continue;
            }
            self.verify_files(shard)?;
            if shard.layer {
                for name in &shard.names {
                    self.layered(&self.tensors[name])?.decode(true)?;
                }
                let count = shard.names.len();
                lines.push(format!("{path}: header and {count} refinements match their digests"));
                continue;
            }
            let mut coded = 0;
            for name in &shard.names {
                match self.tensors[name].storage {
                    Storage::Coded => {
                        let bytes = self.read_raw(name)?;
                        let failed = self.codec_error(&self.tensors[name]);
                        CodedTensor::parse(&bytes).and_then(|c| c.verify()).map_err(failed)?;
                        coded += 1;
                    }
                    Storage::Plain => drop(self.read_raw(name)?),
                }
            }
            let plain = shard.names.len() - coded;
            lines.push(format!("{path}: header, {coded} coded and {plain} plain tensors match their digests"));
        }
        Ok(lines)
    }

    /// Compares the files next to the shards with the checks in a shard's mark.
    pub(crate) fn verify_files(&self, shard: &Shard) -> Result<()> {
        for (name, check) in shard.mark.iter().flat_map(|mark| &mark.files).filter(|_| self.whole) {
            check_name(name).map_err(|reason| CheckpointError::file(&shard.path, reason))?;
            let file = self.dir().join(name);
            let computed = file_check(&file)?;
            if computed != *check {
                let (expected, shard) = (check.clone(), shard.path.clone());
                return Err(CheckpointError::file(file, FileError::Check { found: computed, expected, shard }));
            }
        }
        Ok(())
    }
}
